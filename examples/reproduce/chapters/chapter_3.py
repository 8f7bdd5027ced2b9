"""Graph capsule networks (thesis chapter 3)."""

from rows import row

from chapters.shared import TITLES, percent, recipe
from keras_capsvit import CapsNet, GraCapsNet


def basic(setting, run, name, dataset):
    """GraCapsNet or CapsNet of Table 3.1, trained; on CIFAR-10 GraCapsNet has the 64 heads of the author's code."""

    def build(info):
        if name == "CapsNet":
            return CapsNet(info.image_shape, info.num_classes, **setting.capsnet)
        heads = setting.gracapsnet["num_heads"] * (2 if info.image_shape[-1] == 3 else 1)
        settings = {**setting.gracapsnet, "num_heads": heads}
        return GraCapsNet(info.image_shape, info.num_classes, sigma=setting.sigma, **settings)

    title = f"{name} on {TITLES[dataset]}"
    numbers = {"train": setting.train, "test": setting.validation}
    return title, run.trained(title, build, dataset, recipe(setting, name, dataset), **numbers)


@row("3.T1")
def accuracy(setting, run):
    measured, curves = {}, {}
    for dataset in setting.datasets:
        _, test, _ = run.streams(dataset, test=setting.test)
        for name in ("GraCapsNet", "CapsNet"):
            title, model = basic(setting, run, name, dataset)
            measured[title] = run.step(title, lambda model=model, test=test: percent(model, test))
            measured[f"{title}, million parameters"] = model.count_params() / 1e6
            curves[title] = [100 * value for value in run.epochs(title)["val_accuracy"]]
    return {"measured": measured, "curves": curves}
