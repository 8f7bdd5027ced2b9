"""Chapter 7, appendix A: how training settings of a ResNet change what a patch does to it."""

import dataclasses

from rows import row

from chapters.chapter_7_networks import Comparison, network
from chapters.plain import in_percent, known
from keras_capsvit import data, taps
from keras_capsvit.patches import PatchGrid

VARIANTS = {
    "WS": {"weight_standardization": True},
    "GN": {"norm": "group"},
    "WS + GN": {"weight_standardization": True, "norm": "group"},
}


@row("7.A")
def training_settings(setting, run):
    """Fooling rate of one patch on ResNet18 of larger inputs, with weight standardisation and group normalisation."""
    native = data.info(setting.dataset).image_shape[0]
    sizes = {f"input {size}": {"image_size": size} if size != native else {} for size in setting.image_sizes}
    variants = sizes | {name: options for name, options in VARIANTS.items() if name in setting.variants}
    measured = {}
    for name, options in variants.items():
        model = network("ResNet", setting, run, **options)
        # The patch covers the same share of images of any size.
        x, y = run.data(setting.dataset, "test", setting.test, image_size=options.get("image_size"))
        right = taps.predictions(model, x) == y
        examples = (each[right][: setting.examples] for each in (x, y))
        comparison = Comparison(setting, run, {name: model}, *examples)
        size = setting.patch_size * x.shape[1] // native
        attack = comparison.attack()
        attack = dataclasses.replace(attack, patch_size=size, positions=PatchGrid(x.shape[1:], size))
        measured[f"{name}, clean accuracy"] = in_percent(right.mean())
        measured[f"{name}, fooling rate"] = in_percent(comparison.fooling_rates(name, attack)[name]["fooling_rate"])
    return {"measured": known(measured)}
