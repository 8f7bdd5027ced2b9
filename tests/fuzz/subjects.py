"""What is called: everything public, which enrols by itself, with a pool for every parameter.

A function or class that is new needs a line here only where its parameters have names that no other one has; a test
says so. What is not called stands in ``NOT_CALLED``, with the reason.
"""

import dataclasses
import functools
import importlib
import inspect
import io
import tempfile
import typing

import keras
import numpy as np
from keras import ops

from fuzz import values, zoo
from fuzz.pools import SEED, pool_of
from fuzz.values import Pool
from keras_capsvit import attacks, explain

ROOMS = (
    "ops",
    "layers",
    "losses",
    "metrics",
    "models",
    "attacks",
    "explain",
    "evaluate",
    "plot",
    "patches",
    "taps",
    "data",
)
DATA = ("data.affine", "data.affine_sets", "data.corruptions", "data.multidigit")
NOT_CALLED = {
    "taps.in_bfloat16": "makes a function of a function, which attacks.in_precision calls on served models",
    "attacks.Attack": "base class",
    "attacks.GradientAttack": "base class",
    "attacks.Objective": "made by the functions beside it",
    "attacks.PatchResult": "record",
    "attacks.AutoAttackResult": "record",
    "attacks.SquareResult": "record",
    "attacks.PatchTransforms": "a setting of PatchAttack, which calls it",
    "data.Info": "record",
    "evaluate.CertifiedPatchAccuracy": "record",
    "evaluate.Detection": "record",
    "evaluate.PerturbationCurve": "record",
    "evaluate.Robustness": "record",
    "evaluate.ScoreCurve": "record",
    "explain.Explainer": "base class",
    "explain.register_rule": "keeps what it is given for the rest of the process",
    "models.CapsuleModel": "base class",
    "models.load_model": "reads files, which damage.py damages",
    "models.SwinTransformer": "needs keras-hub, seconds a model",
    "models.ResNet50": "seconds a model; ResNet18 is the same class",
    "models.ResNet101": "as ResNet50",
    "models.ResNet152": "as ResNet50",
    "models.ResNet34": "as ResNet50",
    "models.DenseNet": "seconds a model",
    "models.load_weights": "the damaged files are a harness of their own",
    "models.load_weights_from": "as load_weights",
    "taps.FeatureMap": "record",
    "taps.Scores": "made by taps.scores",
    "taps.attentions": "of Scores, inside of explainers",
    "taps.is_model": "asks whether it is one",
    "taps.check_attack": "inside of evaluate",
    "taps.check_explainer": "inside of evaluate and explain.SmoothGrad",
    "taps.check_no_model": "inside of evaluate",
    "taps.check_output": "inside of taps.scores",
    "taps.compiled": "inside of explainers",
    "taps.select_output": "inside of taps.scores",
    "taps.eagerly": "runs a function",
    "taps.feature_map": "of Scores, inside of explainers",
    "taps.on_array": "runs a function",
    "taps.resolve": "inside of taps.tap",
    "taps.served_function": "of served models",
    "taps.tokens": "of Scores, inside of explainers",
    "taps.tokens_read": "of Scores, inside of explainers",
    "data.Pictures": "hostile folders and pictures are tests of their own",
    "data.affine.check_ranges": "inside of transform",
    "data.affine_sets.keyed_batches": "inside of the sets",
    "data.affine_sets.length": "inside of the sets",
    "patches.check_positions": "inside of apply_patch",
    "ops.check_labels": "inside of as_multi_hot",
    "layers.CapsuleInitializer": "the default of a layer",
    "layers.MLP": "inside of TransformerBlock",
}


@dataclasses.dataclass
class Subject:
    """Something that is called.

    Args:
        name: str, with its room.
        call: callable of keyword arguments, those of ``pools``.
        pools: dict from parameters to Pools.
        required: names of parameters without a default.
        cost: int, milliseconds of a call, about; cheap ones are called more often.
        check: callable ``(arguments, result)`` that returns what is wrong with a result, or None.
        nan: bool, whether a result may hold NaN that says "nothing to measure".
    """

    name: str
    call: typing.Callable
    pools: dict
    required: tuple
    cost: int = 5
    check: typing.Callable = lambda arguments, result: None
    nan: bool = False


