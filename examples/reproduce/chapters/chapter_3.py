"""Graph capsule networks (thesis chapter 3)."""

from rows import row

from keras_capsvit import CapsNet, GraCapsNet, training

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "svhn_cropped": "SVHN"}


def recipe(setting, *names):
    """The recipe of the last of the names that has one, or the default, a ``training.Recipe``."""
    known = [setting.recipes[name] for name in names if name in setting.recipes]
    return training.Recipe(**(known[-1] if known else setting.recipes["default"]))


def percent(model, stream):
    """Accuracy on a stream in %, float."""
    return 100 * model.evaluate(stream, verbose=0, return_dict=True)["accuracy"]


def build(setting, name, info):
    """GraCapsNet or CapsNet of Table 3.1; on CIFAR-10 GraCapsNet has the 64 heads of the author's code."""
    if name == "GraCapsNet":
        heads = {"num_heads": setting.gracapsnet["num_heads"] * (2 if info.image_shape[-1] == 3 else 1)}
        sizes = {**setting.gracapsnet, **heads}
        return GraCapsNet(info.image_shape, info.num_classes, sigma=setting.sigma, **sizes)
    return CapsNet(info.image_shape, info.num_classes, **setting.capsnet)


@row("3.T1")
def accuracy(setting, run):
    measured, curves = {}, {}
    for dataset in setting.datasets:
        for name in ("GraCapsNet", "CapsNet"):
            title = f"{name} on {TITLES[dataset]}"
            sizes = {"train": getattr(setting, "train", None), "test": getattr(setting, "test", None)}
            model = run.trained(
                title,
                lambda info, name=name: build(setting, name, info),
                dataset,
                recipe(setting, name, dataset),
                **sizes,
            )
            _, test, _ = run.streams(dataset, test=sizes["test"])
            measured[title] = percent(model, test)
            measured[f"{title}, million parameters"] = model.count_params() / 1e6
            curves[title] = [100 * value for value in run.epochs(title)["val_accuracy"]]
    return {"measured": measured, "curves": curves}
