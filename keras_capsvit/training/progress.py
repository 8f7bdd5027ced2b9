"""How far a training is, on disk: a checkpoint after every epoch, and ``epochs.csv``, written anew from its rows."""

import csv
import io
import json
import pathlib

import keras

from keras_capsvit import files
from keras_capsvit.training.checkpoints import Checkpoints
from keras_capsvit.training.processes import count_and_number
from keras_capsvit.training.randomness import random_state, set_random_state


class Progress(keras.callbacks.Callback):
    """Keeps the state of a training in a folder, and restores it.

    The state is all that later epochs depend on: weights, the optimizer's variables, the seeds of the model's layers
    and of Python, NumPy and Keras, the epochs done, their rows of ``epochs.csv``, and whether the training has ended
    early. The order of the data follows from the number of epochs, see ``streams``. Of processes that train together
    the first writes and all read.

    Args:
        work: path of the folder, which gets ``epochs.csv`` and ``checkpoint/``.
        kind: dict that JSON takes, of what the training is; a checkpoint that differs in it is refused.
    """

    def __init__(self, work, kind):
        super().__init__()
        self.rows = []
        self._writes = count_and_number()[1] == 0
        if self._writes:
            files.remove_abandoned(work)
        self._table = pathlib.Path(work) / "epochs.csv"
        self._checkpoints = Checkpoints(pathlib.Path(work) / "checkpoint")
        self._kind = json.loads(json.dumps(kind))

    def restore(self, model):
        """Bring a compiled model, and the generators of random numbers, to where the training is, or begin it.

        Args:
            model: compiled model.

        Returns:
            int, epochs done; and bool, whether the training has ended early.

        Raises:
            ValueError: for a model without variables yet, a checkpoint of another training, one that says nonsense, and
                if none can be read.
        """
        self.set_model(model)
        if not model.built:
            raise ValueError(
                f"A model needs its variables before a checkpoint can be read; {model.name} has none yet. Call it on "
                "a batch of images first."
            )
        model.optimizer.build(model.trainable_variables)
        newest = self._checkpoints.newest()
        if newest is None:
            self._save(stopped=False)  # so that a training that ends in its first epoch begins again from here
            return 0, False
        path, about, arrays = newest
        self._check(path, about)
        for variable, array in zip(_variables(model), arrays, strict=True):
            variable.assign(array)
        set_random_state(about["random"])
        self.rows = about["rows"]
        self._write_table()
        return about["epoch"], about["stopped"]

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch, **{name: float(value) for name, value in logs.items()}})
        self._save(self.model.stop_training)

    def delete(self):
        """Delete the checkpoints of a training that has ended."""
        if self._writes:
            self._checkpoints.delete()

    def history(self, history):
        """Put all epochs, also those before an interruption, into a keras.callbacks.History."""
        history.epoch = [row["epoch"] for row in self.rows]
        history.history = {name: [row[name] for row in self.rows] for name in self._names()}
        return history

    def _save(self, stopped):
        random = random_state()  # in all processes, because Keras's may be made now, which they do together
        if not self._writes:
            return
        about = {
            "kind": self._kind,
            "model": _described(self.model),
            "rows": self.rows,
            "stopped": bool(stopped),
            "random": random,
        }
        arrays = [keras.ops.convert_to_numpy(variable) for variable in _variables(self.model)]
        self._checkpoints.save(len(self.rows), about, arrays)
        self._write_table()

    def _names(self):
        return sorted(set().union(*self.rows) - {"epoch"})

    def _write_table(self):
        """After the checkpoint, which holds the rows: a table that was not written yet is written when it is read."""
        if not self._writes:
            return
        if not self.rows:
            self._table.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, ["epoch", *self._names()], restval="NA", lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        files.write_text(self._table, text.getvalue())

    def _check(self, path, about):
        current = {**_described(self.model), **self._kind}
        recorded = {**about["model"], **about["kind"]}
        for name, value in current.items():
            if recorded.get(name) != value:
                difference = _difference(name, recorded.get(name), value)
                raise ValueError(
                    f"Expected to go on with the training of {path}, which has {difference}. Call with what it was "
                    f"begun with, give another folder for work, or delete {path.parent} to begin anew."
                )


def _variables(model):
    return [*model.variables, *model.optimizer.variables]


def _described(model):
    """What tells a model and its optimizer from others, also in a process that numbers its layers otherwise."""
    # The optimizer's variables are named by layers, with their numbers.
    return {
        "model": keras.saving.get_registered_name(type(model)),
        "settings of the model": _settings(model),
        "variables": [[variable.name, *_form(variable)] for variable in model.variables],
        "optimizer": type(model.optimizer).__name__,
        "variables of the optimizer": [_form(variable) for variable in model.optimizer.variables],
    }


def _form(variable):
    return [list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def _settings(model):
    """Constructor arguments of a model that is made by a constructor, not by a list of layers; only plain values."""
    try:
        config = model.get_config()
    except NotImplementedError:
        return {}
    if "layers" in config:
        return {}
    return json.loads(
        json.dumps({name: value for name, value in config.items() if name != "name" and _is_plain(value)})
    )


def _is_plain(value):
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _difference(name, recorded, current):
    """In what two values differ, for a message."""
    if isinstance(recorded, dict) and isinstance(current, dict):
        names = [key for key in {**recorded, **current} if recorded.get(key) != current.get(key)]
        pairs = (f"{key}={recorded.get(key)!r} (received {current.get(key)!r})" for key in names)
        return f"another {name}: {', '.join(pairs)}"
    if isinstance(recorded, list) and isinstance(current, list):
        if len(recorded) != len(current):
            return f"{len(recorded)} {name} (received {len(current)})"
        recorded, current = next((a, b) for a, b in zip(recorded, current, strict=True) if a != b)
    return f"another {name}: {recorded!r} (received {current!r})"
