"""The pool of every parameter. Before its name may stand the room, and what is called: the longest name counts."""

import keras
import numpy as np
from keras import ops

from fuzz import values, zoo
from fuzz.values import Lazy, Pool, among, nonsense
from keras_capsvit import attacks, evaluate, layers, patches

NAN = float("nan")
IMAGES, MAPS, SEED = values.pictures(), values.array(zoo.maps), values.seed()
FLAG, SMALL = values.flag(), values.whole(1, [2, 1, 3], huge=False)
BATCH_SIZE, SHARE = values.whole(1, [2, 3, 4, 1]), values.number([0.0, 0.1], 0, 1, below=True)
ANGLE = values.number([10.0, 0, 30.0], 0, 90, below=True)
LENGTHS = values.array(zoo.lengths)
INPUT_CAPSULES = values.array(zoo.input_capsules, wrong_length=False)
SIZES = among([(4, 4), (2,)], [0, "4", (0,), (1.5,), (-1,), (True,), (2**40,)], [()], but=["[]"])
VARIANT = among(["S/3", "Ti/2"], ["S", "X/3", "S/0", "S/x", "S/-1", "S/1.5", ""], ["S/4"])
MEAN_STD = among([None], ["mean", (0.5,), (NAN,), ("a",)], [(0.5, 0.5, 0.5)])
INPUT_SHAPE = among(
    [zoo.SHAPE, [6, 6, 1], (8, 8, 3)],
    [
        (0, 6, 1),
        (-6, 6, 1),
        (6, 6),
        (6, 6, 1, 1),
        (6.5, 6, 1),
        (6, 6, None),
        (True, 6, 1),
        (NAN, 6, 1),
        6,
        (2**31, 6, 1),
    ],
    [(1, 1, 1), (np.int64(6), 6, 1)],
)
PATCH_SIZE = among(
    [2, (2, 1), np.int64(2), [1, 2]],
    [0, -1, True, (2,), (1, 2, 3), (2, 1.5), (2, -1), (True, 2)],
    [100, 2**32],
    but=["3"],
)


def boxes():
    return np.tile([[1, 1, 3, 4]], (zoo.BATCH, 1))


def masks():
    everywhere = np.zeros((zoo.BATCH, zoo.SIZE, zoo.SIZE), bool)
    everywhere[:, 1:3, 1:4] = True
    return everywhere


def digits(*bad):
    more = [Lazy("batched", zoo.batched), Lazy("empty", lambda: zoo.stream().take(0)), *bad]
    return among([Lazy("digits", zoo.stream)], more)


def functions_like(*good, nonsense_of=zoo.NONSENSE):
    return among(
        [Lazy(f"good {k}", each) for k, each in enumerate(good)],
        nonsense(nonsense_of),
        [Lazy("raises", lambda: zoo.raises)],
        [Lazy("not_finite", lambda: zoo.not_finite)],
    )


