"""Every explainer and attack on every kind of model that people bring: the same as on its plain twin, or refused.

    python tests/battery.py                       # the whole table, some minutes
    python tests/battery.py --only GradCAM PGD --kinds served nested

Explainers and attacks enrol by themselves: all classes of ``explain`` and ``attacks``; those that need more than a
model, or another family of models, say so in ``EXPLAINERS`` and ``ATTACKS``. ``test_battery.py`` runs three kinds that
stand for all. A case that differs from its twin in silence is an error; what is refused must stand in ``REFUSALS``.
"""

import argparse
import dataclasses
import inspect
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
from keras import layers, ops

from keras_capsvit import GraCapsNet, attacks, explain

SIZE, CLASSES, EPSILON = 10, 4, 0.1
TENSORFLOW = keras.backend.backend() == "tensorflow"


# Models. A core is functional and returns logits, or lengths of capsules; the plain twin of every kind is a core.


def cnn(shape, head=None):
    images = x = keras.Input(shape)
    for index, filters in enumerate((4, 6)):
        x = layers.Conv2D(filters, 3, activation="relu", **_seeded(index), name=f"conv{index}")(x)
    x = layers.AveragePooling2D(2, name="pool")(x)
    return keras.Model(images, (head or _dense())(layers.Flatten()(x)), name="cnn")


def transformer(shape, head=None):
    images = keras.Input(shape)
    x = layers.Conv2D(8, 5, strides=5, **_seeded(0), name="patches")(images)
    x = layers.Reshape((-1, 8))(x)
    x = ClassToken(name="token")(x)
    for index in range(2):
        normal = layers.LayerNormalization(name=f"norm{index}")(x)
        attention = layers.MultiHeadAttention(2, 4, **_seeded(3 + index), name=f"attention{index}")(normal, normal)
        x = layers.Add()([x, attention])
        hidden = layers.Dense(16, activation="relu", **_seeded(5 + index), name=f"mlp{index}")(x)
        x = layers.Add()([x, layers.Dense(8, **_seeded(7 + index), name=f"out{index}")(hidden)])
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(images, (head or _dense())(x[:, 0]), name="transformer")


def capsules(shape, head=None):
    keras.utils.set_random_seed(0)
    model = GraCapsNet(shape, CLASSES, num_heads=2, primary_dim=4, capsule_dim=4, filters=8)
    return model if head is None else keras.Sequential([keras.Input(shape), model, head])


@keras.saving.register_keras_serializable(package="battery")
class ClassToken(layers.Layer):
    """A learned token in front."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer=_normal(1))

    def call(self, x):
        return ops.concatenate([ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1])), x], axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, shape[2])


@keras.saving.register_keras_serializable(package="battery")
class Subclass(keras.Model):
    """A user's own class, which ends in an op."""

    def __init__(self, core, end=None):
        super().__init__()
        self.core, self.end = core, end

    def call(self, x):
        x = self.core(x)
        return x if self.end is None else self.end(x)


def _normal(seed):
    return keras.initializers.RandomNormal(stddev=0.3, seed=seed)


def _seeded(seed):
    return {"kernel_initializer": _normal(seed), "bias_initializer": _normal(seed + 50)}


def _dense(units=CLASSES, activation=None):
    return layers.Dense(units, activation=activation, **_seeded(9), name="head")


