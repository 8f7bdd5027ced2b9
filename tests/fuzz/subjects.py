"""What is called: everything public, which enrols by itself, with a pool for every parameter.

A function or class that is new needs a line here only where its parameters have names that no other one has; a test
says so. What is not called stands in ``NOT_CALLED``, with the reason.
"""

import dataclasses
import functools
import importlib
import inspect
import tempfile
import typing

import keras
import numpy as np
from fuzz import values, zoo
from fuzz.values import Pool, made
from keras import ops

import keras_capsvit
from keras_capsvit import attacks, explain, layers, losses, metrics, models

ROOMS = ("ops", "layers", "losses", "metrics", "models", "attacks", "explain", "evaluate", "plot", "patches", "taps", "data")
DATA = ("data.affine", "data.affine_sets", "data.corruptions", "data.multidigit")
NOT_CALLED = {
    "attacks.Attack": "base class",
    "attacks.GradientAttack": "base class",
    "attacks.Objective": "made by the functions beside it",
    "attacks.PatchResult": "record",
    "data.Info": "record",
    "evaluate.Detection": "record",
    "evaluate.PerturbationCurve": "record",
    "evaluate.Robustness": "record",
    "explain.Explainer": "base class",
    "explain.register_rule": "keeps what it is given for the rest of the process",
    "models.CapsuleModel": "base class",
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
    "taps.chosen_output": "inside of taps.scores",
    "taps.eagerly": "runs a function",
    "taps.feature_map": "of Scores, inside of explainers",
    "taps.resolve": "inside of taps.tap",
    "taps.served_function": "of served models",
    "taps.tokens": "of Scores, inside of explainers",
    "taps.tokens_read": "of Scores, inside of explainers",
    "data.affine.check_ranges": "inside of transform",
    "data.affine_sets.keyed_batches": "inside of the sets",
    "data.affine_sets.length": "inside of the sets",
    "patches.check_positions": "inside of apply_patch",
    "patches.pair": "inside of PatchGrid",
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


# Pools by parameter; before the name of a parameter may stand that of the room and of what is called.

IMAGES, BOUNDS, SEED = values.pictures(), values.bounds(), values.seed()
BATCH_SIZE = values.whole(1, [2, 3, 4, 1])
MAPS = values.array(zoo.maps)
SMALL = values.whole(1, [2, 1, 3], huge=False)
RANGE = values.number([10.0, 0, 30.0], 0, 90, below=True)
TITLES = Pool([None, ["t"] * zoo.BATCH], ["t" * 3, 3, ["t"], {}, made("generator", values.generator)], [[None] * zoo.BATCH])
BY_NAME = values.mapping(MAPS)
TITLES_BY_NAME = Pool([None, {}, {"a": ["t"] * zoo.BATCH}], [3, "t", {"a": ["t"]}, {"a": 3}, {"a": None}, ["t"]])


def _boxes():
    return np.tile([[1, 1, 3, 4]], (zoo.BATCH, 1))


def _masks():
    masks = np.zeros((zoo.BATCH, zoo.SIZE, zoo.SIZE), bool)
    masks[:, 1:3, 1:4] = True
    return masks


WHERE = Pool(
    [
        made("boxes", _boxes),
        made("masks", _masks),
        made("several boxes", lambda: [_boxes()[:2]] * zoo.BATCH),
        made("masks of 0 and 1", lambda: _masks().astype("uint8")),
        made("list", lambda: _boxes().tolist()),
    ],
    [
        *(None, "boxes", 3, [], {}, 1j, made("generator", values.generator), values.OBJECTS),
        made("too few", lambda: _boxes()[:2]),
        made("float boxes", lambda: _boxes() + 0.5),
        made("NaN boxes", lambda: _boxes() * np.nan),
        made("empty masks", lambda: _masks() & False),
        made("outside", lambda: _boxes() + 10),
        made("negative", lambda: _boxes() - 5),
        made("2**32", lambda: _boxes() + 2**32),
        made("twos", lambda: _masks() * 2),
        made("NaN masks", lambda: np.where(_masks(), np.nan, 0)),
        made("strings", lambda: _boxes().astype(str)),
        made("other size", lambda: np.ones((zoo.BATCH, 3, 3), bool)),
        made("ragged", lambda: [[1, 2], [1], [], [3]]),
    ],
)
POSITIONS = Pool(
    [
        made("for all", lambda: np.array([[0, 0], [3, 3]])),
        made("of each", lambda: np.zeros((zoo.BATCH, 2, 2), int)),
        made("list", lambda: [[0, 0], [4, 4]]),
    ],
    [
        *("positions", None, 3, {}, 1j, made("generator", values.generator), values.OBJECTS, [[5, 5], [0, 0]]),
        *([[-1, 0], [0, 0]], [[0.5, 0], [1, 1]], [[2**32, 0], [0, 0]], [["a", "b"]], [[float("nan"), 0]]),
        made("bools", lambda: np.zeros((2, 2), bool)),
        made("of other images", lambda: np.zeros((zoo.BATCH + 1, 2, 2), int)),
        made("triples", lambda: np.zeros((2, 3), int)),
    ],
    [[], [[0, 0], [0, 0]]],
)
PATCH_SIZE = Pool(
    [2, (2, 1), np.int64(2), [1, 2]],
    [0, -1, 1.5, True, (2,), (1, 2, 3), (2, 1.5), "2", None, float("nan"), [], {}, 1j, (2, -1), (True, 2), 100, 2**31, 2**32],
)
RELATIVE = values.flag()
INPUT_SHAPE = Pool(
    [zoo.SHAPE, [6, 6, 1], (8, 8, 3)],
    [(0, 6, 1), (-6, 6, 1), (6, 6), (6, 6, 1, 1), (6.5, 6, 1), "661", None, 6, (6, 6, None), (True, 6, 1), {}, 1j, (float("nan"), 6, 1)],
    [(1, 1, 1), (np.int64(6), 6, 1)],
)
NUM_CLASSES = values.whole(2, [3, 2], huge=False)
NUM_CLASSES.values["bad"].append(values.Value(lambda: 10**9, "10**9", "bad"))
WIDTH = values.whole(1, [4, 2], huge=False)
SHARE = values.number([0.0, 0.1], 0, 1, below=True)
MEAN_STD = Pool([None], [3, "mean", (0.5,), [], (float("nan"),), ("a",), {}], [(0.5, 0.5, 0.5)])
ATTACK_CALL = {
    "objective": values.models(zoo.cnn, zoo.softmax_cnn, zoo.graph_capsules, lambda: zoo.linear),
    "x": IMAGES,
    "y": values.labels(),
    "targeted": values.flag(),
    "numbers": Pool(
        [None, made("numbers", lambda: np.arange(7, 7 + zoo.BATCH)), made("list", lambda: [3, 1, 2, 0])],
        [*("numbers", 3, {}, [1], [0.5] * 4, [-1] * 4, ["a"] * 4, [None] * 4, made("generator", values.generator), [float("nan")] * 4)],
        [[2**33] * 4, [0.0] * 4, [True] * 4],
    ),
}

POOLS = {
    # images, maps, labels
    "x": IMAGES,
    "images": IMAGES,
    "maps": MAPS,
    "y": values.labels(),
    "labels": values.labels(),
    "target": values.targets(),
    "bounds": BOUNDS,
    "batch_size": BATCH_SIZE,
    "seed": SEED,
    "where": WHERE,
    "positions": POSITIONS,
    "patch_size": PATCH_SIZE,
    "image_shape": Pool([(6, 6), (6, 6, 1), [6, 8]], [None, 6, "66", (6,), (6, 0), (6, -1), (6.5, 6), ("a", "b"), {}, (None, 6), (True, 6), 1j]),
    "model": values.models(),
    "models": values.mapping(values.models(zoo.cnn, lambda: zoo.linear)),
    "dataset": values.datasets(),
    "attack": values.attacks(),
    "attacks": values.mapping(values.attacks()),
    "objective": Pool(
        [None, made("logits", lambda: attacks.logits), made("natural", lambda: attacks.natural)],
        ["votes", 3, [], {}, *(made(each.__name__, lambda each=each: each) for each in zoo.NONSENSE[:3])],
        [made("raises", lambda: zoo.raises)],
    ),
    "targets": Pool(
        [None, made("next class", lambda: lambda y: (y + 1) % zoo.CLASSES)],
        ["y", 3, [], {}, *(made(each.__name__, lambda each=each: each) for each in zoo.NONSENSE)],
        [made("raises", lambda: zoo.raises)],
    ),
    "early": values.flag(),
    "relative": RELATIVE,
    "absolute": values.flag(),
    "cascading": values.flag(),
    "per_image": values.flag(),
    "output": Pool([None], ["nothing", 3, -1, 1.5, [], {}, 1j, float("nan"), b"x"], [0]),
    "num_classes": NUM_CLASSES,
    # ops
    "ops.x": values.array(lambda: zoo.class_capsules(), fixed=False, wrong_length=False),
    "ops.axis": values.whole(-3, [-1, 0, 1, -2], 2),
    "ops.keepdims": values.flag(),
    "ops.attention": Pool(
        [made("attention", zoo.attention)],
        [None, [], "attention", 3, {}, 1j, [1, 2], [None], made("different", lambda: [zoo.attention()[0], np.ones((4, 3, 3), "float32")])],
        nan=[made("NaN inside", lambda: [each * np.nan for each in zoo.attention()])],
    ),
    "ops.matrices": Pool(
        [made("attention", zoo.attention)],
        [None, [], "matrices", 3, {}, 1j, [1, 2], [None]],
        nan=[made("NaN inside", lambda: [each * np.nan for each in zoo.attention()])],
    ),
    "ops.prefix": values.whole(0, [1, 0, 2], 4),
    "ops.attention_rollout.read": Pool([None, [0], [0, 1], np.array([2])], [[7], [-6], "0", 1.5, [], [0.5], [None], {}, 1j]),
    "ops.reached.read": Pool([[0], [0, 1], np.array([2])], [None, [7], [-6], "0", 1.5, [], [0.5], [None], {}, 1j]),
    "ops.labels": values.labels(),
    "ops.num_classes": Pool([zoo.CLASSES, np.int64(3)], [0, -1, 1.5, "3", None, float("nan"), True, [], {}, 1j], [4, 2, 2**31]),
    # attacks
    "attacks.epsilon": values.number([0.1, 0.05, 0.3], 0),
    "attacks.preset.epsilon": values.number([0.1, 0.05], 0),
    "attacks.preset.name": values.choice(*attacks.PRESETS),
    "step_size": values.number([0.05, 0.01], 0).or_none(),
    "attacks.CarliniWagner.step_size": values.number([0.05, 0.01], 0),
    "attacks.CarliniWagnerLinf.step_size": values.number([0.05, 0.01], 0),
    "relative_step": values.number([0.25, 1.0], 0).or_none(),
    "attacks.steps": SMALL,
    "norm": values.choice("linf", "l2"),
    "decay": values.number([1.0, 0.5], 0).or_none(),
    "random_start": values.flag(),
    "restarts": values.whole(1, [1, 2], huge=False),
    "keep": values.choice("best", "last"),
    "error": Pool(
        [made("error", lambda: zoo.error)],
        [None, "error", 3, [], {}, *(made(each.__name__, lambda each=each: each) for each in zoo.NONSENSE)],
        [made("raises", lambda: zoo.raises)],
    ),
    "beta": values.number([0.5, 0.2], 0, 1),
    "candidates": values.whole(2, [3, 2, 10]),
    "overshoot": values.number([0.02, 0.5], 0),
    "binary_search_steps": values.whole(1, [1, 2], huge=False),
    "initial_const": values.number([0.1, 1.0], 0, above=True),
    "largest_const": values.number([0.2, 1.0], 0, above=True),
    "const_factor": values.number([2.0, 3.0], 1, above=True),
    "decrease_factor": values.number([0.5, 0.9], 0, 1, above=True, below=True),
    "smallest_limit": values.number([0.1, 0.3], 0, above=True),
    "confidence": values.number([0.0, 0.5], 0),
    "abort_early": values.flag(),
    "attacks.positions": Pool(
        [None, made("grid", zoo.grid), ((0, 0),), made("array", lambda: np.array([[1, 1]])), made("of each", lambda: np.zeros((4, 1, 2), int))],
        ["x", 3, {}, ((5, 5),), ((-1, 0),), ((0.5, 0),), (("a", "b"),), ((2**32, 0),), made("generator", values.generator), 1j],
        [[]],
    ),
    "num_patches": values.whole(1, [1, 2], huge=False),
    "early_stop": values.flag(),
    "universal": values.flag(),
    "attacks.order": values.choice(*attacks.ORDERS),
    "attacks.votes.model": values.models(zoo.capsules),
    "attacks.capsules.model": values.models(zoo.graph_capsules, zoo.capsules),
    "attacks.logits.model": values.models(zoo.cnn, zoo.softmax_cnn),
    "attacks.natural.model": values.models(),
    "attacks.reconstruction_error.model": values.models(zoo.capsules, bad=(zoo.cnn,)),
    "attacks.combined.objectives": Pool(
        [made("two", lambda: [attacks.capsules(zoo.capsules()), attacks.votes(zoo.capsules())])],
        [[], [None], ["votes"], [3], None, 3, made("models", lambda: [zoo.linear])],
    ),
    # explain
    "layer": Pool([None, "conv"], ["nothing", 3, 1.5, [], {}, 1j, b"conv", float("nan")], ["", True]),
    "channels": values.flag(),
    "explain.steps": values.whole(1, [2, 1, 4], huge=False),
    "baseline": Pool(
        [0.0, 0.5, made("image", lambda: zoo.images()[0])],
        [None, "black", {}, 1j, made("larger", lambda: np.zeros((7, 7, 1))), values.OBJECTS, made("generator", values.generator)],
        [True, made("row", lambda: np.zeros((1, zoo.SIZE, 1))), [], 1e30],
        values.NOT_FINITE,
    ),
    "samples": values.whole(1, [2, 1], huge=False),
    "noise": values.number([0.1, 0.0], 0),
    "base": Pool(
        [made("Saliency", zoo.saliency), made("callable", lambda: zoo.explainer)],
        [None, "saliency", 3, [], {}, *(made(each.__name__, lambda each=each: each) for each in (*zoo.NONSENSE[:4], zoo.not_finite))],
        [made("raises", lambda: zoo.raises)],
    ),
    "head_fusion": values.choice("mean", "max", "min"),
    "discard_ratio": values.number([0.0, 0.5], 0, 1, below=True),
    "rules": Pool(
        ["z_plus", "epsilon", "gradient", [("conv", "gamma", {"gamma": 0.5}), "z_plus"]],
        ["nonsense", None, 3, [], {}, 1j, float("nan"), [("conv",)], [3], ["nonsense"], [("conv", "gamma", {"gamma": float("nan")}), "z_plus"]],
        [[("nothing*", "gamma"), "z_plus"]],
    ),
    "input_range": Pool([None, (0, 1), (0.0, 1.0)], [(1, 0), (float("nan"), 1), (0, float("inf")), 3, "01", (0, 1, 2), ("a", "b"), {}, 1j, (0, 0)], [(-1, 2)]),
    "explain.input_shape": Pool([None, zoo.SHAPE], [3, "x", (6, 6), (7, 7, 1), {}, 1j, (float("nan"),) * 3, (6, 6, -1)], [[6, 6, 1]]),
    "start": Pool([None], ["nothing", 3, [], {}, 1j, float("nan")], ["conv"]),
    "stop": Pool([None], ["nothing", 3, [], {}, 1j, float("nan")], ["conv"]),
    "fixed": Pool([None, {}], [{"nothing": 1}, 3, "x", [1], 1j, float("nan")]),
    "signature": Pool(["serving_default"], [], [None, 3, "x", float("nan")]),
    "variant": values.choice("others", "negated"),
    "explain.GraphAttention.model": values.models(zoo.graph_capsules, bad=(zoo.cnn,)),
    "explain.AttentionRollout.model": values.models(zoo.transformer, bad=(zoo.cnn,)),
    "explain.TransformerAttribution.model": values.models(zoo.transformer, bad=(zoo.cnn,)),
    **{f"explain.{name}.model": values.models(zoo.cnn) for name in ("LRP", "CLRP", "GuidedBackprop", "DeconvNet", "ScoreCAM")},
    **{f"explain.{name}.model": values.models(zoo.cnn) for name in ("GradCAM", "GradCAMPlusPlus", "LayerCAM", "HiResCAM", "EigenCAM")},
    "explain.FeatureMapAttention.model": values.models(zoo.cnn),
    "explain.model": values.models(zoo.cnn, zoo.softmax_cnn, lambda: zoo.linear),
    # evaluate
    "explainers": values.mapping(Pool(
        [made("callable", lambda: zoo.explainer), made("Saliency", zoo.saliency)],
        [None, "x", 3, *(made(each.__name__, lambda each=each: each) for each in zoo.NONSENSE)],
        [made("raises", lambda: zoo.raises)],
    )),
    "metrics": values.mapping(Pool(
        [made("metric", lambda: zoo.metric)],
        [None, "x", 3, *(made(each.__name__, lambda each=each: each) for each in zoo.NONSENSE[:3])],
        [made("raises", lambda: zoo.raises)],
    )),
    "evaluate.compare.target": values.choice("predicted", "label"),
    "percentile": values.number([95.0, 50.0], 0, 100, above=True, below=True),
    "evaluate.detection.threshold": values.number([0.1, 0.0]),
    "evaluate.pointing_game.threshold": Pool(
        [None, 50, [5, 25.0, 100]],
        [0, -1, 101, "50", [], [[1]], float("nan"), 1j, {}, [None], ["a"], [float("inf")]],
        [True],
    ),
    "tolerance": values.number([0, 1.5], 0),
    "perturb": values.attacks(),
    "evaluate.attack": Pool(
        [made("FGSM", zoo.fgsm), made("BIM", zoo.bim)],
        [None, "pgd", 3, *(made(each.__name__, lambda each=each: each) for each in zoo.NONSENSE)],
        [made("raises", lambda: zoo.raises)],
    ),
    "evaluate.position_map.attack": Pool(
        [made("PatchAttack", lambda: attacks.PatchAttack(2, steps=1))], [None, "patch", 3, {}, made("FGSM", zoo.fgsm)]
    ),
    "grid": Pool(
        [made("grid", lambda: keras_capsvit.patches.PatchGrid((zoo.SIZE, zoo.SIZE), 3))],
        [None, "grid", 3, {}, made("of other images", lambda: keras_capsvit.patches.PatchGrid((12, 12), 4))],
    ),
    "result": Pool([made("result", zoo.patched)], [None, "x", 3, {}, 1j]),
    "results": Pool([made("results", lambda: {"a": zoo.patched()})], [None, "x", 3, {"b": 3}, {"a": None}, 1j], [{}]),
    "evaluate.patch_transfer.models": Pool(
        [made("models", lambda: {"a": zoo.cnn()})], [None, "x", 3, {"a": None}, {}, 1j, {"a": "model"}]
    ),
    "shifts": Pool([[(0, 0), (1, -1)], [(0, 1)]], [None, "x", 3, [3], [(1,)], [(0.5, 0)], [("a", "b")], [(float("nan"), 0)], {1: 2}, 1j], [[], [(9, 9)], [(2**32, 0)]]),
    "patch": values.whole(1, [2, 3], zoo.SIZE),
    "regions": values.choice("grid", "pixels"),
    "evaluate.steps": values.whole(1, [2, 1, 4], 36).or_none(),
    "fill": Pool(
        ["random", 0.0, 0.5, made("images", zoo.images)],
        ["nonsense", None, {}, 1j, values.OBJECTS, made("other size", lambda: np.zeros((7, 7, 1))), made("generator", values.generator)],
        [True, 1e30, []],
        values.NOT_FINITE,
    ),
    "order": values.choice("descending", "ascending"),
    "mean": Pool(
        [0.5, made("image", lambda: zoo.images().mean(axis=0))],
        ["mean", None, {}, 1j, values.OBJECTS, made("other size", lambda: np.zeros((7, 7, 1))), made("generator", values.generator)],
        [True, []],
        values.NOT_FINITE,
    ),
    "size": values.whole(1, [3, 1], huge=True),
    "neurons": values.functions(lambda: lambda x: zoo.linear(x)[:, :2]),
    "evaluate.neuron_ablation.maps": values.array(lambda: np.stack([zoo.maps(), zoo.maps()])),
    "factor": values.choice("rotation", "scale", "trans_x", "shear_y"),
    "degrees": Pool([[1.0, 0.9], [1.1]], [None, "x", 3, [], {}, 1j, [[1]], ["a"], [None], made("generator", values.generator)], [[0.0], [-1.0], [1e30]], [[float("nan")], [float("inf")]]),
    "factors": Pool(
        [{"rotation": [-5, 0, 5]}, {"scale": [0.9, 1.1]}],
        [None, "rotation", 3, {"nothing": [0, 1]}, {"rotation": [0]}, {"rotation": []}, {"scale": [0, 1]}, {"rotation": "ab"}, {"rotation": None}, ["rotation"], {"rotation": [0, float("nan")]}, 1j],
        [{}],
    ),
    "represent": values.functions(lambda: zoo.linear, lambda: lambda x: ops.reshape(zoo.linear(x), (-1, zoo.CLASSES, 1)) * np.ones(2, "float32")),
    "decode": values.functions(lambda: lambda capsules: ops.reshape(ops.sum(capsules, axis=(1, 2)), (-1, 1, 1, 1)) * np.ones((2, 2, 1), "float32")),
    "evaluate.sweep.capsules": values.array(lambda: zoo.class_capsules()[0], wrong_length=False),
    "label": values.whole(0, [1, 0], zoo.CLASSES - 1).or_none(),
    "dims": Pool([None, [0], (1, 0), np.array([1])], [[], [5], [-1], "0", 3, [0.5], [None], ["a"], {}, 1j, [2**32]], [[0, 0]]),
    "offsets": Pool([[0.0, 0.5], (-0.25,), np.array([0.1])], [None, [], "x", 3, {}, 1j, ["a"], [None], [[1.0]]], [[1e30]], [[float("nan")], [float("inf")]]),
    "adversarial": values.array(lambda: zoo.images() * 0.9),
    "first": MAPS,
    "second": MAPS,
    "evaluate.class_sensitivity.first": Pool([0, 1], []),
    "evaluate.class_sensitivity.second": Pool([0, 2], []),
    "make_explainer": Pool([made("maker", lambda: lambda model: zoo.explainer)], [None, "x", 3, *(made(each.__name__, lambda each=each: each) for each in zoo.NONSENSE[:3])], [made("raises", lambda: zoo.raises)]),
    "evaluate.parameter_randomization.model": Pool([made("cnn", zoo.cnn)], [None, "model", 3, {}, 1j, made("linear", lambda: zoo.linear)]),
    "explainer": values.functions(lambda: zoo.explainer, zoo.saliency),
    "scores": values.models(zoo.cnn, lambda: zoo.linear),
    "votes": values.array(zoo.votes),
    "capsules": values.array(zoo.class_capsules),
    "coupling": values.array(zoo.coupling),
    "route": values.functions(lambda: lambda votes: ops.sum(votes, axis=1), layers.UniformRouting),
    "loss": values.functions(lambda: lambda lengths: ops.sum(lengths, axis=-1)),
    "sources": Pool([None, made("cnn", lambda: {"s": zoo.cnn()})], [3, "x", {"s": None}, {"s": "model"}, [1], 1j], [{}]),
    "objectives": Pool([None, made("logits", lambda: {"l": attacks.logits})], [3, "x", {"a": 3}, {"a": "votes"}, [1], 1j], [{}, {"a": None}]),
    "rows": Pool([[{"a": 1, "b": 0.5}], [{"a": "x"}, {"b": True}]], [None, 3, "rows", [3], [None], {"a": 1}, 1j], [[], [{}], [{"a": float("nan")}]]),
    # plot
    "image": values.array(lambda: zoo.images()[0], fixed=False, wrong_length=True),
    "heatmap": values.array(lambda: zoo.maps()[0]),
    "ax": Pool([None], ["ax", 3, {}, 1j]),
    "alpha": values.number([0.55, 0.2], 0, 1),
    "cmap": Pool([None, "jet", "gray"], ["nonsense", 3, {}, 1j, [], float("nan")]),
    "vmin": values.number([0.0, 0.2]).or_none(),
    "vmax": values.number([1.0, 0.8]).or_none(),
    "titles": TITLES,
    "columns": values.whole(1, [2, 8]),
    "plot.label": Pool(["relevance"], [3, [], {}, 1j, float("nan")], [None, ""]),
    "plot.comparison.maps": BY_NAME,
    "plot.sweep.images": values.array(lambda: np.full((2, 2, 3, 3, 1), 0.5, "float32")),
    "plot.sweep.offsets": Pool([[0.0, 0.1], (1, 2)], [None, 3, "xy", [], [0.0], ["a", "b"], {}, 1j], [], [[float("nan"), 0.0]]),
    "plot.sweep.dims": Pool([None, [0, 1]], [3, "xy", [0], [0, 1, 2], 1j, {}], [["a", "b"]]),
    "found": values.mapping(IMAGES),
    "plot.adversarial.titles": TITLES_BY_NAME,
    "plot.rows.titles": TITLES_BY_NAME,
    "plot.rows.images": values.mapping(values.pictures(wrong_length=False)),
    "statistics": Pool(
        [made("statistics", lambda: {"clean": keras_capsvit.evaluate.vote_statistics(zoo.votes(), zoo.class_capsules(), zoo.coupling(), zoo.ids())})],
        [None, {}, 3, "x", {"a": 3}, {"a": {}}, {"a": None}, [1], 1j],
    ),
    "bins": values.whole(1, [10, 2], huge=False),
    "lengths": values.array(lambda: zoo.random(3).uniform(size=(zoo.BATCH, zoo.CLASSES)).astype("float32"), wrong_length=False),
    "class_names": Pool([["a", "b", "c"], ("x", "y", "z")], [None, 3, [], ["a"], {}, 1j], ["abc", [None] * 3]),
    # patches
    "patches.patch": values.array(lambda: zoo.random(1).uniform(size=(2, 2, 1)).astype("float32"), fixed=False, wrong_length=False),
    "patches.batch": values.whole(0, [3, 1], huge=False),
    "patches.num_patches": values.whole(0, [1, 2], huge=False),
    "offset": Pool([(0, 0), (1, 2), [0, 1]], [None, "x", (0,), (0, -1), (0.5, 0), (99, 0), (True, 0), {}, 1j, float("nan")], [0, 1]),
    # taps
    "taps.model": values.models(zoo.cnn, zoo.graph_capsules, zoo.transformer),
    "taps.names.model": Pool([made("cnn", zoo.cnn), made("capsules", zoo.graph_capsules), None, 3, made("linear", lambda: zoo.linear)]),
    "taps.input_range.model": Pool([made("cnn", zoo.cnn), made("capsules", zoo.graph_capsules), None, 3, made("linear", lambda: zoo.linear)]),
    "taps.x": Pool([None, made("images", zoo.images)], ["x", 3, {}, 1j, made("maps", zoo.maps)]),
    "taps.predictions.x": IMAGES,
    "taps.tap.name": Pool(["features", ["features"]], ["nothing", None, 3, 1.5, [None], {}, 1j, float("nan"), b"x"], [[], "", "conv", "attention_0", "attention_99"]),
    # layers
    "inputs": values.array(zoo.images, wrong_length=False),
    "tokens": values.array(zoo.tokens, wrong_length=False),
    "training": Pool([None, False, True], [], []),
    "return_attention_scores": Pool([False, True]),
    "return_coupling": Pool([False, True]),
    "layers.votes": values.array(zoo.votes, wrong_length=False),
    "layers.activations": values.array(lambda: zoo.random(1).uniform(size=(zoo.BATCH, 5)).astype("float32")),
    "layers.SelfRouting.capsules": values.array(lambda: zoo.random(1).normal(size=(zoo.BATCH, 5, 4)).astype("float32")),
    "layers.CapsuleMask.labels": values.labels().or_none(),
    "layers.gelu.x": values.array(zoo.tokens, fixed=False, wrong_length=False),
    "layers.CapsuleLength.inputs": values.array(zoo.class_capsules, fixed=False, wrong_length=False),
    "layers.CapsuleTransform.inputs": values.array(lambda: zoo.random(1).normal(size=(zoo.BATCH, 5, 4)).astype("float32"), fixed=False, wrong_length=False),
    "layers.GraphCapsPool.inputs": values.array(zoo.primary, wrong_length=False),
    "layers.TopKGraphPool.inputs": values.array(zoo.primary, wrong_length=False),
    "layers.StandardizedConv2D.inputs": IMAGES,
    "num_heads": WIDTH,
    "units": WIDTH,
    "token_units": WIDTH,
    "channel_units": WIDTH,
    "temperature": values.number([1.0, 0.5], 0, above=True),
    "dropout": SHARE,
    "drop_path": SHARE,
    "layers.epsilon": values.number([1e-6, 1e-3], 0),
    "num_types": WIDTH,
    "capsule_dim": WIDTH,
    "primary_dim": WIDTH,
    "squash": values.flag(),
    "kernel_size": Pool([2, 3], [0, -1, 1.5, True, "3", None, [], {}, 1j, float("nan"), 2**31], [(2, 3), 7]),
    "strides": Pool([1, 2], [0, -1, 1.5, True, "2", None, {}, 1j, float("nan"), 2**31, 2**32], [(1, 2), []]),
    "padding": values.choice("valid", "same"),
    "kernel_initializer": Pool([None, "he_normal"], ["nonsense", 3, 1j], []),
    "num_capsules": WIDTH,
    "layers.CapsuleTransform.num_capsules": WIDTH.or_none(),
    "shared": values.flag(),
    "matrix": values.flag(),
    "conv": Pool([made("conv", lambda: keras.layers.Conv2D(2, 2))], [None, "conv", 3, {}, 1j, made("activated", lambda: keras.layers.Conv2D(2, 2, activation="relu"))]),
    "layers.NormalizedConv2D.norm": Pool([made("norm", keras.layers.BatchNormalization)], [None, "norm", 3, {}, 1j]),
    "sigma": values.number([2.0, 1.0], 0),
    "self_loops": values.flag(),
    "normalize": values.flag(),
    "use_bias": values.flag(),
    "ratio": values.number([0.5, 1.0], 0, 1, above=True),
    "height": WIDTH,
    "width": WIDTH,
    "num_iterations": values.whole(1, [1, 3], huge=False),
    "rolled": values.flag(),
    "inverse_temperature": values.number([0.01, 1.0], 0, above=True),
    "eps": values.number([1e-6, 1e-3], 0, above=True),
    "dim": WIDTH,
    "layers.PatchEmbedding.images": IMAGES,
    "layers.PatchEmbedding.positions": values.flag(),
    "layers.PatchEmbedding.patch_size": values.whole(1, [2, 3], huge=False),
    "class_token": values.flag(),
    "distillation_token": values.flag(),
    "interpolation": values.choice("bicubic", "bilinear"),
    "layers.resize_positions.positions": values.array(lambda: zoo.random(1).normal(size=(1, 4, 3)).astype("float32"), fixed=True),
    "layers.resize_positions.grid": Pool([(2, 2)], [None, "x", (2,), (3, 3), (0, 0), {}, 1j, (1.5, 2)]),
    "new_grid": Pool([(3, 3), (2, 4)], [None, "x", (2,), (0, 0), {}, 1j, (1.5, 2), (-1, 2)]),
    "num_inputs": WIDTH,
    "layers.votes_bytes.batch_size": BATCH_SIZE,
    "layers.votes_bytes.dtype": Pool(["float32", "float16"], ["nonsense", 3, [], {}, 1j], [None]),
    # losses and metrics
    "m_plus": values.number([0.9, 0.8], 0, 1),
    "m_minus": values.number([0.1, 0.2], 0, 1),
    "lam": values.number([0.5, 1.0], 0),
    "y_true": values.labels(),
    "y_pred": values.array(lambda: zoo.random(3).uniform(size=(zoo.BATCH, zoo.CLASSES)).astype("float32")),
    # models
    "input_shape": INPUT_SHAPE,
    "filters": WIDTH,
    "models.ConvNetFC.filters": Pool([(4, 4), (2,)], [0, "4", None, 3, (0,), (1.5,), (-1,), (True,), {}, 1j], [(), []]),
    "models.ConvNetFC.units": Pool([(4, 4), (2,)], [0, "4", None, 3, (0,), (1.5,), (-1,), (True,), {}, 1j], [(), []]),
    "models.strides": Pool([(1, 1), (1, 2)], [0, "1", None, (0, 1), (1.5, 1), (-1, 1), (True, 1), {}, 1j, (2**31, 1), (2**32, 1)], [1, (), [1, 1]]),
    "shared_transform": values.flag(),
    "backbone": Pool([None], ["resnet", 3, {}, 1j, [], made("linear", lambda: zoo.linear)]),
    "pooling": Pool(["attention", "top_k", "average"], ["nonsense", None, 3, {}, 1j, []]),
    "routing": Pool(["dynamic", "uniform", "em", "self"], ["nonsense", None, 3, {}, 1j, []]),
    "reconstruction": Pool([None, "conditional", "unconditional"], ["nonsense", 3, {}, 1j, [], True]),
    "reconstruction_weight": values.number([0.0005, 1.0], 0),
    "reconstruction_units": Pool([(4,), (4, 4)], [0, "4", None, 3, (0,), (1.5,), (-1,), (True,), {}, 1j, (2**40,)], [(), []]),
    "depth": WIDTH,
    "models.ResNet.depth": Pool([20, 8], [0, -1, 21, 1.5, "20", None, [], {}, 1j, True, float("nan")]),
    "models.ResNet.head": Pool([True], [], []),
    "models.VisionTransformer.variant": Pool(["S/3", "Ti/2"], ["S", "X/3", "S/0", "S/x", None, 3, "", "S/-1", [], {}, 1j, "S/1.5"], ["S/4"]),
    "models.DeiT.variant": Pool(["S/3", "Ti/2"], ["S", "X/3", "S/0", "S/x", None, 3, "", [], {}, 1j], ["S/4"]),
    "models.MLPMixer.variant": Pool(["S/3", "S/2"], ["S", "X/3", "S/0", "S/x", None, 3, "", [], {}, 1j], ["S/4"]),
    "models.width": WIDTH,
    "models.depth": values.whole(1, [1, 2], huge=False),
    "mlp_units": WIDTH,
    "pool": Pool(["token", "mean"], ["nonsense", None, 3, {}, 1j, []]),
    "distilled": values.flag(),
    "models.epsilon": values.number([1e-6, 1e-3], 0),
    "std": MEAN_STD,
    "models.mean": MEAN_STD,
    "stem": Pool(["cifar", "imagenet"], ["nonsense", None, 3, {}, 1j, []]),
    "name": Pool(["a_name"]),
    "trainable": Pool([True, False]),
    "capsules_shape": Pool([(3, 4)], [None, "x", 3, (3,), (0, 4), (-1, 4), (1.5, 4), {}, 1j]),
    "models.build_decoder.image_shape": INPUT_SHAPE,
    "models.build_decoder.units": Pool([(4,), (4, 4)], [0, "4", None, 3, (0,), (1.5,), (-1,), (True,), {}, 1j], [(), []]),
    # data
    "data.name": values.choice("digits", "mnist", "cifar10"),
    "data.load.name": values.choice("digits"),
    "split": Pool(["test", ("train", "test")], ["nonsense", 3, None, [3], {}, 1j, float("nan")], [[], "train"]),
    "image_size": Pool([None, 8, (6, 8)], [0, -1, 1.5, "8", (8,), (0, 8), {}, 1j, True, float("nan"), (1.5, 8)]),
    "data_dir": Pool([None], [], [3, "nowhere"]),
    "download": values.flag(),
    "shuffle": values.flag(),
    "data.from_arrays.labels": values.labels(classes=False),
    "n": values.whole(0, [3, 1], huge=False),
    "data.take.dataset": Pool([made("stream", zoo.batched)], [None, "x", 3, {}, [], 1j, made("pair", lambda: (zoo.images(), zoo.ids()))]),
    "stream": Pool([made("stream", zoo.batched)], [None, "x", 3, {}, [], 1j, made("unbatched", zoo.stream)]),
    "shift": values.whole(0, [1, 0, 2], huge=False),
    "flip": values.flag(),
    "data.images": values.array(zoo.images, integers="open"),
    "keys": Pool([None, [1, 2, 3, 4], made("array", lambda: np.arange(4))], ["x", 3, {}, 1j, [1], [0.5] * 4, ["a"] * 4, [None] * 4, [float("nan")] * 4], [[-1] * 4, [2**40] * 4]),
    "rotation": values.number([10.0, 0.0], 0, 180),
    "shear": RANGE,
    "scale": Pool([(0.9, 1.1), [1.0, 1.0]], [None, 3, "xy", (1.1, 0.9), (0, 1), (-1, 1), (1,), (1, 2, 3), (float("nan"), 1), (1, float("inf")), {}, 1j, ("a", "b")], [(1e-30, 1)]),
    "translation": values.number([1.0, 0.0], 0),
    "keep_inside": values.flag(),
    "matrices": values.array(lambda: np.tile(np.eye(2, dtype="float32"), (zoo.BATCH, 1, 1))),
    "data.affine.warp.shifts": values.array(lambda: np.zeros((zoo.BATCH, 2), "float32")),
    "data.affine.place.size": values.whole(zoo.SIZE, [8, 6], huge=False),
    "data.affine.uniform.keys": Pool([made("array", lambda: np.arange(4)), [1, 2]], ["x", 3, None, {}, 1j, [0.5], ["a"], [None], [float("nan")]], [[], [-1], [2**40]]),
    "data.affine.uniform.n": values.whole(1, [2, 3], huge=False),
    "data.affine_sets.base": Pool([made("digits", zoo.stream)], [None, "x", 3, {}, 1j, [], made("batched", zoo.batched), made("empty", lambda: zoo.stream().take(0))]),
    "data.multidigit.base": Pool([made("digits", zoo.stream)], [None, "x", 3, {}, 1j, [], made("batched", zoo.batched), made("empty", lambda: zoo.stream().take(0)), made("one class", lambda: zoo.stream().take(1))]),
    "pairs": values.whole(1, [1, 2], huge=False),
    "parts": values.flag(),
    "data.corruptions.name": values.choice("brightness", "contrast", "gaussian_noise"),
    "severity": values.whole(1, [1, 5], 5),
    "indices": Pool([[0, 1], made("of each", lambda: np.zeros((4, 1), int))], [None, "x", 3, [99], [-1], [0.5], [None], {}, 1j, [2**32], [float("nan")]], [[]]),
}


def pool_of(name, parameter):
    """The pool of a parameter: its own, or that of its room, or of all parameters of the name; None if there is none."""
    parts = name.split(".")
    for count in range(len(parts), -1, -1):
        pool = POOLS.get(".".join([*parts[:count], parameter]))
        if pool is not None:
            return pool
    return None


def public():
    """Everything public: dict from names with their rooms to functions and classes."""
    everything = {}
    for room in (*ROOMS, *DATA):
        module = importlib.import_module(f"keras_capsvit.{room}")
        listed = getattr(module, "__all__", None) or [
            name for name, thing in vars(module).items() if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__
        ]
        things = {f"{room}.{name}": getattr(module, name) for name in listed}
        everything |= {name: thing for name, thing in things.items() if callable(thing)}
    return everything


def subjects():
    """Subjects of everything public, a list."""
    return [subject(name, thing) for name, thing in public().items() if name not in NOT_CALLED]


def subject(name, thing):
    """The Subject of something public."""
    if not inspect.isclass(thing):
        kind = _function
    elif issubclass(thing, attacks.Attack):
        kind = _attack
    elif "explain." in name:
        kind = _explainer
    elif issubclass(thing, keras.Model):
        kind = _model
    elif issubclass(thing, keras.Layer):
        kind = _layer
    else:
        kind = {"losses.MarginLoss": _loss, "metrics.SubsetAccuracy": _metric, "patches.PatchGrid": _grid}.get(name, _table)
    return kind(name, thing)


def _parameters(function, *, without=("self", "kwargs", "settings", "options")):
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default is each.empty for each in parameters if each.name not in without}