def public():
    """Everything public: dict from names with their rooms to functions and classes."""
    everything = {}
    for room in (*ROOMS, *DATA):
        module = importlib.import_module(f"keras_capsvit.{room}")
        listed = getattr(module, "__all__", None) or [
            name
            for name, member in vars(module).items()
            if not name.startswith("_") and getattr(member, "__module__", "") == module.__name__
        ]
        members = {f"{room}.{name}": getattr(module, name) for name in listed}
        everything |= {name: member for name, member in members.items() if callable(member)}
    return everything


def subjects():
    """Subjects of everything public, a list."""
    return [subject(name, member) for name, member in public().items() if name not in NOT_CALLED]


def subject(name, member):
    """The Subject of something public."""
    if not inspect.isclass(member):
        kind = _function
    elif issubclass(member, attacks.Attack):
        kind = _attack
    elif "explain." in name:
        kind = _explainer
    elif issubclass(member, keras.Model):
        kind = _model
    elif issubclass(member, keras.Layer):
        kind = _layer
    elif issubclass(member, keras.losses.Loss):
        kind = _loss
    else:
        kind = {"metrics.SubsetAccuracy": _metric, "patches.PatchGrid": _grid}.get(name, _table)
    return kind(name, member)


def _parameters(function, *, without=("self", "args", "kwargs", "settings", "options", "work")):
    parameters = inspect.signature(function).parameters.values()
    own = [each for each in parameters if each.name not in without and each.kind is not each.VAR_POSITIONAL]
    return {each.name: each.default is each.empty for each in own}


def _pools(name, parameters):
    pools = {parameter: pool_of(name, parameter) for parameter in parameters}
    missing = [parameter for parameter, pool in pools.items() if pool is None]
    if missing:
        raise LookupError(f"{name} has parameters without a pool in fuzz/subjects.py: {missing}.")
    return pools


def _required(parameters, *always):
    return tuple(parameter for parameter, needed in parameters.items() if needed or parameter in always)


OBJECTIVES = [f"attacks.{name}" for name in ("logits", "natural", "capsules", "votes", "in_precision")]
# Milliseconds of a call, about, of what takes longer than others of its room.
COSTS = {
    **dict.fromkeys(("evaluate.transfer_matrix", "evaluate.attack_table", "evaluate.position_map"), 60),
    **dict.fromkeys(("evaluate.robustness", "evaluate.robust_accuracy", "evaluate.success_rate"), 40),
    **dict.fromkeys(("evaluate.detection", "evaluate.fooling_rate", "evaluate.compare", "evaluate.compactness"), 40),
    "evaluate.certified_patch_accuracy": 40,
    **dict.fromkeys(OBJECTIVES, 150),
    **dict.fromkeys(
        ("attacks.reconstruction_error", "evaluate.vote_gradients", "evaluate.parameter_randomization"), 250
    ),
    **dict.fromkeys(("plot.grid", "plot.comparison", "plot.adversarial", "plot.vote_histograms"), 500),
    **dict.fromkeys(("plot.robustness_curve", "evaluate.auto_attack"), 200),
    **dict.fromkeys(("data.load", "data.affine_sets.affine_mnist", "data.multidigit.multi_mnist"), 800),
    **dict.fromkeys(("data.affine_sets.affine_cifar10", "data.affine_sets.expanded_mnist"), 500),
    "explain.ScoreCAM": 2000,
}


def _function(name, function):
    call, always = function, ("epsilon",)
    parameters = _parameters(function)
    if name == "attacks.combined":
        parameters, call = {"objectives": True}, lambda objectives: function(*objectives)
    elif name.startswith("data.affine_sets.") or name in ("data.augment", "data.mix"):
        if name.startswith("data.affine_sets."):
            parameters |= {"batch_size": True, "shuffle": True, "seed": True}
        call = lambda **arguments: next(iter(function(**arguments)))  # noqa: E731
    elif name.startswith("data.") and name.split(".")[-1] in ("load", "from_arrays", "multi_mnist"):
        call = functools.partial(_first_batches, function)
    elif name == "taps.tap":
        call = lambda model, name, **others: function(model, name, **others)(zoo.images())  # noqa: E731
    elif name == "taps.scores" or name in OBJECTIVES:
        call = lambda **arguments: function(**arguments)(zoo.images())  # noqa: E731
    elif name == "attacks.reconstruction_error":
        call = lambda model: function(model)(zoo.images())  # noqa: E731
    elif name == "evaluate.random_targets":
        call = lambda **arguments: function(**arguments)(zoo.ids() % 2)  # noqa: E731
    elif name.startswith("plot."):
        call = functools.partial(_drawn, function)
    pools = _pools(name, parameters)
    room = name.split(".")[0]
    cost = COSTS.get(name, {"plot": 100, "data": 30, "taps": 150, "evaluate": 10}.get(room, 3))
    # Rates of no examples, and standard errors of one.
    nan = name in (
        "evaluate.robustness",
        "evaluate.attack_table",
        "evaluate.success_rate",
        "evaluate.transfer_matrix",
        "evaluate.compare",
    )
    nan = nan or name in (
        "evaluate.fooling_rate",
        "evaluate.position_map",
        "evaluate.shift_table",
        "evaluate.patch_transfer",
    )
    return Subject(name, call, pools, _required(parameters, *always), cost, nan=nan)