class Opposites(keras.initializers.Initializer):
    """Two columns, ``-w`` and ``w``, of the one column ``w`` that an initializer gives: logits ``-z`` and ``z``."""

    def __init__(self, initializer):
        self.initializer = initializer

    def __call__(self, shape, dtype=None):
        column = self.initializer((*shape[:-1], 1), dtype)
        return ops.concatenate([-column, column], axis=-1)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a model is brought.

    Args:
        bring: callable ``(family, core, folder) → model``: family is one of the builders above, core its plain model.
        shape: tuple, of the images.
        twin: callable from the family to the plain model.
        scale: float, highest pixel that the model takes.
        singly: bool, image by image instead of in a batch.
        families: families that can be brought so.
        close: float, largest difference relative to the largest value; for bfloat16 that of most values.
        tensorflow: bool, whether it needs TensorFlow.
    """

    bring: Callable
    shape: tuple = (SIZE, SIZE, 3)
    twin: Callable = lambda family, shape: family(shape)
    scale: float = 1.0
    singly: bool = False
    families: tuple = (cnn, transformer, capsules)
    close: float = 2e-4
    tensorflow: bool = False


def _nested(core, *front):
    return keras.Sequential([keras.Input(core.input_shape[1:]), *front, core], name="outer")


def _with_head(family, core, activation):
    """The family with the weights of its core and an activation at the end."""
    return family(core.input_shape[1:], _dense(activation=activation))


def _sigmoid(family, core, folder):
    return family(core.input_shape[1:], _dense(1, "sigmoid"))


def _two_logits(family, shape):
    opposite = {name: Opposites(initializer) for name, initializer in _seeded(9).items()}
    return family(shape, layers.Dense(2, **opposite, name="head"))


def _mixed(family, core, folder):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return family(core.input_shape[1:])
    finally:
        keras.config.set_dtype_policy("float32")


def _integers(family, core, folder):
    images = keras.Input(core.input_shape[1:], dtype="uint8")
    return keras.Model(images, core(layers.Rescaling(1 / 255)(images)))


def _served(family, core, folder):
    from keras_capsvit import serving

    serving.export(core, folder, input_range=(0, 1))
    return serving.load(folder)


def _served_foreign(family, core, folder):
    from keras_capsvit import serving

    _with_softmax(family, core).export(folder, verbose=False)
    return serving.load(folder)


def _loaded(family, core, folder):
    import tensorflow as tf

    _with_softmax(family, core).export(folder, verbose=False)
    return tf.saved_model.load(folder)


def _with_softmax(family, core):
    return core if family is capsules else _with_head(family, core, "softmax")


NO_CAPSULES = (cnn, transformer)
KINDS = {
    "functional": Kind(lambda family, core, folder: core),
    "Sequential": Kind(
        lambda family, core, folder: keras.Sequential([keras.Input(core.input_shape[1:]), *core.layers[1:]]),
        families=(cnn,),
    ),
    "nested": Kind(lambda family, core, folder: _nested(_nested(core))),
    "subclassed": Kind(lambda family, core, folder: _called(Subclass(core), core)),
    "softmax head": Kind(lambda family, core, folder: _with_head(family, core, "softmax"), families=NO_CAPSULES),
    "log-softmax head": Kind(lambda f, core, folder: _with_head(f, core, "log_softmax"), families=NO_CAPSULES),
    "softmax op, subclassed": Kind(
        lambda family, core, folder: _called(Subclass(core, ops.softmax), core), families=NO_CAPSULES
    ),
    "sigmoid head": Kind(_sigmoid, twin=_two_logits, families=NO_CAPSULES),
    "mixed precision": Kind(_mixed, close=0.1),
    "0..255": Kind(lambda family, core, folder: _nested(core, layers.Rescaling(1 / 255)), scale=255.0),
    "integers": Kind(_integers, scale=255.0),
    "not square": Kind(lambda family, core, folder: _nested(core), shape=(SIZE, 15, 3)),
    "grey": Kind(lambda family, core, folder: _nested(core), shape=(SIZE, SIZE, 1)),
    "batch of 1": Kind(lambda family, core, folder: core, singly=True),
    "callable": Kind(lambda family, core, folder: lambda x: core(x), families=NO_CAPSULES),
    "served": Kind(_served, tensorflow=True),
    "served, not by us": Kind(_served_foreign, tensorflow=True, families=NO_CAPSULES),
    "tf.saved_model.load": Kind(_loaded, tensorflow=True, families=NO_CAPSULES),
    # Those that stand for all in the tests.
    "as users bring them": Kind(
        lambda family, core, folder: _nested(_with_softmax(family, core), layers.Rescaling(1 / 255)),
        shape=(SIZE, 15, 1),
        scale=255.0,
    ),
}
STAND_FOR_ALL = ("as users bring them", "sigmoid head", "served, not by us")


def _called(model, core):
    model(np.zeros((1, *core.input_shape[1:]), "float32"))
    return model


# Explainers and attacks: the family that they are tried on, and how they are made.


def _builder(cls, **settings):
    return lambda model, scale: cls(model, **settings)


EXPLAINERS = {
    "SmoothGrad": (cnn, lambda model, scale: explain.SmoothGrad(explain.Saliency(model), 3)),
    "IntegratedGradients": (cnn, _builder(explain.IntegratedGradients, steps=4)),
    "GraphAttention": (capsules, _builder(explain.GraphAttention)),
    "GraphContribution": (capsules, _builder(explain.GraphContribution)),
    "AttentionRollout": (transformer, _builder(explain.AttentionRollout)),
    "TransformerAttribution": (transformer, lambda model, scale: explain.TransformerAttribution(model)),
    "LRP": (cnn, lambda model, scale: explain.LRP(model, input_range=(0, scale), **_sized(model))),
    "CLRP": (cnn, lambda model, scale: explain.CLRP(model, input_range=(0, scale), **_sized(model))),
    "GuidedBackprop": (cnn, lambda model, scale: explain.GuidedBackprop(model, **_sized(model))),
    "DeconvNet": (cnn, lambda model, scale: explain.DeconvNet(model, **_sized(model))),
}
ATTACKS = {
    "APGD": {"steps": 4},
    "AutoAttack": {"version": "custom", "attacks": {"dlr": attacks.APGD(1, steps=3, loss="margin", keep="first")}},
    "DeepFool": {"steps": 3},
    "FAB": {"steps": 4},
    "CarliniWagner": {"steps": 10, "binary_search_steps": 3, "initial_const": 0.1},
    "CarliniWagnerBox": {"epsilon": 0.1, "steps": 5},
    "CarliniWagnerLinf": {"steps": 5},
    "PatchAttack": {"patch_size": 3, "steps": 4},
    "PatchFool": {"patch_size": 5, "steps": 4},
    "DetectionAware": {"steps": 3, "error": lambda x: ops.mean(ops.square(x), axis=(1, 2, 3))},
    "PGD": {"steps": 4, "restarts": 2},
    "BIM": {"steps": 4},
    "MIM": {"steps": 4},
    "Square": {"queries": 20},
}
# (name or "*", kind or "*") → what the error says.
RELEVANCE = ("LRP", "CLRP", "GuidedBackprop", "DeconvNet")
REFUSALS = {(name, "mixed precision"): "computes in float32 or float64.*received bfloat16" for name in RELEVANCE}
if not TENSORFLOW:
    REFUSALS |= {(name, "*"): "needs the tensorflow backend; received 'jax'" for name in (*RELEVANCE, "ScoreCAM")}


def _sized(model):
    """Relevance asks for the size of images where the model tells none."""
    known = hasattr(model, "input_shape") or hasattr(model, "signatures")
    return {} if known else {"input_shape": (SIZE, SIZE, 3)}


def explainers():
    """Names of all explainers: classes of ``explain`` that explain a model, which a random map does not look at."""
    bases = (explain.Explainer, explain.RandomMap)
    public = {name: getattr(explain, name) for name in explain.__all__}
    classes = {n: c for n, c in public.items() if inspect.isclass(c) and c not in bases and callable(c)}
    return [name for name, cls in classes.items() if "__call__" in dir(cls)]


def attack_classes():
    """Names of all attacks with settings of their own."""
    public = {name: getattr(attacks, name) for name in attacks.__all__}
    return [
        name
        for name, cls in public.items()
        if inspect.isclass(cls)
        and issubclass(cls, attacks.Attack)
        and cls not in (attacks.Attack, attacks.GradientAttack)
    ]


def images(kind, count=3):
    """Pixels in [0, 1] that are whole numbers of 255ths, so that integers hold them."""
    return np.random.default_rng(1).integers(0, 256, (count, *kind.shape)).astype("float32") / 255


def family_and_make(name):
    """The family of models that an explainer is tried on, and how it is made of a model and the scale of its pixels."""
    return EXPLAINERS.get(name, (cnn, lambda model, scale: getattr(explain, name)(model)))


def explained(name, kind, model, x, scale):
    """Maps relative to their largest value."""
    explainer = family_and_make(name)[1](model, scale)
    target = 1
    x = (x * scale).astype("float32")
    maps = [explainer(each, target) for each in (np.split(x, len(x)) if kind.singly else [x])]
    predicted = [explainer(each) for each in (np.split(x, len(x)) if kind.singly else [x])]
    return [np.concatenate(maps), np.concatenate(predicted)]


def attacked(name, kind, model, x, scale):
    """Adversarial images in [0, 1]."""
    cls, settings = getattr(attacks, name), dict(ATTACKS.get(name, {}))
    if "error" in settings and scale != 1:
        error = settings["error"]
        settings["error"] = lambda x: error(x / scale)
    if "patch_size" not in settings:
        settings["epsilon"] = scale * settings.pop("epsilon", EPSILON)
    attack = cls(**settings, bounds=(0.0, scale))
    y = np.arange(len(x)) % 2
    x = (x * scale).astype("float32")
    if kind.singly:  # random starts are those of the first image
        x, y = x[:1], y[:1]
    return [np.asarray(attack(model, x, y)) / scale]


def outcome(name, kind_name):
    """``"same"``, ``"refused: ..."`` or ``"DIFFERS: ..."`` of an explainer or attack on a kind of model.

    None where the kind does not apply.
    """
    kind = KINDS[kind_name]
    run = attacked if name in attack_classes() else explained
    family = cnn if run is attacked else family_and_make(name)[0]
    if family not in kind.families or (kind.tensorflow and not TENSORFLOW):
        return None
    x, plain = images(kind), kind.twin(family, kind.shape)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = run(name, KINDS["functional"], plain, x, 1.0)
        except Exception as error:
            return _refused(error)
        model = kind.bring(family, family(kind.shape) if kind.twin is not _two_logits else plain, folder)
        try:
            received = run(name, kind, model, x, kind.scale)
        except (ValueError, NotImplementedError) as error:
            return _refused(error)
        except Exception as error:
            return f"FAILS: {type(error).__name__}: {' '.join(str(error).split())}"
    return _compared(expected, received, kind)


def _refused(error):
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"refused: {kind}{' '.join(str(error).split())}"


def _compared(expected, received, kind):
    worst = 0.0
    for twin, own in zip(expected, received, strict=True):
        twin = twin[: len(own)] if kind.singly else twin
        if twin.shape != own.shape:
            return f"DIFFERS: shape {own.shape}, the twin's {twin.shape}"
        if not np.isfinite(own).all():
            return "DIFFERS: not finite"
        # Gradients are those of pixels, whatever their unit.
        twin, own = (maps / (np.abs(maps).max() or 1) for maps in (twin, own))
        difference = np.abs(twin - own)
        worst = max(worst, float(np.quantile(difference, 0.9) if kind.close > 0.01 else difference.max()))
    return f"same ({worst:.0e})" if worst <= kind.close else f"DIFFERS by {worst:.2g}"


def allowed(name, kind_name, result):
    """Whether an outcome is what it should be."""
    if result is None or result.startswith("same"):
        return True
    patterns = (REFUSALS.get(key) for key in ((name, kind_name), (name, "*"), ("*", kind_name)))
    return result.startswith("refused") and any(pattern and re.search(pattern, result) for pattern in patterns)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*explainers(), *attack_classes()]
    parser.add_argument("--only", nargs="+", default=everything, choices=everything)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    args = parser.parse_args()
    counts = {"same": 0, "refused": 0, "wrong": 0}
    print(f"{keras.backend.backend()}: {'explainer or attack':24} {'model':24} outcome")
    for name in args.only:
        for kind in args.kinds:
            result = outcome(name, kind)
            if result is None:
                continue
            good = allowed(name, kind, result)
            counts["wrong" if not good else result.split()[0].rstrip(":")] += 1
            print(f"{'' if good else 'WRONG '}{name:24} {kind:24} {result[:300]}", flush=True)
            keras.backend.clear_session()
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    sys.exit(bool(counts["wrong"]))


if __name__ == "__main__":
    main()