def _pools(name, parameters):
    pools = {parameter: pool_of(name, parameter) for parameter in parameters}
    missing = [parameter for parameter, pool in pools.items() if pool is None]
    if missing:
        raise LookupError(f"{name} has parameters without a pool in fuzz/subjects.py: {missing}.")
    return pools


def _required(parameters, *always):
    return tuple(parameter for parameter, needed in parameters.items() if needed or parameter in always)


COSTS = {
    **dict.fromkeys(("evaluate.transfer_matrix", "evaluate.attack_table", "evaluate.position_map", "evaluate.parameter_randomization"), 60),
    **dict.fromkeys(("evaluate.robustness", "evaluate.robust_accuracy", "evaluate.success_rate", "evaluate.detection"), 40),
    **dict.fromkeys(("evaluate.fooling_rate", "evaluate.compare", "evaluate.compactness"), 40),
    **dict.fromkeys(("data.load", "data.multidigit.multi_mnist"), 100),
}


def _function(name, function):
    call, always = function, ()
    parameters = _parameters(function)
    if name == "attacks.combined":
        parameters, call = {"objectives": True}, lambda objectives: function(*objectives)
    elif name.startswith("data.affine_sets.") or name == "data.augment":
        if name != "data.augment":
            parameters |= {"batch_size": True, "shuffle": True, "seed": True}
        call = lambda **arguments: next(iter(function(**arguments)))  # noqa: E731
    elif name.startswith("data.") and name.split(".")[-1] in ("load", "from_arrays", "multi_mnist"):
        call = functools.partial(_first_batches, function)
    elif name == "taps.tap":
        call = lambda model, name, **others: function(model, name, **others)(zoo.images())  # noqa: E731
    elif name == "taps.scores":
        call = lambda **arguments: function(**arguments)(zoo.images())  # noqa: E731
    elif name in ("attacks.natural", "attacks.logits", "attacks.capsules", "attacks.votes"):
        call = lambda **arguments: function(**arguments)(zoo.images())  # noqa: E731
    elif name == "attacks.reconstruction_error":
        call = lambda model: function(model)(zoo.images())  # noqa: E731
    elif name == "evaluate.random_targets":
        call = lambda **arguments: function(**arguments)(zoo.ids() % 2)  # noqa: E731
    elif name.startswith("plot."):
        call = functools.partial(_drawn, function)
    pools = _pools(name, parameters)
    room = name.split(".")[0]
    cost = COSTS.get(name, {"plot": 25, "data": 30, "taps": 30, "evaluate": 10}.get(room, 3))
    # Rates of no examples, and standard errors of one.
    nan = name in ("evaluate.robustness", "evaluate.attack_table", "evaluate.success_rate", "evaluate.transfer_matrix", "evaluate.compare")
    nan = nan or name in ("evaluate.fooling_rate", "evaluate.position_map", "evaluate.shift_table", "evaluate.patch_transfer")
    return Subject(name, call, pools, _required(parameters, *always), cost, nan=nan)


