"""Training recipes: the settings behind the thesis's tables, by name, with checkpoints, resuming and an early stop."""

import dataclasses
import pathlib
import warnings

import keras

from keras_capsvit import taps
from keras_capsvit.checks import NoGradientError
from keras_capsvit.losses import BinaryCrossEntropy, CrossEntropy, MarginLoss
from keras_capsvit.metrics import SubsetAccuracy
from keras_capsvit.private import initial_epoch

LOSSES = ("margin", "cross_entropy", "binary_cross_entropy")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        epochs: int.
        batch_size: int, for the stream to train on; ``fit`` takes streams as they come.
        optimizer: ``"adam"``, or ``"sgd"`` with momentum 0.9.
        learning_rate: float, the first.
        schedule: ``"constant"``; ``"cosine"``, to 0 at the end; or a tuple of epochs, after each of which the rate is
            divided by 10.
        loss: ``"margin"``, ``"cross_entropy"`` or ``"binary_cross_entropy"`` (see ``loss_for``).
        shift: int, for ``data.augment``.
        flip: bool, for ``data.augment``.
        stop_at: float or None, validation accuracy at which training ends.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 0.001
    schedule: str | tuple = "constant"
    loss: str = "margin"
    shift: int = 0
    flip: bool = False
    stop_at: float | None = None

    def __post_init__(self):
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer must be 'adam' or 'sgd'; received {self.optimizer!r}.")
        if self.schedule not in ("constant", "cosine") and not isinstance(self.schedule, tuple):
            raise ValueError(f"schedule must be 'constant', 'cosine' or a tuple of epochs; received {self.schedule!r}.")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}; received {self.loss!r}.")


RECIPES = {
    # Thesis chapter 4, appendix B (Table 4.1), and with it the capsule networks of Table 3.1; MNIST images are moved by
    # up to 2 pixels there as in Sabour et al. 2017.
    "capsnet": Recipe(epochs=100, shift=2),
    # Tables 4.2, 4.3 and 5.1, on expanded_mnist: all models end at the same accuracy on images that were not deformed.
    "affine": Recipe(epochs=100, stop_at=0.9922),
    "affine_convnet": Recipe(epochs=100, stop_at=0.9922, loss="cross_entropy"),
    # Table 6.1: ResNet18, and CapsNet on it.
    "resnet18": Recipe(
        epochs=80,
        batch_size=256,
        optimizer="sgd",
        learning_rate=0.1,
        schedule=(50,),
        loss="cross_entropy",
        shift=4,
        flip=True,
    ),
    # This package's own: GraCapsNet in few epochs.
    "gracapsnet": Recipe(epochs=5, learning_rate=0.003, schedule="cosine"),
}


def loss_for(model, name):
    """Loss by name, for a model that returns lengths or logits.

    Args:
        model: model with a tap ``lengths`` or ``logits``.
        name: ``"margin"`` (lengths only); ``"cross_entropy"``, the softmax of logits, or of lengths (ablation of
            Table 5.2); or ``"binary_cross_entropy"`` on multi-hot labels, of sigmoids of logits, or of lengths.

    Returns:
        keras.losses.Loss.

    Raises:
        ValueError: for an unknown name, a model with neither tap, and margins on logits.
    """
    kinds = {"lengths", "logits"} & set(taps.names(model))
    if name not in LOSSES or not kinds:
        raise ValueError(
            f"Expected a loss among {LOSSES} and a model with a tap 'lengths' or 'logits'; received {name!r} and a "
            f"model with the taps {taps.names(model)}."
        )
    if name == "cross_entropy":
        return CrossEntropy()
    if name == "binary_cross_entropy":
        return BinaryCrossEntropy(from_logits="logits" in kinds)
    if "logits" in kinds:
        raise ValueError(f"The margin loss is one of lengths; {model.name} returns logits. Use 'cross_entropy'.")
    return MarginLoss()


def fit(model, train, validation, recipe, *, work=None, verbose="auto"):
    """Compile and train a model by a recipe; interrupted, the same call goes on after the last finished epoch.

    The accuracy that it reports and stops at is ``SubsetAccuracy``, the usual one where images have one class.

    Args:
        model: model that returns lengths or logits.
        train: ``tf.data.Dataset`` of batches, augmented (``data.augment``) as the recipe says.
        validation: stream judged by after every epoch.
        recipe: Recipe, or the name of one in ``RECIPES``.
        work: path of a folder for checkpoints and ``epochs.csv``; None for neither.
        verbose: Keras's.

    Returns:
        keras.callbacks.History.

    Raises:
        ValueError: for an unknown recipe, and losses that do not fit the model.
    """
    recipe = _compile(model, train, recipe)
    return model.fit(
        train,
        validation_data=validation,
        epochs=recipe.epochs,
        shuffle=False,  # streams shuffle themselves
        callbacks=_callbacks(recipe, work),
        verbose=verbose,
    )


