"""What rows of several chapters do."""

from keras_capsvit import training

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "svhn_cropped": "SVHN"}


def recipe(setting, *names):
    """The recipe of the last of the names that ``setting.recipes`` has, or its default, a ``training.Recipe``."""
    known = [setting.recipes[name] for name in names if name in setting.recipes]
    settings = known[-1] if known else setting.recipes["default"]
    return training.Recipe(**{**settings, "schedule": _schedule(settings)})


def percent(model, stream):
    """Accuracy on a stream in %, float."""
    return 100 * model.evaluate(stream, verbose=0, return_dict=True)["accuracy"]


def _schedule(settings):
    schedule = settings.get("schedule", "constant")
    return tuple(schedule) if isinstance(schedule, list) else schedule