def _first_batches(function, **arguments):
    streams = function(**arguments)
    streams = streams if isinstance(streams, tuple) else (streams,)
    return [next(iter(stream), None) for stream in streams]


def _drawn(function, **arguments):
    result = function(**arguments)
    figure = getattr(result, "figure", result)
    if hasattr(figure, "canvas"):
        figure.canvas.draw() if zoo.random(len(arguments)).uniform() < 0 else None
    return [] if hasattr(figure, "axes") else result


def _settings(arguments):
    """Arguments of a constructor, and those of the call, which have a dot in front."""
    settings = {name: value for name, value in arguments.items() if not name.startswith(".")}
    return settings, {name[1:]: value for name, value in arguments.items() if name.startswith(".")}


def _attack(name, cls):
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    needed = dataclasses.MISSING
    parameters = {n: field.default is needed and field.default_factory is needed for n, field in fields.items()}
    pools = _pools(name, parameters) | {f".{n}": pool for n, pool in ATTACK_CALL.items()}
    always = ("epsilon", "steps", "binary_search_steps", "initial_const", "largest_const")

    def call(**arguments):
        settings, given = _settings(arguments)
        return cls(**settings)(**given)

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
    if epsilon is not None and arguments.get("norm", "linf") == "linf" and arguments.get("positions", 0) == 0 and len(x):
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
    pools |= {".x": IMAGES, ".target": values.targets("good" if several else "bad")}

    def call(_texts=None, **arguments):
        settings, given = _settings(arguments)
        key = name, _texts
        if _texts is None or key not in _EXPLAINERS:
            explainer = cls(**settings)
            if _texts is None:
                return explainer(**given)
            _EXPLAINERS[key] = explainer
            if len(_EXPLAINERS) > 200:
                _EXPLAINERS.pop(next(iter(_EXPLAINERS)))
        return _EXPLAINERS[key](**given)

    return Subject(name, call, pools, (*_required(parameters), ".x"), 60, _maps_fit)