def _first_batches(function, **arguments):
    streams = function(**arguments)
    streams = streams if isinstance(streams, tuple) else (streams,)
    return [next(iter(stream), None) for stream in streams]


def _drawn(function, **arguments):
    result = function(**arguments)
    figure = getattr(result, "figure", result)
    if not hasattr(figure, "savefig"):
        return result
    if function.__name__ == "overlay":  # of others that takes seconds
        figure.savefig(io.BytesIO(), dpi=20)
    return []


def _settings(arguments):
    """Arguments of a constructor, and those of the call, which have a dot in front."""
    settings = {name: value for name, value in arguments.items() if not name.startswith(".")}
    return settings, {name[1:]: value for name, value in arguments.items() if name.startswith(".")}


def _attack(name, cls):
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    needed = dataclasses.MISSING
    parameters = {n: field.default is needed and field.default_factory is needed for n, field in fields.items()}
    pools = _pools(name, parameters) | {
        f".{n}": pool_of(name, n) for n in ("objective", "x", "y", "targeted", "numbers")
    }
    always = (
        "epsilon",
        "version",
        "attacks",
        "steps",
        "queries",
        "binary_search_steps",
        "initial_const",
        "largest_const",
    )

    def call(**arguments):
        settings, inputs = _settings(arguments)
        return cls(**settings)(**inputs)

    required = (*_required(parameters, *always), ".objective", ".x", ".y")
    return Subject(name, call, pools, required, 60, _fits_the_ball)


def _fits_the_ball(arguments, result):
    """What is wrong with adversarial images."""
    x = np.asarray(ops.convert_to_numpy(arguments[".x"]), "float64")
    if np.shape(result) != x.shape or np.asarray(result).dtype != "float32":
        return f"adversarial images of shape {np.shape(result)} for {x.shape}"
    low, high = (np.asarray(each, "float64") for each in arguments.get("bounds", (0, 1)))
    if np.any(result < low - 1e-5 * (high - low)) or np.any(result > high + 1e-5 * (high - low)):
        return "adversarial images outside the bounds"
    epsilon = arguments.get("epsilon")
    if epsilon is not None and arguments.get("norm", "linf") == "linf" and len(x):
        largest = np.abs(result - x).max()
        return f"a change of {largest} for epsilon={epsilon}" if largest > epsilon + 1e-4 else None
    return None


_EXPLAINERS = {}


def _explainer(name, cls):
    parameters = _parameters(cls)
    if "settings" in inspect.signature(cls).parameters:
        parameters |= {n: False for n in _parameters(explain.LRP) if n not in ("model", "rules")}
    pools = _pools(name, parameters)
    several = name.split(".")[1] in ("LRP", "CLRP", "GuidedBackprop", "DeconvNet")
    beyond = "open" if name in ("explain.RandomMap", "explain.SmoothGrad") else "bad"  # of which nobody knows classes
    pools |= {".x": pool_of(name, "x"), ".target": values.targets("good" if several else "bad", beyond=beyond)}

    def call(_texts=None, **arguments):
        settings, inputs = _settings(arguments)
        key = name, _texts
        if _texts is None or key not in _EXPLAINERS:
            explainer = cls(**settings)
            if _texts is None:
                return explainer(**inputs)
            _EXPLAINERS[key] = explainer
            if len(_EXPLAINERS) > 200:
                _EXPLAINERS.pop(next(iter(_EXPLAINERS)))
        return _EXPLAINERS[key](**inputs)

    return Subject(name, call, pools, (*_required(parameters), ".x"), COSTS.get(name, 60), _maps_fit)