GENERAL = {
    "x": IMAGES,
    "images": IMAGES,
    "maps": MAPS,
    "y": values.labels(),
    "labels": values.labels(),
    "target": values.targets(),
    "bounds": values.bounds(),
    "batch_size": BATCH_SIZE,
    "seed": SEED,
    "model": values.models(),
    "models": values.mapping(values.models(zoo.cnn, lambda: zoo.linear)),
    "dataset": values.datasets(),
    "attack": functions_like(zoo.fgsm, zoo.bim),
    "attacks": values.mapping(values.attacks()),
    "output": among([None], ["nothing", -2], [0, -1]),
    "num_classes": values.whole(2, [3, 2], huge=False).and_bad(10**9),
    "patch_size": PATCH_SIZE,
    "positions": among(
        [
            Lazy("for all", lambda: np.array([[0, 0], [3, 3]])),
            Lazy("of each", lambda: np.zeros((zoo.BATCH, 2, 2), int)),
        ],
        [
            *([[-1, 0], [0, 0]], [[5, 5], [0, 0]], [[0.5, 0], [1, 1]], [[2**32, 0], [0, 0]], [["a", "b"]], [[NAN, 0]]),
            Lazy("of other images", lambda: np.zeros((zoo.BATCH + 1, 2, 2), int)),
            Lazy("triples", lambda: np.zeros((2, 3), int)),
        ],
        [[[0, 0], [0, 0]]],
        but=["[]"],
    ),
    "name": Pool(["a_name"]),
    **dict.fromkeys(
        (
            "early",
            "relative",
            "signed",
            "union",
            "absolute",
            "cascading",
            "per_image",
            "targeted",
            "channels",
            "shared",
            "matrix",
        ),
        FLAG,
    ),
    **dict.fromkeys(
        ("random_start", "abort_early", "early_stop", "universal", "squash", "self_loops", "normalize", "batch_norm"),
        FLAG,
    ),
    **dict.fromkeys(("use_bias", "rolled", "class_token", "distillation_token", "shared_transform", "distilled"), FLAG),
    **dict.fromkeys(("weight_standardization", "download", "shuffle", "flip", "keep_inside", "parts"), FLAG),
    **dict.fromkeys(
        ("num_heads", "units", "token_units", "channel_units", "num_types", "capsule_dim", "primary_dim"), SMALL
    ),
    **dict.fromkeys(
        ("num_capsules", "height", "width", "dim", "num_inputs", "filters", "mlp_units", "group_dim"), SMALL
    ),
}
OPS = {
    "x": values.array(zoo.class_capsules, fixed=False, wrong_length=False),
    "axis": values.whole(-3, [-1, 0, 1, -2], 2),
    "keepdims": FLAG,
    "shares": FLAG,
    "attention": among(
        [Lazy("attention", zoo.attention)],
        [[1, 2], [None], Lazy("different", lambda: [zoo.attention()[0], np.ones((4, 3, 3), "float32")])],
        nan=[Lazy("NaN inside", lambda: [each * NAN for each in zoo.attention()])],
    ),
    "matrices": among(
        [Lazy("attention", zoo.attention)],
        [[1, 2], [None]],
        nan=[Lazy("NaN", lambda: [each * NAN for each in zoo.attention()])],
    ),
    "labels": values.labels(rows="open", others=False),
    "weights": values.array(zoo.coupling),
    "votes": values.array(zoo.votes),
    "lengths": values.array(zoo.lengths).or_none(),
    "prefix": values.whole(0, [1, 0, 2], 4),
    "attention_rollout.read": among([None, [0], [0, 1], np.array([2])], [[7], [-6], [0.5], [None]]),
    "reached.read": among([[0], [0, 1], np.array([2])], [[7], [-6], [0.5], [None]]),
    "num_classes": among([zoo.CLASSES, np.int64(3)], [0, -1, True], [4, 2, 2**31], but=["3"]),
}
ATTACKS = {
    "objective": values.models(zoo.cnn, zoo.softmax_cnn, zoo.graph_capsules, lambda: zoo.linear),
    "numbers": among(
        [None, Lazy("numbers", lambda: np.arange(7, 7 + zoo.BATCH)), Lazy("list", lambda: [3, 1, 2, 0])],
        [[1], [0.5] * 4, [-1] * 4, ["a"] * 4, [None] * 4, [NAN] * 4],
        [[2**33] * 4, [0.0] * 4, [True] * 4],
    ),
    "epsilon": values.number([0.1, 0.05, 0.3], 0),
    **{
        f"{n}.epsilon": values.number([0.1, 0.05], 0).or_none()
        for n in ("CarliniWagner", "CarliniWagnerLinf", "DeepFool", "FAB", "PatchAttack", "PatchFool")
    },
    "preset.epsilon": values.number([0.1, 0.05, 0.3], 0).and_open(None),
    "preset.name": values.choice(*attacks.PRESETS),
    "step_size": values.number([0.05, 0.01], 0).or_none(),
    "CarliniWagner.step_size": values.number([0.05, 0.01], 0),
    "CarliniWagnerBox.step_size": values.number([0.1, 0.2], 0),
    "CarliniWagnerLinf.step_size": values.number([0.05, 0.01], 0),
    "relative_step": values.number([0.25, 1.0], 0).or_none(),
    "steps": SMALL,
    "norm": values.choice("linf", "l2"),
    "precision": values.choice(*attacks.PRECISIONS),
    "decay": values.number([1.0, 0.5], 0).or_none(),
    "restarts": values.whole(1, [1, 2], huge=False),
    "keep": values.choice("best", "last"),
    "error": functions_like(lambda: zoo.error),
    "beta": values.number([0.5, 0.2], 0, 1),
    **{f"{name}.norm": values.choice("linf", "l2", "l1") for name in ("APGD", "AutoAttack")},
    "APGD.loss": values.choice("ce", "dlr", "margin").and_open("dlr_targeted"),
    "APGD.keep": values.choice("best", "first"),
    "APGD.targets": values.whole(1, [1, 2, 9]),
    "AutoAttack.version": among(["custom"], ["best", 3]),
    "AutoAttack.attacks": among(
        [Lazy("APGD", lambda: {"apgd": attacks.APGD(0.1, steps=2), "square": attacks.Square(0.1, queries=3)})],
        [{}, 3, ["a"], {"a": 3}, {"": None}],
    ),
    "rho": values.number([0.75, 0.5], 0, 1),
    "eot_iter": values.whole(1, [1, 2], huge=False),
    "FAB.norm": values.choice("linf", "l2", "l1"),
    "FAB.targets": values.whole(1, [1, 2, 9]).or_none(),
    "FAB.alpha_max": values.number([0.1, 0.5], 0, 1),
    "FAB.eta": values.number([1.05, 1.5], 1),
    "FAB.beta": values.number([0.9, 0.5], 0, 1),
    "candidates": values.whole(2, [3, 2, 10]),
    "overshoot": values.number([0.02, 0.5], 0),
    "binary_search_steps": values.whole(1, [1, 2], huge=False),
    "initial_const": values.number([0.1, 1.0], 0, above=True),
    "CarliniWagner.initial_const": values.number([0.1, 1.0], 0),
    "largest_const": values.number([0.2, 1.0], 0, above=True),
    "const_factor": values.number([2.0, 3.0], 1, above=True),
    "decrease_factor": values.number([0.5, 0.9], 0, 1, above=True, below=True),
    "smallest_limit": values.number([0.1, 0.3], 0, above=True),
    "confidence": values.number([0.0, 0.5], 0),
    "positions": among(
        [
            None,
            Lazy("grid", zoo.grid),
            ((0, 0),),
            Lazy("array", lambda: np.array([[1, 1]])),
            Lazy("of each", lambda: np.zeros((4, 1, 2), int)),
        ],
        [((5, 5),), ((-1, 0),), ((0.5, 0),), (("a", "b"),), ((2**32, 0),)],
        but=["[]"],
    ),
    "num_patches": values.whole(1, [1, 2], huge=False),
    "queries": SMALL,
    "Square.norm": values.choice("linf", "l2", "l1"),
    "Square.p": values.number([0.8, 0.1, 1.0], 0, 1, above=True),
    "Square.loss": values.choice("margin", "ce"),
    "transforms": among([None, Lazy("moved", lambda: attacks.PatchTransforms(draws=2, translation=1, rotation=20))]),
    "patches": values.whole(1, [1, 2], huge=False),
    "PatchFool.patch_size": PATCH_SIZE.or_none(),
    "select": values.choice("attention", "saliency", "random").or_none(),
    "PatchFool.layer": values.whole(1, [1, 2], huge=False).or_none(),
    "attention_weight": values.number([0.002, 1.0], 0),
    "order": values.choice(*attacks.ORDERS),
    "votes.model": values.models(zoo.capsules),
    "in_precision.objective": values.models(zoo.cnn, zoo.capsules, zoo.graph_capsules, silly=zoo.NONSENSE[:4]),
    "in_precision.images": values.pictures(wrong_length=False).or_none(),
    "natural.model": values.models(silly=zoo.NONSENSE[:4]),
    "capsules.model": values.models(zoo.graph_capsules, zoo.capsules),
    "logits.model": values.models(zoo.cnn, zoo.softmax_cnn, silly=zoo.NONSENSE[:4]),
    "reconstruction_error.model": values.models(zoo.capsules, bad=(zoo.cnn,)),
    "combined.objectives": Pool(
        [Lazy("two", lambda: [attacks.capsules(zoo.capsules()), attacks.votes(zoo.capsules())])],
        [[], [None], ["votes"], [3], Lazy("models", lambda: [zoo.linear])],
    ),
}
EXPLAIN = {
    "x": values.pictures(wrong_length=False),
    "SmoothGrad.x": values.pictures(sizes=False, wrong_length=False),
    "RandomMap.x": values.pictures(sizes=False, wrong_length=False),
    "model": values.models(zoo.cnn, zoo.softmax_cnn, lambda: zoo.linear),
    **{
        f"{name}.model": values.models(zoo.cnn)
        for name in ("LRP", "CLRP", "GuidedBackprop", "DeconvNet", "ScoreCAM", "GradCAM")
    },
    **{f"{name}.model": values.models(zoo.cnn) for name in ("GradCAMPlusPlus", "LayerCAM", "HiResCAM", "EigenCAM")},
    # Of a model without scores features are explained all the same.
    **{
        f"{kind}.model": values.models(zoo.cnn, zoo.softmax_cnn, lambda: zoo.linear, scored=False)
        for kind in ("LRP", "CLRP", "GuidedBackprop", "DeconvNet")
    },
    **{f"{kind}.model": values.models(zoo.cnn, scored=False) for kind in ("EigenCAM", "FeatureMapAttention")},
    "GraphAttention.model": values.models(zoo.graph_capsules, bad=(zoo.cnn,)),
    "GraphContribution.model": values.models(zoo.graph_capsules, zoo.capsules, bad=(zoo.cnn,)),
    "AttentionRollout.model": values.models(zoo.transformer, bad=(zoo.cnn,)),
    "TransformerAttribution.model": values.models(zoo.transformer, bad=(zoo.cnn,)),
    "layer": among([None, "conv"], ["nothing", "", b"conv"]),
    "steps": values.whole(1, [2, 1, 4], huge=False),
    "baseline": Pool(
        [0.0, 0.5, Lazy("image", lambda: zoo.images()[0])],
        [
            None,
            "black",
            {},
            1j,
            Lazy("larger", lambda: np.zeros((7, 7, 1))),
            values.OBJECTS,
            Lazy("generator", values.generator),
        ],
        [True, Lazy("row", lambda: np.zeros((1, zoo.SIZE, 1))), [], 1e30],
        values.NOT_FINITE,
    ),
    "samples": values.whole(1, [2, 1], huge=False),
    "noise": values.number([0.1, 0.0], 0),
    "base": functions_like(zoo.saliency, lambda: zoo.explainer, nonsense_of=zoo.NONSENSE[:4]),
    "head_fusion": values.choice("mean", "max", "min"),
    "discard_ratio": values.number([0.0, 0.5], 0, 1, below=True),
    "rules": among(
        ["z_plus", "epsilon", "gradient", [("conv", "gamma", {"gamma": 0.5}), "z_plus"]],
        [[("conv",)], [3], ["nonsense"], [("conv", "gamma", {"gamma": NAN}), "z_plus"]],
        [[("nothing*", "gamma"), "z_plus"]],
    ),
    "input_range": among(
        [None, (0, 1), (0.0, 1.0)],
        [(1, 0), (NAN, 1), (0, float("inf")), "01", (0, 1, 2), ("a", "b"), (0, 0)],
        [(-1, 2)],
    ),
    "input_shape": among([None, zoo.SHAPE], [(6, 6), (7, 7, 1), (NAN,) * 3, (6, 6, -1)], [[6, 6, 1]]),
    "start": among([None], open=["conv"]),
    "stop": among([None], open=["conv"]),
    "fixed": among([None, {}], [{"nothing": 1}], but=["{}"]),
    "signature": Pool(["serving_default"], [], [None, 3, "x", NAN]),
    "variant": values.choice("others", "negated"),
}
EVALUATE = {
    "ablation": values.choice("column", "block"),
    "certified_patch_accuracy.size": values.whole(1, [2, 1, 3], zoo.SIZE),
    "stride": values.whole(1, [1, 2], zoo.SIZE),
    "certified_patch_accuracy.threshold": values.number([0.3, 0.5], 0, 1, above=True).or_none(),
    "certified_patch_accuracy.fill": Pool(
        [0.0, -1.0, Lazy("image", lambda: zoo.images()[0])],
        ["mean", None, {}, 1j, values.OBJECTS, Lazy("images", zoo.images), Lazy("generator", values.generator)],
        [True, 1e30, []],
        values.NOT_FINITE,
    ),
    "drop_tokens": FLAG,
    "compactness.labels": values.labels(classes=False),
    "aopc.bounds": values.bounds().and_open((0.4, 0.6)),  # warned of
    "random_targets.num_classes": values.whole(2, [3, 2], huge=False),
    "detection_threshold.dataset": values.datasets(of_model=False),
    "where": among(
        [
            Lazy("boxes", boxes),
            Lazy("masks", masks),
            Lazy("several boxes", lambda: [boxes()[:2]] * zoo.BATCH),
            Lazy("masks of 0 and 1", lambda: masks().astype("uint8")),
            Lazy("list", lambda: boxes().tolist()),
        ],
        [
            Lazy("too few", lambda: boxes()[:2]),
            Lazy("float boxes", lambda: boxes() + 0.5),
            Lazy("NaN boxes", lambda: boxes() * NAN),
            Lazy("empty masks", lambda: masks() & False),
            Lazy("outside", lambda: boxes() + 10),
            Lazy("negative", lambda: boxes() - 5),
            Lazy("2**32", lambda: boxes() + 2**32),
            Lazy("twos", lambda: masks() * 2),
            Lazy("NaN masks", lambda: np.where(masks(), NAN, 0)),
            Lazy("strings", lambda: boxes().astype(str)),
            Lazy("other size", lambda: np.ones((zoo.BATCH, 3, 3), bool)),
            Lazy("ragged", lambda: [[1, 2], [1], [], [3]]),
        ],
    ),
    "objective": functions_like(
        lambda: attacks.logits, lambda: attacks.natural, nonsense_of=zoo.NONSENSE[:3]
    ).or_none(),
    "targets": functions_like(lambda: lambda y: (y + 1) % zoo.CLASSES).or_none(),
    "error": functions_like(lambda: zoo.error),
    "explainers": values.mapping(functions_like(lambda: zoo.explainer, zoo.saliency)),
    "metrics": values.mapping(functions_like(lambda: zoo.metric, nonsense_of=zoo.NONSENSE[:3])),
    "paired_tests.values": among(
        [
            Lazy("two", lambda: {name: {"m": zoo.random(1).normal(size=5)} for name in "ab"}),
            Lazy("three", lambda: {name: {"m": zoo.random(ord(name)).normal(size=5)} for name in "abc"}),
            Lazy("lists", lambda: {name: {"m": [0.5, 1.0, ord(name)]} for name in "ab"}),
        ],
        [
            {"a": {"m": [1.0, 2.0]}},
            {"a": {"m": [1.0, 2.0]}, "b": {"n": [1.0, 2.0]}},
            {"a": {"m": [1.0, 2.0]}, "b": {"m": [1.0, 2.0, 3.0]}},
            {"a": {"m": [1.0]}, "b": {"m": [2.0]}},
            {"a": {"m": [1.0, NAN]}, "b": {"m": [2.0, 1.0]}},
            {"a": {"m": "ab"}, "b": {"m": "cd"}},
            {"a": 3, "b": 4},
        ],
        [{"a": {}, "b": {}}],
    ),
    "epsilons": among(
        [None], [[], [-1], [NAN], [[0.1]], ["a"], 0.1], [[0.1], (0.0, 0.05), np.array([0.1, 0.2]), [True]]
    ),  # open, because an attack may have no radius
    "auto_attack.attack": among(
        [
            Lazy(
                "AutoAttack", lambda: attacks.AutoAttack(0.1, version="custom", attacks={"a": attacks.APGD(1, steps=2)})
            ),
        ],
        [Lazy("FGSM", zoo.fgsm), Lazy("callable", lambda: lambda objective, x, y, targeted: x)],
    ),
    "test": values.choice("t", "wilcoxon"),
    "compare.target": values.choice("predicted", "label"),
    "percentile": values.number([95.0, 50.0], 0, 100, above=True, below=True),
    "detection.threshold": values.number([0.1, 0.0]),
    "pointing_game.threshold": among(
        [None, 50, [5, 25.0, 100]], [0, -1, 101, [[1]], [None], ["a"], [float("inf")]], [True], but=["3", "1.5"]
    ),
    "tolerance": values.number([0, 1.5], 0),
    "perturb": values.attacks(),
    "position_map.attack": among(
        [Lazy("PatchAttack", lambda: attacks.PatchAttack(2, steps=1))], [Lazy("FGSM", zoo.fgsm)]
    ),
    "grid": among(
        [Lazy("grid", lambda: patches.PatchGrid((zoo.SIZE, zoo.SIZE), 3))],
        [Lazy("of other images", lambda: patches.PatchGrid((12, 12), 4))],
    ),
    "result": among([Lazy("result", zoo.patched)]),
    "results": among([Lazy("results", lambda: {"a": zoo.patched()})], [{"b": 3}, {"a": None}], but=["{}"]),
    "patch_transfer.models": among([Lazy("models", lambda: {"a": zoo.cnn()})], [{"a": None}, {"a": "model"}]),
    "shifts": among(
        [[(0, 0), (1, -1)], [(0, 1)]],
        [[3], [(1,)], [(0.5, 0)], [("a", "b")], [(NAN, 0)]],
        but=["[]"],
    ),
    "patch": values.whole(1, [2, 3], zoo.SIZE),
    "regions": values.choice("grid", "pixels"),
    "steps": values.whole(1, [2, 1, 4], 36).or_none(),
    # Warned of.
    **{
        f"{name}.bounds": values.bounds().and_open((0.4, 0.6))
        for name in ("deletion", "insertion", "road", "infidelity", "max_sensitivity")
    },
    "measure": values.choice("probability", "score", "accuracy"),
    "attack_table.norms": values.choice("own", "common"),
    "infidelity.measure": values.choice("score", "probability"),
    "shares": among(
        [[0.1, 0.5, 0.9], (0.5,), np.array([0.3, 0.4])],
        [[0.5, 0.5], [0.0, 0.5], [0.5, 1.0], [0.01], ["a"], [None], [[0.5]], [NAN]],
    ),
    "infidelity.maps": values.array(zoo.maps, fixed=False),
    "perturbations": Pool(
        ["gaussian", "square", Lazy("array", lambda: zoo.random(1).normal(size=(2, *zoo.images().shape)))],
        ["nonsense", None, 3, [], {}, 1j, values.OBJECTS, Lazy("images", zoo.images)],
        nan=[Lazy("NaN", lambda: zoo.images()[None] * NAN)],
    ),
    "samples": SMALL,
    "noise": values.number([0.1, 0.2], 0, above=True),
    "road.noise": values.number([0.1, 0.0], 0),
    "infidelity.size": values.whole(1, [2, 1]),
    "infidelity.fill": Pool(["black", 0.5], open=["nonsense", None, values.NOT_FINITE[0]]),  # of squares only
    "complexity.maps": values.array(zoo.maps, wrong_length=False),
    "sparseness.maps": values.array(zoo.maps, wrong_length=False),
    "radius": values.number([0.1, 0.5], 0, above=True),
    "max_sensitivity.target": values.targets(none="bad", beyond="open"),
    "max_sensitivity.x": values.pictures(sizes=False, wrong_length=False),
    "fill": Pool(
        ["random", "black", "mean", "blur", 0.0, 0.5, Lazy("images", zoo.images)],
        [
            "nonsense",
            None,
            {},
            1j,
            values.OBJECTS,
            Lazy("other size", lambda: np.zeros((7, 7, 1))),
            Lazy("generator", values.generator),
        ],
        [True, 1e30, []],
        values.NOT_FINITE,
    ),
    "order": values.choice("descending", "ascending"),
    "mean": Pool(
        [0.5, Lazy("image", lambda: zoo.images().mean(axis=0))],
        [
            "mean",
            None,
            {},
            1j,
            values.OBJECTS,
            Lazy("other size", lambda: np.zeros((7, 7, 1))),
            Lazy("generator", values.generator),
        ],
        [True, []],
        values.NOT_FINITE,
    ),
    "size": values.whole(1, [3, 1]),
    "neurons": functions_like(lambda: lambda x: zoo.linear(x)[:, :2]),
    "neuron_ablation.maps": values.array(lambda: np.stack([zoo.maps(), zoo.maps()])),
    "factor": values.choice("rotation", "scale", "trans_x", "shear_y"),
    "degrees": among([[1.0, 0.9], [1.1]], [[[1]], ["a"], [None]], [[0.0], [-1.0], [1e30]], [[NAN], [float("inf")]]),
    "factors": among(
        [{"rotation": [-5, 0, 5]}, {"scale": [0.9, 1.1]}],
        [
            {"nothing": [0, 1]},
            {"rotation": [0]},
            {"rotation": []},
            {"scale": [0, 1]},
            {"rotation": "ab"},
            {"rotation": [0, NAN]},
        ],
        but=["{}"],
    ),
    "represent": functions_like(
        lambda: zoo.linear, lambda: lambda x: ops.reshape(zoo.linear(x), (-1, zoo.CLASSES, 1)) * np.ones(2, "float32")
    ),
    "decode": functions_like(
        lambda: (
            lambda capsules: ops.reshape(ops.sum(capsules, axis=(1, 2)), (-1, 1, 1, 1)) * np.ones((2, 2, 1), "float32")
        )
    ),
    "sweep.capsules": values.array(lambda: zoo.class_capsules()[0], wrong_length=False),
    "label": values.whole(0, [1, 0], zoo.CLASSES - 1).or_none(),
    "dims": among([None, [0], (1, 0), np.array([1])], [[5], [-1], [0.5], [None], ["a"], [2**32]], [[0, 0]]),
    "offsets": among(
        [[0.0, 0.5], (-0.25,), np.array([0.1])], [["a"], [None], [[1.0]]], [[1e30]], [[NAN], [float("inf")]]
    ),
    "adversarial": values.array(lambda: zoo.images() * 0.9),
    "first": MAPS,
    "second": MAPS,
    "class_sensitivity.first": values.targets(none="bad", beyond="open"),
    "class_sensitivity.second": values.targets(none="bad", beyond="open"),
    "class_sensitivity.x": values.pictures(sizes=False, wrong_length=False),
    "vary.x": values.pictures(sizes=False, wrong_length=False),
    "make_explainer": functions_like(lambda: lambda model: zoo.explainer, nonsense_of=zoo.NONSENSE[:3]),
    "parameter_randomization.model": among([Lazy("cnn", zoo.cnn)], [Lazy("linear", lambda: zoo.linear)]),
    "explainer": functions_like(lambda: zoo.explainer, zoo.saliency),
    "scores": values.models(zoo.cnn, lambda: zoo.linear),
    "conservation.x": values.pictures(wrong_length=False),
    "vote_gradients.votes": values.array(zoo.votes, wrong_length=False),
    "votes": values.array(zoo.votes),
    "capsules": values.array(zoo.class_capsules),
    "coupling": values.array(zoo.coupling, fixed=False),
    "route": functions_like(lambda: lambda votes: ops.sum(votes, axis=1), layers.UniformRouting),
    "loss": functions_like(lambda: lambda lengths: ops.sum(lengths, axis=-1)),
    "sources": among([None, Lazy("cnn", lambda: {"s": zoo.cnn()})], [{"s": None}, {"s": "model"}, [1]], but=["{}"]),
    "objectives": among(
        [None, Lazy("logits", lambda: {"l": attacks.logits})],
        [{"a": 3}, {"a": "votes"}, [1]],
        [{"a": None}],
        but=["{}"],
    ),
    "rows": among(
        [[{"a": 1, "b": 0.5}], [{"a": "x"}, {"b": True}]], [[3], [None], {"a": 1}], [[{}], [{"a": NAN}]], but=["[]"]
    ),
}
TITLES = among([None, ["t"] * zoo.BATCH], ["ttt", ["t"]], [[None] * zoo.BATCH])
TITLES_BY_NAME = among([None, {}, {"a": ["t"] * zoo.BATCH}], [{"a": ["t"]}, {"a": 3}, ["t"]], [{"a": None}], but=["{}"])
PLOT = {
    "robustness_curve.table": among(
        [
            Lazy(
                "table",
                lambda: evaluate.attack_table(
                    zoo.linear, {"FGSM": zoo.fgsm()}, (zoo.images(), zoo.ids()), epsilons=[0.1]
                ),
            )
        ],
        [
            Lazy(
                "no radii", lambda: evaluate.attack_table(zoo.linear, {"FGSM": zoo.fgsm()}, (zoo.images(), zoo.ids()))
            ),
            Lazy("rows", lambda: [{"epsilon": 0.1}]),
            Lazy("other rows", lambda: evaluate.Table([{"epsilon": 0.1}])),
        ],
    ),
    "robustness_curve.accuracy": FLAG,
    "image": values.array(lambda: zoo.images()[0], fixed=False),
    "heatmap": values.array(lambda: zoo.maps()[0]),
    "ax": among([None]),
    "alpha": values.number([0.55, 0.2], 0, 1),
    "cmap": among([None, "jet", "gray"]),
    "vmin": values.number([0.0, 0.2]).or_none(),
    "vmax": values.number([1.0, 0.8]).or_none(),
    "titles": TITLES,
    "columns": values.whole(1, [2, 8]),
    "label": among(["relevance"], open=[None, ""], but=["'nonsense'"]),
    "comparison.images": values.array(zoo.images, wrong_length=False),
    "comparison.maps": values.mapping(MAPS),
    "sweep.images": values.array(lambda: np.full((2, 2, 3, 3, 1), 0.5, "float32"), wrong_length=False),
    "sweep.offsets": among([[0.0, 0.1], (1, 2)], ["xy", [0.0], ["a", "b"]], nan=[[NAN, 0.0]]),
    "sweep.dims": among([None, [0, 1]], ["xy", [0], [0, 1, 2]], [["a", "b"]]),
    "found": values.mapping(IMAGES),
    "adversarial.titles": TITLES_BY_NAME,
    "rows.titles": TITLES_BY_NAME,
    "rows.images": values.mapping(values.pictures(sizes=False, wrong_length=False)),
    "statistics": among(
        [
            Lazy(
                "statistics",
                lambda: {"a": evaluate.vote_statistics(zoo.votes(), zoo.class_capsules(), zoo.coupling(), zoo.ids())},
            )
        ],
        [{"a": 3}, {"a": {}}, {"a": None}, [1]],
    ),
    "bins": values.whole(1, [10, 2], huge=False),
    "lengths": values.array(zoo.lengths, wrong_length=False),
    "grid.images": values.array(zoo.images, wrong_length=False),
    "class_names": among([["a", "b", "c"], ("x", "y", "z")], [["a"], "abc"], [[None] * 3]),
}
PATCHES = {
    "image_shape": among(
        [(6, 6), (6, 6, 1), [6, 8]], [6, "66", (6,), (6, 0), (6, -1), (6.5, 6), ("a", "b"), (None, 6), (True, 6)]
    ),
    "images": values.array(zoo.images, wrong_length=False, not_finite="open"),  # patches may cover what is not finite
    "cut_patches.positions": GENERAL["positions"],
    "patch": values.array(
        lambda: zoo.random(1).uniform(size=(2, 2, 1)).astype("float32"), fixed=False, wrong_length=False
    ),
    "batch": among([3, 1, np.int64(2), [5, 0, 2]], [-1, True, [0.5], [-1], ["a"], [NAN]], but=["[]"]),
    "num_patches": values.whole(0, [1, 2], huge=False),
    "offset": among([(0, 0), (1, 2), [0, 1]], [(0,), (0, -1), (0.5, 0), (99, 0), (True, 0)], [0, 1], but=["3"]),
    "boxes.positions": among(
        [Lazy("positions", lambda: np.array([[0, 0], [3, 3]]))],
        [["a", "b"], [[0.5, 0]], [[NAN, 0]], [1], [1, 2, 3]],
        [[[-1, 0]]],
        but=["[]"],
    ),
}
TAPS = {
    "model": values.models(zoo.cnn, zoo.graph_capsules, zoo.transformer),
    "tap.output": among([None], [], ["nothing", -1, 0, "nonsense", 3]),  # of no consequence for declared taps
    "tap.model": values.models(zoo.cnn, zoo.graph_capsules, zoo.transformer, scored=False),
    "scores.model": values.models(zoo.cnn, zoo.graph_capsules, zoo.transformer, silly=zoo.NONSENSE[:4]),
    "layers.model": Pool([Lazy("cnn", zoo.cnn), Lazy("capsules", zoo.graph_capsules)], [None, "model", 3, [], {}, 1j]),
    "names.model": Pool(
        [Lazy("cnn", zoo.cnn), Lazy("capsules", zoo.graph_capsules), None, 3, Lazy("linear", lambda: zoo.linear)]
    ),
    "input_range.model": Pool(
        [Lazy("cnn", zoo.cnn), Lazy("capsules", zoo.graph_capsules), None, 3, Lazy("linear", lambda: zoo.linear)]
    ),
    "x": among([None, Lazy("images", zoo.images)], [Lazy("maps", zoo.maps)]),
    "predictions.x": values.pictures(wrong_length=False),
    "checked_scores.x": IMAGES,
    "centres.model": values.models(zoo.graph_capsules, bad=(zoo.cnn, zoo.transformer)),
    "centres.name": among(["contributions", "attention", "primary_capsules"], [None, b"x", "nothing", "capsules", 3]),
    "centres.x": values.pictures(wrong_length=False),
    "tap.name": among(
        ["features", ["features"]], [[None], b"x"], ["", "conv", "attention_0", "attention_99"], but=["[]"]
    ),
}
LAYERS = {
    "Ablation.size": values.whole(1, [2, 3], huge=False),
    "Ablation.kind": values.choice("column", "block"),
    "Ablation.fill": values.number([0.0, -1.0]),
    "Ablation.seed": SEED.or_none(),
    "Ablation.images": values.array(zoo.images, wrong_length=False, not_finite="open"),  # it may be left out
    "inputs": values.array(zoo.images, wrong_length=False),
    "MaxPool2D.inputs": values.array(zoo.images, wrong_length=False, infinite="open"),
    "tokens": values.array(zoo.tokens, wrong_length=False),
    "training": Pool([None, False, True]),
    "return_attention_scores": Pool([False, True]),
    "return_coupling": Pool([False, True]),
    "votes": values.array(zoo.votes, wrong_length=False),
    "activations": values.array(lambda: zoo.random(1).uniform(size=(zoo.BATCH, 5)).astype("float32")),
    "NodeContributions.activations": values.array(
        lambda: zoo.random(1).uniform(size=(zoo.BATCH, 5)).astype("float32")
    ).or_none(),
    "NodeContributions.grid": among(
        [(1, 5, 1), [1, 5, 1]], [(1, 5), (5, 1, 1), (0, 5, 1), (1.0, 5, 1), "151", 5, None]
    ),
    "NodeContributions.weights": values.array(zoo.coupled_grid),
    "NodeContributions.votes": values.array(zoo.votes),
    "NodeContributions.lengths": values.array(zoo.lengths).or_none(),
    "mean": FLAG,
    "capsules": values.array(zoo.class_capsules),
    "SelfRouting.capsules": INPUT_CAPSULES,
    "CapsuleMask.capsules": values.array(zoo.class_capsules, wrong_length=False),
    "CapsuleMask.labels": values.labels(rows="open").or_none(),
    "gelu.x": values.array(zoo.tokens, fixed=False, wrong_length=False),
    "CapsuleLength.inputs": values.array(zoo.class_capsules, fixed=False, wrong_length=False),
    "CapsuleTransform.inputs": values.array(zoo.input_capsules, fixed=False, wrong_length=False),
    "GraphCapsPool.capsules": values.array(zoo.primary, wrong_length=False),
    "TopKGraphPool.capsules": values.array(zoo.primary, wrong_length=False),
    "temperature": values.number([1.0, 0.5], 0, above=True),
    "dropout": SHARE,
    "drop_path": SHARE,
    "epsilon": values.number([1e-6, 1e-3], 0),
    "StandardizedConv2D.kernel_size": among([2, 3], [0, -1], [(2, 3), 7, True, 2**31], but=["3"]),  # Keras's own
    "kernel_size": among([2, 3], [0, -1, True, 2**31], [(2, 3), 7], but=["3"]),
    "key_dim": SMALL,
    "OffsetAttention.grid": among([(5, 1), [1, 5]], [0, (5,), (0, 5), (2, 2)]),
    "LeViTBlock.grid": among([(5, 1), [1, 5]], [0, (5,), (0, 5), (2, 2)]),
    "value_ratio": SMALL,
    "OffsetAttention.strides": values.whole(1, [1, 2], huge=False),
    "LeViTBlock.strides": values.whole(1, [1, 2], huge=False),
    "OffsetAttention.dim": SMALL.or_none(),
    "LeViTBlock.dim": among([None], [0, -1, True], [2], but=["3"]),
    "starts_at_zero": FLAG,
    "AveragePoolTo.size": among([2, (3, 1), [7, 2]], [0, -1, True, (2,), (0, 2), 2**31], but=["3"]),
    "strides": among([1, 2], [0, -1, True, 2**31, 2**32], [(1, 2)], but=["3"]),
    "pool_size": among([2, 3], [0, -1, True, 2**31], [(2, 3)], but=["3"]),
    "padding": values.choice("valid", "same"),
    "kernel_initializer": among([None, "he_normal"]),
    "CapsuleTransform.num_capsules": SMALL.or_none(),
    "conv": among(
        [Lazy("conv", lambda: keras.layers.Conv2D(2, 2))],
        [Lazy("activated", lambda: keras.layers.Conv2D(2, 2, activation="relu"))],
    ),
    "NormalizedConv2D.norm": among([Lazy("norm", keras.layers.BatchNormalization)]),
    "sigma": values.number([2.0, 1.0], 0),
    "ratio": values.number([0.5, 1.0], 0, 1, above=True),
    "SelfRouting.num_capsules": values.whole(1, [3, 3], huge=False),
    "num_iterations": values.whole(1, [1, 3], huge=False),
    "inverse_temperature": values.number([0.01, 1.0], 0, above=True),
    "eps": values.number([1e-6, 1e-3], 0, above=True),
    "PatchEmbedding.positions": FLAG,
    "PatchEmbedding.images": values.array(zoo.images, wrong_length=False),
    "PatchEmbedding.patch_size": values.whole(1, [2, 3], huge=False),
    "interpolation": values.choice("bicubic", "bilinear"),
    "resize_positions.positions": values.array(
        lambda: zoo.random(1).normal(size=(4, 3)).astype("float32"), wrong_length=False
    ),
    "resize_positions.grid": among([(2, 2)], [(2,), (3, 3), (0, 0), (1.5, 2)]),
    "new_grid": among([(3, 3), (2, 4)], [(2,), (0, 0), (1.5, 2), (-1, 2)], but=["3"]),
    "dtype": among(["float32", "float16"], open=[None]),
}
LOSSES = {
    "m_plus": values.number([0.9, 0.8], 0, 1),
    "m_minus": values.number([0.1, 0.2], 0, 1),
    "lam": values.number([0.5, 1.0], 0),
    "y_true": values.labels(rows="open"),
    "y_pred": LENGTHS,
    "SubsetAccuracy.y_pred": values.array(zoo.lengths, infinite="open"),
}
MODELS = {
    "input_shape": INPUT_SHAPE,
    "kernel_size": LAYERS["kernel_size"],
    "ConvNetFC.filters": SIZES,
    "units": SIZES,
    "AlexNet.units": SMALL,
    "LeViT.variant": values.choice("128S", "192"),
    "widths": among([None, (8,), [16]], [0, (9,), (0,), (8.5,), (True,), "8"], [(8, 8)], but=["[]"]),
    "depths": among([None, (1,), [2]], [0, (0,), (1.5,), (-1,)], [(1, 1)], but=["[]"]),
    "LeViT.num_heads": among([None, (1,), [2]], [0, (0,), (1.5,), (-1,)], [(1, 1)], but=["[]"]),
    "key_dim": SMALL.or_none(),
    "reconstruction_units": SIZES,
    "strides": among(
        [(1, 1), (1, 2)], [0, (0, 1), (1.5, 1), (-1, 1), (True, 1), (2**31, 1), (2**32, 1)], [1, (), [1, 1]], but=["[]"]
    ),
    "backbone": among([None], [Lazy("linear", lambda: zoo.linear)]),
    "pooling": among(["attention", "top_k"]),
    "images_at_once": values.whole(1, [1, 2]).or_none(),
    "routing": among(["dynamic", "uniform", "em", "self", "rolled", "trainable"]),
    "reconstruction": among([None, "conditional", "unconditional"], [True]),
    "reconstruction_weight": values.number([0.0005, 1.0], 0),
    "depth": values.whole(1, [1, 2], huge=False),
    "ResNet.depth": among([20, 8], [0, -1, 21, True]),
    "head": among(["avg", "fc"]),
    "variant": VARIANT,
    "CapsNet.primary_dim": SMALL.or_none(),
    "AffCapsNet.primary_dim": SMALL.or_none(),
    "ConvNetCRSF.primary_dim": SMALL.or_none(),
    **{f"MLPMixer.{name}": SMALL.or_none() for name in ("width", "depth")},
    **{f"{kind}.mlp_units": SMALL.or_none() for kind in ("VisionTransformer", "DeiT")},
    **{f"{kind}.{name}": SMALL.or_none() for kind in ("VisionTransformer", "DeiT") for name in ("width", "depth")},
    "MLPMixer.token_units": SMALL.or_none(),
    "MLPMixer.channel_units": SMALL.or_none(),
    "pool": among(["token", "avg"]),
    **{name: LAYERS[name] for name in ("temperature", "dropout", "drop_path", "epsilon", "sigma")},
    "mean": MEAN_STD,
    "std": MEAN_STD,
    "stem": among(["3x3", "7x7"]),
    "norm": among(["batch", "group"]),
    "capsules_shape": among([(3, 4)], [(3,), (0, 4), (-1, 4), (1.5, 4)]),
    "build_decoder.image_shape": INPUT_SHAPE,
    "flops.model": Pool(
        [Lazy("cnn", zoo.cnn), Lazy("capsules", zoo.graph_capsules), Lazy("transformer", zoo.transformer)],
        [None, "model", 3, [], {}, 1j, Lazy("linear", lambda: zoo.linear), Lazy("two_inputs", zoo.two_inputs)],
    ),
    "flops.input_shape": Pool([None, zoo.SHAPE, [6, 6, 1]], [(6, 6), (0, 6, 1), (8, 8, 3), "x", 3, (2**40, 6, 1), {}]),
    "skip": among([(), "conv", ["head", "x*"], "nonsense"], [3, None, [3], {}, 1j], but=["[]"]),
}
DATA = {
    "name": values.choice("digits", "mnist", "cifar10"),
    "load.name": values.choice("digits"),
    "split": among(["test", ("train", "test")], [[3]], ["train"], but=["[]"]),
    "image_size": among([None, 8, (6, 8)], [0, -1, (8,), (0, 8), True, (1.5, 8)], but=["3"]),
    "data_dir": Pool([None], [], [3, "nowhere"]),
    "from_arrays.labels": values.labels(classes=False),
    "n": values.whole(1, [3, 1], huge=False),
    "take.dataset": among([Lazy("stream", zoo.batched)], [Lazy("pair", lambda: (zoo.images(), zoo.ids()))]),
    "stream": among([Lazy("stream", zoo.batched)], [Lazy("unbatched", zoo.stream)]),
    "shift": values.whole(0, [1, 0, 2], huge=False),
    "mix.num_classes": among([zoo.CLASSES, np.int64(3), 4], [0, 1, -1, True, 2**31], [2], but=["3"]),
    "mixup": values.number([0.8, 0.0], 0),
    "cutmix": values.number([1.0, 0.0], 0),
    "images": values.array(zoo.images),
    "keys": among(
        [None, [1, 2, 3, 4], Lazy("array", lambda: np.arange(4))],
        [[1], [0.5] * 4, ["a"] * 4, [None] * 4, [NAN] * 4],
        [[-1] * 4, [2**40] * 4],
    ),
    "rotation": values.number([10.0, 0.0], 0, 180),
    "shear": ANGLE,
    "scale": among(
        [(0.9, 1.1), [1.0, 1.0]],
        [(1.1, 0.9), (0, 1), (-1, 1), (1,), (1, 2, 3), (NAN, 1), (1, float("inf")), ("a", "b")],
        [(1e-30, 1)],
    ),
    "translation": values.number([1.0, 0.0], 0),
    "matrices": values.array(lambda: np.tile(np.eye(2, dtype="float32"), (zoo.BATCH, 1, 1))),
    "affine.warp.shifts": values.array(lambda: np.zeros((zoo.BATCH, 2), "float32")),
    "affine.transform.images": values.array(zoo.images, wrong_length=False),
    "affine.place.images": values.array(zoo.images, wrong_length=False),
    "affine.place.size": values.whole(zoo.SIZE, [8, 6], huge=False),
    "affine.uniform.keys": among(
        [Lazy("array", lambda: np.arange(4)), [1, 2]], [[0.5], ["a"], [None], [NAN]], [[-1], [2**40]], but=["[]"]
    ),
    "affine.uniform.n": values.whole(1, [2, 3], huge=False),
    "base": digits(),
    "multidigit.multi_mnist.base": digits(Lazy("one class", lambda: zoo.stream().take(1))),
    "pairs": values.whole(1, [1, 2], huge=False),
    "corruptions.name": values.choice("brightness", "contrast", "gaussian_noise"),
    "severity": values.whole(1, [1, 5], 5),
    "corruptions.images": values.array(zoo.images, wrong_length=False),
    "indices": among(
        [[0, 1], Lazy("of each", lambda: np.zeros((4, 1), int))],
        [[99], [-1], [0.5], [None], [2**32], [NAN]],
        but=["[]"],
    ),
    "grid": EVALUATE["grid"],
}
ROOMS = {
    "ops": OPS,
    "attacks": ATTACKS,
    "explain": EXPLAIN,
    "evaluate": EVALUATE,
    "plot": PLOT,
    "patches": PATCHES,
    "taps": TAPS,
}
ROOMS |= {"layers": LAYERS, "losses": LOSSES, "metrics": LOSSES, "models": MODELS, "data": DATA}


def pool_of(name, parameter):
    """The pool of a parameter of something public, whose name begins with its room; None if there is none."""
    room, *parts = name.split(".")
    for count in range(len(parts), -1, -1):
        pool = ROOMS[room].get(".".join([*parts[:count], parameter]))
        if pool is not None:
            return pool
    return GENERAL.get(parameter)