def _maps_fit(arguments, result):
    """What is wrong with maps."""
    x, target = np.shape(ops.convert_to_numpy(arguments[".x"])), arguments.get(".target")
    with_channels = arguments.get("channels") is True or getattr(arguments.get("base"), "channels", False)
    expected = x if with_channels else x[:3]
    if arguments.get("stop") is not None:
        return None
    if np.ndim(target) == 2:
        expected = (expected[0], np.shape(target)[1], *expected[1:])
    return None if np.shape(result) == expected else f"maps of shape {np.shape(result)} for {expected}"


def _model(name, cls):
    parameters = {each: False for each in inspect.signature(cls).parameters if each not in ("name", "trainable")}
    small = ("num_heads", "primary_dim", "capsule_dim", "filters", "num_types", "width", "depth", "mlp_units", "token_units")
    small += ("input_shape", "num_classes", "variant", "kernel_size", "strides", "units", "channel_units", "reconstruction_units")
    parameters = {each: each in small for each in parameters}
    pools = _pools(name, parameters)
    if "VGG" in name or "ResNet" in name:
        pools["input_shape"] = Pool([(32, 32, 3)], [(32, 32), None, "x", (0, 32, 3), (-32, 32, 3), (32.5, 32, 3), (32, 32, None)], [(33, 40, 1)])

    def call(**arguments):
        model = cls(**arguments)
        return model(np.full((1, *model.input_shape[1:]), 0.5, "float32"))

    return Subject(name, call, pools, _required(parameters), 400)