def _maps_fit(arguments, result):
    """What is wrong with maps."""
    x, target = np.shape(ops.convert_to_numpy(arguments[".x"])), arguments.get(".target")
    with_channels = bool(arguments.get("channels")) or getattr(arguments.get("base"), "channels", False)
    expected = x if with_channels else x[:3]
    if arguments.get("stop") is not None:
        return None
    if np.ndim(target) == 2:
        expected = (expected[0], np.shape(target)[1], *expected[1:])
    return None if np.shape(result) == expected else f"maps of shape {np.shape(result)} for {expected}"


def _model(name, cls):
    parameters = {each: False for each in inspect.signature(cls).parameters if each not in ("name", "trainable")}
    small = (
        "widths",
        "depths",
        "num_heads",
        "primary_dim",
        "capsule_dim",
        "filters",
        "num_types",
        "width",
        "depth",
        "mlp_units",
        "token_units",
    )
    small += (
        "input_shape",
        "num_classes",
        "variant",
        "kernel_size",
        "strides",
        "units",
        "channel_units",
        "reconstruction_units",
    )
    parameters = {each: each in small for each in parameters}
    pools = _pools(name, parameters)
    if "AlexNet" in name:
        pools["input_shape"] = Pool([(63, 63, 3), [64, 70, 1]], [(62, 63, 3), (63, 63), None, "x", (0, 63, 3)])
    elif "VGG" in name or "ResNet" in name or "GoogLeNet" in name:
        pools["input_shape"] = Pool(
            [(32, 32, 3)], [(32, 32), None, "x", (0, 32, 3), (-32, 32, 3), (32.5, 32, 3), (32, 32, None)], [(33, 40, 1)]
        )

    def call(**arguments):
        model = cls(**arguments)
        return model(np.full((1, *model.input_shape[1:]), 0.5, "float32"))

    return Subject(name, call, pools, _required(parameters), 400)


def _layer(name, cls):
    settings = _parameters(cls)
    if "kwargs" in inspect.signature(cls).parameters:
        for base in cls.__mro__[1:]:
            if base.__module__.startswith("keras_capsvit") and "__init__" in vars(base):
                settings = _parameters(base.__init__, without=("self", "args", "kwargs")) | settings
        settings = {n: needed for n, needed in settings.items() if n in _own_settings(cls)}
    inputs = {n: needed for n, needed in _parameters(cls.call).items() if n != "mask"}
    pools = _pools(name, settings) | {f".{n}": pool for n, pool in _pools(name, inputs).items()}

    def call(**arguments):
        settings, inputs = _settings(arguments)
        return cls(**settings)(**inputs)

    required = (*_required(settings, "kernel_size"), *(f".{n}" for n in _required(inputs)))
    return Subject(name, call, pools, required, 15)


def _own_settings(cls):
    own = set()
    for kind in cls.__mro__:
        if kind.__module__.startswith("keras_capsvit") and "__init__" in vars(kind):
            own |= set(_parameters(kind.__init__))
    return own or {"filters", "kernel_size"}


def _loss(name, cls):
    settings = dict.fromkeys(("m_plus", "m_minus", "lam") if name == "losses.MarginLoss" else (), False)
    pools = _pools(name, settings) | {f".{n}": pool_of(name, n) for n in ("y_true", "y_pred")}

    def call(**arguments):
        settings, inputs = _settings(arguments)
        return cls(**settings)(**inputs)

    return Subject(name, call, pools, (".y_true", ".y_pred"), 5)


def _metric(name, cls):
    def call(**arguments):
        metric = cls()
        metric.update_state(**arguments)
        return metric.result()

    return Subject(name, call, {n: pool_of(name, n) for n in ("y_true", "y_pred")}, ("y_true", "y_pred"), 10)


def _grid(name, cls):
    parameters = _parameters(cls)

    def call(**arguments):
        settings, inputs = _settings(arguments)
        grid = cls(**settings)
        return [grid.positions, grid.boxes, grid.draw(**inputs)]

    pools = _pools(name, parameters) | {
        ".batch": pool_of(name, "batch"),
        ".num_patches": values.whole(0, [1, 0], huge=False),
        ".seed": SEED,
    }
    return Subject(name, call, pools, (*_required(parameters), ".batch"), 1)


def _table(name, cls):
    def call(rows):
        table = cls(rows)
        str(table)
        with tempfile.TemporaryDirectory() as folder:
            table.to_csv(f"{folder}/table.csv")
            table.to_json(f"{folder}/table.json")
        return []

    return Subject(name, call, {"rows": pool_of(name, "rows")}, ("rows",), 5)
