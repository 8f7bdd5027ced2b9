"""What a row's function is given: data, trained models that rows share, steps that are kept, places for pictures."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import re
import time
from urllib.parse import quote

import keras
import numpy as np
import records
import tensorflow as tf
from inputs import BASES, fingerprint, load, named
from rows import sizes

from keras_capsvit import data, training
from keras_capsvit.files import replacing, write_text
from keras_capsvit.metrics import SubsetAccuracy
from keras_capsvit.taps import computing_in_bfloat16


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things are: TFDS folders, weights and pictures, what is kept while rows run, records, figures."""

    data_dir: str | None = None
    weights: pathlib.Path | None = None
    work: pathlib.Path = pathlib.Path("saved_models/reproduce")
    results: pathlib.Path = records.RESULTS / "rows"
    figures: pathlib.Path = records.RESULTS / "figures"


class Run:
    """One row, in a profile, with a seed.

    Args:
        row: str, its name.
        profile: str.
        seed: int, of data, weights and whatever else the row draws.
        setting: SimpleNamespace, what the record is to say; steps and models of other settings are not taken.
        places: Places.
        dtype: ``"float32"`` or ``"mixed_bfloat16"``, of trainings, and of what rows measure ``with run.precision``;
            everything else is measured in float32.
        verbose: Keras's, of trainings.
        draws: bool, whether its pictures are those that are kept; of further seeds they are not.

    Attributes:
        seed, profile, dtype, smoke: as given; whether the profile is smoke.
    """

    def __init__(self, row, profile, seed, setting, places, dtype="float32", verbose=2, draws=True):
        self.row, self.profile, self.seed, self.dtype = row, profile, seed, dtype
        self.smoke = profile == "smoke"
        self.fingerprints, self.models, self.figures, self.seconds = {}, {}, [], 0.0
        self._places, self._verbose, self._draws = places, verbose, draws and not self.smoke
        self._arrays, self._folders = {}, {}
        self._steps = places.work / "steps" / f"{row}_{profile}_seed_{seed}_{key_of(setting, seed, dtype)}"

    def data(self, name, split, take=None, **options):
        """Images ``(n, H, W, C)`` float32 and labels ``(n,)``, NumPy; in the smoke profile digits in their shape.

        Args:
            name: str, of ``data.DATASETS``.
            split: ``"train"``, shuffled by the seed, or ``"test"``, in the order of the files.
            take: int, the first so many, or all if there are fewer; None for all.
            **options: of ``data.load``, such as ``image_size`` and those of made sets.
        """
        key = (name, split, take, repr(sorted(options.items())))
        if key not in self._arrays:
            batches = list(self._stream(name, split, take, 500, options).as_numpy_iterator())
            self._arrays[key] = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)
        return self._arrays[key]

    def streams(self, name, train=None, test=None, batch_size=128, **options):
        """Training and test streams of a data set, and its ``data.Info``; training images are shuffled by the seed.

        Args:
            name: str, of ``data.DATASETS``.
            train: int, training images; None for all.
            test: int, test images; None for all.
            batch_size: int.
            **options: of ``data.load``.

        Returns:
            Tuple ``(train, test, info)``; ``info.image_shape`` is the shape after ``image_size``.
        """
        streams = [self._stream(name, *part, batch_size, options) for part in (("train", train), ("test", test))]
        info = data.info(name)
        if options.get("image_size") is not None:
            info = dataclasses.replace(info, image_shape=tuple(streams[0].element_spec[0].shape[1:]))
        return *streams, info

    def trained(
        self,
        name,
        build,
        dataset,
        recipe,
        *,
        train=None,
        test=None,
        fit=training.fit,
        method="fit",
        examine=None,
        **options,
    ):
        """A trained model: one that any row has trained by the same settings and seed, or else one trained now.

        Interrupted, the training goes on after its last finished epoch.

        Args:
            name: str, what ``epochs`` and the record call it.
            build: callable ``info (data.Info) → keras.Model``.
            dataset: str, of ``data.DATASETS``.
            recipe: ``training.Recipe``, or the name of one; its ``batch_size``, ``shift``, ``flip``, ``mixup`` and
                ``cutmix`` are applied to the training images.
            train, test: int, images to train on and to judge by; None for all.
            fit: callable ``(model, train, test, recipe, *, work, verbose)``, such as a partial
                ``training.adversarial_fit``; with ``examine`` it is given ``callbacks``, too.
            method: str, what tells ``fit`` from other ones.
            examine: callable ``model → dict`` that JSON takes, measured after every epoch, see ``examined``.
            **options: of ``data.load``.

        Returns:
            keras.Model in float32, compiled for ``evaluate``.
        """
        recipe = training.RECIPES[recipe] if isinstance(recipe, str) else recipe
        train_stream, test_stream, info = self.streams(dataset, train, test, recipe.batch_size, **options)
        model = self._built(build, info)
        about = {
            "data": [dataset, train, test, options, self.smoke],
            "recipe": dataclasses.asdict(recipe),
            "method": method,
            "examine": getattr(examine, "__qualname__", None),
            "model": _described(model),
            "seed": self.seed,
            "dtype": self.dtype,
        }
        key = records.digest(about)
        folder = self._places.work / "models" / key
        shared = (folder / "model.json").exists()
        if not shared:
            augmented = data.augment(train_stream, shift=recipe.shift, flip=recipe.flip, seed=self.seed)
            mixed = {"mixup": recipe.mixup, "cutmix": recipe.cutmix, "seed": self.seed}
            augmented = data.mix(augmented, info.num_classes, **mixed) if recipe.mixes else augmented
            learner = model if self.dtype == "float32" else self._built(build, info, self.dtype)
            extra = {"callbacks": [_Examine(examine, folder)]} if examine else {}
            started = time.perf_counter()
            print(
                f"{name}: {learner.count_params():,} parameters, to train on {dataset}, epochs: {recipe.epochs}",
                flush=True,
            )
            fit(learner, augmented, test_stream, recipe, work=folder, verbose=self._verbose, **extra)
            with replacing(folder / "model.keras") as temporary:
                learner.save(temporary)
            about |= {"name": name, "seconds": round(time.perf_counter() - started, 1)}
            write_text(folder / "model.json", json.dumps(about, indent=1, default=str))
        stored = json.loads((folder / "model.json").read_text())
        if shared or learner is not model:
            model.load_weights(folder / "model.keras")
            loss = training.loss_for(model, recipe.loss, label_smoothing=recipe.label_smoothing)
            model.compile(loss=loss, metrics=[SubsetAccuracy("accuracy")])
        self._folders[name] = folder
        self.models[name] = {"key": key, "seconds": stored["seconds"], "parameters": model.count_params()}
        self.models[name] |= {"epochs": len(self.epochs(name)["epoch"]), "trained_here": not shared}
        return model

    def epochs(self, name):
        """What every epoch of a trained model came to, a dict of lists: ``epoch``, ``loss``, ``val_accuracy``, ..."""
        with (self._folders[name] / "epochs.csv").open() as file:
            rows = list(csv.DictReader(file))
        return {column: [float(row[column]) for row in rows] for column in rows[0]}

    def examined(self, name):
        """What ``examine`` measured after every epoch of a trained model, a list of dicts."""
        paths = sorted(self._folders[name].glob("examined-*.json"))
        return [json.loads(path.read_text()) for path in paths]

    def step(self, key, function):
        """What a function returns, anything JSON takes, kept as soon as it is measured; after a kill it is read."""
        path = self._steps / f"{quote(str(key), safe=' ,+-=()')}.json"
        if path.exists():
            stored = json.loads(path.read_text())
            self.seconds += stored["seconds"]
            return stored["value"]
        started = time.perf_counter()
        # Of networks that learnt nothing some figures are not defined: how often attacks on right answers succeed.
        value = json.loads(json.dumps(records.plain(function()), allow_nan=self.smoke))
        write_text(path, json.dumps({"value": value, "seconds": time.perf_counter() - started}))
        return value

    def work(self, *names):
        """Folder for the ``work`` of ``evaluate``, whose measurements go on after a kill; deleted with the steps."""
        return self._steps.joinpath(*(quote(str(name), safe=" ,+-=()") for name in names))

    def precision(self, model):
        """Context in which a model computes in ``dtype``: for long measurements, whose means do not change by it."""
        return contextlib.nullcontext() if self.dtype == "float32" else computing_in_bfloat16(model)

    def figure(self, name):
        """Path for a picture, PNG, of at most some 100 KB."""
        folder = self._places.figures if self._draws else self._places.work / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / re.sub(r"[^\w.-]+", "_", f"{self.row}_{name}.png")
        if self._draws and path.name not in self.figures:
            self.figures.append(path.name)
        return path

    def weights(self, name):
        """Path of a file or folder of the user's weights and pictures; ``inputs.Missing`` if it is not there."""
        return named(self._places.weights, name)

    def forget_steps(self):
        """Delete the steps, when the record has them."""
        if self._steps.is_dir():
            for path in sorted(self._steps.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            self._steps.rmdir()

    def _stream(self, name, split, take, batch_size, options):
        data_dir = self._places.data_dir
        base = name if name == "affnist" else BASES.get(name, name)
        self.fingerprints.setdefault(base, {})[split] = fingerprint(base, split, data_dir, self.smoke)
        how = {"seed": self.seed, "data_dir": data_dir, "smoke": self.smoke, **options}
        return load(name, split, take, batch_size=batch_size, **how)

    def _built(self, build, info, dtype="float32"):
        with _policy(dtype):
            keras.utils.set_random_seed(self.seed)
            return build(info)


class _Examine(keras.callbacks.Callback):
    """Keeps what a function measures after every epoch in files of its own."""

    def __init__(self, function, folder):
        super().__init__()
        self.function, self.folder = function, folder

    def on_epoch_end(self, epoch, logs=None):
        measured = {"epoch": epoch, **self.function(self.model)}
        write_text(self.folder / f"examined-{epoch:04d}.json", json.dumps(records.plain(measured)))


def key_of(setting, seed, dtype):
    """What steps and a record are of: a change of the settings' sizes makes others."""
    return records.digest([sizes(vars(setting)), seed, dtype])


@contextlib.contextmanager
def _policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _described(model):
    """A model's class, constructor arguments and shapes, without the numbers that Keras gives to names of layers."""
    config = json.dumps(keras.saving.serialize_keras_object(model), default=str)
    return {"config": re.sub(r'_\d+"', '"', config), "shapes": [list(each.shape) for each in model.variables]}