def adversarial_fit(model, train, validation, recipe, attack, *, objective=None, work=None, verbose="auto"):
    """Train a model on adversarial examples, made of every batch for the weights of that moment (Madry et al. 2018).

    Like ``fit`` it shows a progress bar, and goes on after the last finished epoch if it was interrupted. Validation is
    on clean images. The thesis's AT is ``objective=None`` (capsules, or logits); its AT + Votes (Table 6.2) is
    ``objective=lambda model: attacks.combined(attacks.capsules(model), attacks.votes(model))``.

    Args:
        model: model that returns lengths or logits.
        train: ``tf.data.Dataset`` of batches ``(x (b, H, W, C), y (b,))``.
        validation: stream judged by after every epoch.
        recipe: Recipe, or the name of one in ``RECIPES``.
        attack: callable ``(objective, x, y) → adversarial images``, such as ``attacks.PGD(0.031, steps=8)``; one with a
            seed gets another for every batch.
        objective: callable from the model to what is attacked; None for the model's natural objective.
        work: path of a folder for checkpoints and ``epochs.csv``; None for neither.
        verbose: Keras's.

    Returns:
        keras.callbacks.History.

    Raises:
        ValueError: for an unknown recipe, losses that do not fit the model, and what the attack refuses.
    """
    recipe = _compile(model, train, recipe)
    goal = model if objective is None else objective(model)
    callbacks = keras.callbacks.CallbackList(
        _callbacks(recipe, work),
        add_history=True,
        add_progbar=verbose != 0,
        model=model,
        verbose=1 if verbose == "auto" else verbose,
        epochs=recipe.epochs,
        steps=len(train),
    )
    model.stop_training = False
    callbacks.on_train_begin()
    for epoch in range(initial_epoch(model), recipe.epochs):
        callbacks.on_epoch_begin(epoch)
        totals, seen = {}, 0
        for step, (x, y) in enumerate(train):
            callbacks.on_train_batch_begin(step)
            if hasattr(attack, "seed"):
                attack = dataclasses.replace(attack, seed=epoch * len(train) + step)
            found = model.train_on_batch(_attacked(attack, goal, x, y), y, return_dict=True)  # of this batch alone
            seen += len(x)
            totals = {name: totals.get(name, 0.0) + len(x) * value for name, value in found.items()}
            logs = {name: total / seen for name, total in totals.items()}
            callbacks.on_train_batch_end(step, logs)
        judged = model.evaluate(validation, verbose=0, return_dict=True)
        callbacks.on_epoch_end(epoch, {**logs, **{f"val_{name}": value for name, value in judged.items()}})
        if model.stop_training:
            break
    callbacks.on_train_end()
    return model.history


def _attacked(attack, goal, x, y):
    """Adversarial examples of a batch; the clean ones where no gradient reaches any, as of a model that is all sure."""
    try:
        return attack(goal, x, y)
    except NoGradientError as error:
        warnings.warn(f"A batch is trained on as it is: {error}", stacklevel=3)
        return x


class StopAt(keras.callbacks.Callback):
    """End training after the first epoch in which a metric reaches a value.

    Args:
        value: float.
        monitor: str, name of the metric.
    """

    def __init__(self, value, monitor="val_accuracy"):
        super().__init__()
        self.value = value
        self.monitor = monitor

    def on_epoch_end(self, epoch, logs=None):
        if logs[self.monitor] >= self.value:
            self.model.stop_training = True


def _compile(model, train, recipe):
    """Compile a model by a recipe or the name of one; returns the recipe."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"Unknown recipe {recipe!r}; expected a Recipe or one of {', '.join(RECIPES)}.")
        recipe = RECIPES[recipe]
    model.compile(_optimizer(recipe, len(train)), loss_for(model, recipe.loss), metrics=[SubsetAccuracy("accuracy")])
    return recipe


def _callbacks(recipe, work):
    callbacks = [] if recipe.stop_at is None else [StopAt(recipe.stop_at)]
    if work is not None:
        work = pathlib.Path(work)
        resuming = (work / "checkpoint").exists()  # a finished training deletes it
        work.mkdir(parents=True, exist_ok=True)
        callbacks.append(keras.callbacks.BackupAndRestore(work / "checkpoint"))
        callbacks.append(keras.callbacks.CSVLogger(work / "epochs.csv", append=resuming))
    return callbacks


def _optimizer(recipe, steps_per_epoch):
    rate = recipe.learning_rate
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, recipe.epochs * steps_per_epoch)
    elif isinstance(recipe.schedule, tuple):
        rates = [rate / 10**k for k in range(len(recipe.schedule) + 1)]
        boundaries = [epoch * steps_per_epoch for epoch in recipe.schedule]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    if recipe.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9)
    return keras.optimizers.Adam(rate)
