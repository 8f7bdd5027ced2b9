"""The networks of chapter 7, trained once and shared by its rows, and the images that they are compared on."""

import dataclasses
import functools

import numpy as np

from chapters.plain import without_nan
from keras_capsvit import attacks, evaluate, explain, taps, training
from keras_capsvit.models import DeiT, DenseNet, LeViT, MLPMixer, ResNet18, SwinTransformer, VisionTransformer
from keras_capsvit.patches import PatchGrid

CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}


def _vit(setting, kind=VisionTransformer, **common):
    size = {"width": setting.vit_width, "depth": setting.vit_depth, "num_heads": setting.vit_heads}
    return kind(f"Ti/{setting.patch_size}", **size, **common)


def _mixer(setting, **common):
    units = {"token_units": setting.vit_width, "channel_units": 4 * setting.vit_width}
    return MLPMixer(f"S/{setting.patch_size}", width=setting.vit_width, depth=setting.vit_depth, **units, **common)


def _levit(setting, **common):
    sizes = {"widths": [setting.levit_width], "depths": [setting.vit_depth], "num_heads": [setting.vit_heads]}
    return LeViT(**sizes, key_dim=16, distilled=False, **common)


def _swin(setting, **common):
    sizes = {"width": setting.swin_width, "depths": [2, setting.swin_depth], "num_heads": [2, 4], "window_size": 4}
    return SwinTransformer("T/2", **sizes, **common)


BUILDERS = {
    "ViT": _vit,
    "DeiT": functools.partial(_vit, kind=DeiT),
    "ResNet": lambda setting, **common: ResNet18(filters=setting.resnet_filters, **common),
    "Mixer": _mixer,
    "LeViT": _levit,
    "Swin": _swin,
    "DenseNet": lambda setting, **common: DenseNet(121, **common),
}


def network(name, setting, run, *, image_size=None, **options):
    """A network of ``BUILDERS``, from the cache if any row has trained it with these settings.

    Args:
        name: str.
        setting, run: see the engine.
        image_size: int to resize images to; None for their own.
        **options: further arguments of its constructor.

    Returns:
        keras.Model.
    """

    def build(info):
        common = {"input_shape": info.image_shape, "num_classes": info.num_classes, **CIFAR10, **options}
        return BUILDERS[name](setting, **common)

    recipe = training.Recipe(
        # A ResNet learns faster; fair is what ends at a similar accuracy.
        setting.resnet_epochs if name == "ResNet" else setting.epochs,
        setting.batch_size,
        learning_rate=setting.learning_rate,
        schedule="cosine",
        loss="cross_entropy",
        shift=setting.shift,
        flip=setting.flip,
    )
    parts = [name, *(f"{key} {value}" for key, value in options.items()), *([f"of {image_size}"] if image_size else [])]
    return run.trained(" ".join(parts), build, setting.dataset, recipe, train=setting.train, image_size=image_size)


def pair(setting, run):
    """The two that are compared throughout, a dict from names to networks."""
    return {"ResNet": network("ResNet", setting, run), "ViT": network("ViT", setting, run)}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Networks by name, images ``x`` of classes ``y`` that all classify correctly, and attacks on them.

    Args:
        setting, run: see the engine.
        models: dict from names to networks.
        x, y: arrays.
    """

    setting: object
    run: object
    models: dict
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, setting, run, models=None, *, examples=None):
        """Of the pair, or of other networks, on ``examples`` images at most, by default the setting's."""
        models = models or pair(setting, run)
        batches = evaluate.classified_correctly(models, run.data(setting.dataset, "test", setting.test))
        if not batches:
            raise ValueError("No test image is classified correctly by all networks; train them longer.")
        count = setting.examples if examples is None else examples
        x, y = (np.concatenate(arrays)[:count] for arrays in zip(*batches, strict=True))
        return cls(setting, run, models, x, y)

    @property
    def note(self):
        """What the rates are of, a sentence."""
        return f"Of {len(self.x)} test images that {' and '.join(self.models)} classify correctly."

    def size(self, cells=1):
        """Side in pixels of patches that are so many patches of the transformer wide."""
        return cells * self.setting.patch_size

    def grid(self, cells=1):
        """Places for patches side by side, of so many patches of the transformer each way."""
        return PatchGrid(self.x.shape[1:], self.size(cells))

    def attack(self, cells=1, **others):
        """The attack on one patch at a random place of that grid; other settings of PatchAttack on top."""
        how = {"positions": self.grid(cells), "steps": self.setting.steps, "seed": self.run.seed}
        return attacks.PatchAttack(self.size(cells), **{**how, **others})

    def results(self, cells=1):
        """What that attack does to each network, a dict from names to PatchResults; made once."""
        return {name: self._result(name, cells) for name in self.models}

    def fooling_rates(self, key, perturb):
        """Fooling rates in percent by network, stored under a key; with iterations where there are some."""

        def measure():
            return evaluate.fooling_rate(self.models, perturb, (self.x, self.y)).rows

        return {each["model"]: each for each in self.run.step(key, lambda: without_nan(measure()))}

    @functools.cached_property
    def _results(self):
        return {}

    def _result(self, name, cells):
        if (name, cells) not in self._results:
            self._results[name, cells] = self.attack(cells).run(self.models[name], self.x, self.y)
        return self._results[name, cells]


def attention(model, images):
    """Rollout where a network has attention that can be rolled out, its mean feature map otherwise, ``(b, H, W)``."""
    rolled = "attention_0" in taps.names(model)
    return (explain.AttentionRollout(model) if rolled else explain.FeatureMapAttention(model))(images)


def gradient(model, images, target):
    """Magnitudes of the gradient of class scores, summed over channels, ``(b, H, W)``; None for the predicted class."""
    return np.abs(explain.Saliency(model, channels=True)(images, target)).sum(axis=-1)