def _layer(name, cls):
    settings = _parameters(cls)
    if "kwargs" in inspect.signature(cls).parameters:
        for base in cls.__mro__[1:]:
            if base.__module__.startswith("keras_capsvit") and "__init__" in vars(base):
                settings |= {n: False for n in _parameters(base.__init__, without=("self", "kwargs"))}
        settings = {n: needed for n, needed in settings.items() if n in _own_settings(cls)}
    given = {n: needed for n, needed in _parameters(cls.call).items() if n != "mask"}
    pools = _pools(name, settings) | {f".{n}": pool for n, pool in _pools(name, given).items()}

    def call(**arguments):
        settings, given = _settings(arguments)
        return cls(**settings)(**given)

    required = (*_required(settings), *(f".{n}" for n in _required(given)))
    return Subject(name, call, pools, required, 15)


def _own_settings(cls):
    own = set()
    for kind in cls.__mro__:
        if kind.__module__.startswith("keras_capsvit") and "__init__" in vars(kind):
            own |= set(_parameters(kind.__init__))
    return own or {"filters", "kernel_size"}


def _loss(name, cls):
    settings = {n: False for n in ("m_plus", "m_minus", "lam")}
    pools = _pools(name, settings) | {f".{n}": pool_of(name, n) for n in ("y_true", "y_pred")}

    def call(**arguments):
        settings, given = _settings(arguments)
        return cls(**settings)(**given)

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
        settings, given = _settings(arguments)
        grid = cls(**settings)
        return [grid.positions, grid.boxes, grid.draw(**given)]

    pools = _pools(name, parameters) | {".batch": values.whole(0, [2, 1], huge=False), ".num_patches": values.whole(0, [1, 0], huge=False), ".seed": SEED}
    return Subject(name, call, pools, (*_required(parameters), ".batch"), 1)


def _table(name, cls):
    def call(rows):
        table = cls(rows)
        str(table)
        with tempfile.TemporaryDirectory() as folder:
            table.to_csv(f"{folder}/table.csv")
            table.to_json(f"{folder}/table.json")
        return []

    return Subject(name, call, {"rows": POOLS["rows"]}, ("rows",), 5)
