"""Training by a recipe, in Keras's own ``fit``, interrupted and resumed."""

import dataclasses
import math

import keras

from keras_capsvit.training import recipes, streams
from keras_capsvit.training.progress import Progress


def fit(model, train, validation, recipe, *, work=None, verbose="auto", callbacks=()):
    """Compile and train a model by a recipe; interrupted, the same call goes on after the last finished epoch.

    What it goes on with is what it would have come to without the interruption, bit by bit where operations are
    deterministic (see ``set_deterministic``): weights, optimizer, seeds and order of the data. The checkpoints are
    deleted at the end. The accuracy that it reports and stops at is ``SubsetAccuracy``, the usual one where images have
    one class.

    Args:
        model: model that returns lengths or logits.
        train: ``tf.data.Dataset`` of batches, augmented (``data.augment``) and mixed (``data.mix``) as the recipe says,
            or ``keras.utils.PyDataset``. One that does not know its length is read once more, to count its batches.
        validation: stream judged by after every epoch; None for none.
        recipe: Recipe, or the name of one in ``RECIPES``.
        work: path of a folder for checkpoints and ``epochs.csv``; None for neither.
        verbose: Keras's.
        callbacks: list of ``keras.callbacks.Callback``, called before the checkpoint of an epoch is written. What they
            keep themselves, an interruption loses.

    Returns:
        keras.callbacks.History; with ``work``, of all epochs, also those before an interruption.

    Raises:
        ValueError: for an unknown recipe; losses that do not fit the model; streams that are empty, have no end or can
            be read only once; class ids where the recipe mixes images; a loss that is not finite; and a checkpoint in
            ``work`` of another training.
        FileError: where no checkpoint in ``work`` is whole. Where only the newest is not, a warning names it.
    """
    return Training(model, train, validation, recipe, work, "fit").run(verbose, callbacks)


class Training:
    """A model compiled by a recipe, and the streams that it is trained on.

    Args:
        model, train, validation, recipe, work: see ``fit``.
        method: str, how it is trained; a checkpoint of another method is refused.
    """

    def __init__(self, model, train, validation, recipe, work, method):
        self.model = model
        self.recipe = recipe = recipes.named(recipe)
        self.streams = [train] if validation is None else [train, validation]
        self._lengths = [streams.length(train, "the training stream")]
        self._lengths += [streams.length(stream, "the validation stream") for stream in self.streams[1:]]
        if recipe.stop_at is not None and validation is None:
            raise ValueError(
                f"Expected a validation stream, because the recipe stops at an accuracy of {recipe.stop_at}; received "
                "None. Give one, or take a recipe with stop_at=None."
            )
        if recipe.mixes:
            _check_rows(train, recipe)
        recipes.compile_by(model, recipe, self._lengths[0])
        kind = {"method": method, "recipe": _lasting(recipe), "batches": self._lengths}
        self.progress = None if work is None else Progress(work, kind)

    def run(self, verbose, callbacks=()):
        """Train from where the training is; returns a History."""
        callbacks = [*callbacks, FiniteLoss()]
        if self.recipe.stop_at is not None:
            callbacks.append(StopAt(self.recipe.stop_at))
        epoch, stopped = 0, False
        if self.progress is not None:
            callbacks.append(self.progress)  # last, because it writes down what the others did
            epoch, stopped = self.progress.restore(self.model)
        train, *validation = streams.at_epoch(self.streams, self._lengths, epoch)
        history = self.model.fit(
            train,
            validation_data=validation[0] if validation else None,
            initial_epoch=self.recipe.epochs if stopped else epoch,
            epochs=self.recipe.epochs,
            shuffle=False,  # streams shuffle themselves
            callbacks=callbacks,
            verbose=verbose,
        )
        if self.progress is None:
            return history
        self.progress.delete()
        return self.progress.history(history)


class StopAt(keras.callbacks.Callback):
    """End training after the first epoch in which a metric reaches a value.

    Args:
        value: float.
        monitor: str, name of the metric.

    Raises:
        ValueError: when an epoch ends, for a metric that it does not have.
    """

    def __init__(self, value, monitor="val_accuracy"):
        super().__init__()
        self.value = value
        self.monitor = monitor

    def on_epoch_end(self, epoch, logs=None):
        if self.monitor not in (logs or {}):
            raise ValueError(f"Expected monitor among {', '.join(logs or ())}; received {self.monitor!r}.")
        if logs[self.monitor] >= self.value:
            self.model.stop_training = True


class FiniteLoss(keras.callbacks.Callback):
    """Refuse to go on after an epoch whose loss is NaN or infinite: the weights are lost then."""

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs.get("loss", 0.0)):
            raise ValueError(
                f"The loss of epoch {epoch + 1} is {logs['loss']}, and the weights are lost. Look for images that are "
                "not finite or outside an attack's bounds and labels out of range, or take a lower learning rate."
            )


def _check_rows(train, recipe):
    """Refuse class ids for a recipe that mixes images, because nobody has mixed them."""
    spec = train[0] if isinstance(train, keras.utils.PyDataset) else train.element_spec
    y = keras.utils.unpack_x_y_sample_weight(spec)[1]
    if len(getattr(y, "shape", ())) != 2 or "float" not in str(y.dtype):
        raise ValueError(
            f"The recipe mixes images, mixup={recipe.mixup} and cutmix={recipe.cutmix}: expected labels (b, M) of the "
            f"shares of classes; received {y!r:.80}. Mix the training stream by data.mix(stream, num_classes, "
            "mixup=..., cutmix=...), or take a recipe without."
        )


def _lasting(recipe):
    """What the epochs so far depend on: not how many there will be, unless the learning rate does."""
    settings = dataclasses.asdict(recipe)
    if recipe.schedule != "cosine":
        del settings["epochs"]
    return settings
