"""Evaluations that are interrupted go on, and end as if they had not been."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, evaluate, explain
from keras_capsvit.checks import batches_in
from keras_capsvit.evaluate.describe import described
from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.patches import PatchGrid

PGD = attacks.PGD(0.05, step_size=0.01, steps=7, random_start=True, seed=3)


class Interrupted(Exception):
    """As Ctrl-C would."""


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])


def examples(count=10):
    rng = np.random.default_rng(0)
    return rng.uniform(0.3, 0.7, (count, 6, 6, 1)).astype("float32"), rng.integers(0, 3, count)


def streamed(x, y, size=3):
    return [(x[start : start + size], y[start : start + size]) for start in range(0, len(x), size)]


class Stopping:
    """Anything that is called, and interrupted after some calls; a description does not see how many are left."""

    __slots__ = ("inner", "left")

    def __init__(self, inner, left):
        self.inner, self.left = inner, left

    def __call__(self, *args, **kwargs):
        if self.left and not self.left[0]:
            raise Interrupted
        if self.left:
            self.left[0] -= 1
        return self.inner(*args, **kwargs)


def attack_of(left):
    """PGD that is interrupted in the given call; a description is that of PGD alone."""

    class Stopped(attacks.PGD):
        def prepare(self, *args, **kwargs):
            if left and not left[0]:
                raise Interrupted
            if left:
                left[0] -= 1
            return super().prepare(*args, **kwargs)

    return Stopped(**{field.name: getattr(PGD, field.name) for field in dataclasses.fields(PGD) if field.init})


def robustness(model, data, left, work):
    random = evaluate.random_targets(3, seed=5)
    return evaluate.robustness(model, attack_of(left), data, targets=random, work=work)


def attack_table(model, data, left, work):
    stopped = {"PGD/1": attack_of([]), "PGD 2": attack_of(left)}
    return evaluate.attack_table(model, stopped, data, objectives={"logits": attacks.logits}, work=work)


def transfer_matrix(model, data, left, work):
    return evaluate.transfer_matrix({"a": model, "b": network(1)}, attack_of(left), data, work=work)


def detection(model, data, left, work):
    error = keras.ops.mean
    return evaluate.detection(
        model, attack_of(left), data, error=lambda x: error(x, axis=(1, 2, 3)), threshold=0.5, work=work
    )


def fooling_rate(model, data, left, work):
    noise = Stopping(lambda model, x, y: x[:, ::-1], left)
    perturb = lambda model, x, y: noise(model, x, y)  # noqa: E731
    return evaluate.fooling_rate({"a": model, "b": model}, perturb, data, work=work)


def position_map(model, data, left, work):
    class Stopped(attacks.PatchAttack):
        def run(self, *args, **kwargs):
            return Stopping(super().run, left)(*args, **kwargs)

    attack = Stopped(2, steps=3, seed=1)
    return evaluate.position_map(model, attack, data, PatchGrid((6, 6), 3), work=work)


def compare(model, data, left, work):
    explainer = Stopping(explain.Saliency(model), left)
    explainers = {"saliency": lambda x, target: explainer(x, target), "random": explain.RandomMap(2)}
    metrics = {"sum": lambda model, x, y, maps: maps.sum(axis=(1, 2))}
    return evaluate.compare(model, explainers, data, metrics, per_image=True, work=work)


EVALUATIONS = {
    "robustness": robustness,
    "attack_table": attack_table,
    "transfer_matrix": transfer_matrix,
    "detection": detection,
    "fooling_rate": fooling_rate,
    "position_map": position_map,
    "compare": compare,
}


def plain(result):
    """What a result holds, but for seconds."""
    if isinstance(result, tuple):
        return [plain(part) for part in result]
    if isinstance(result, evaluate.Table):
        return [{name: value for name, value in row.items() if "second" not in name} for row in result.rows]
    if dataclasses.is_dataclass(result):
        return {name: value for name, value in vars(result).items() if "second" not in name}
    return result


@pytest.mark.samples(2)
@pytest.mark.parametrize("kind", EVALUATIONS)
def test_an_interrupted_evaluation_ends_as_if_it_had_not_been(kind, tmp_path, capsys):
    run, model, (x, y) = EVALUATIONS[kind], network(), examples(18)
    y[4:] = ops.convert_to_numpy(model(x[4:])).argmax(axis=1)  # some are classified wrongly
    data = streamed(x, y)
    expected = plain(run(model, data, [], None))
    assert capsys.readouterr().out == ""
    with pytest.raises(Interrupted):
        run(model, data, [2], tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    assert kept
    again = plain(run(model, data, [], tmp_path))
    np.testing.assert_equal(again, expected)
    assert any(path.read_bytes() != content for path, content in kept.items())
    np.testing.assert_equal(plain(run(model, data, [0], tmp_path)), expected)  # all of it is read
    assert "/" in capsys.readouterr().out
    assert not list(tmp_path.rglob(".tmp-*"))


def stopping_at(number):
    """An evaluation of four batches, interrupted before one of them."""

    def run(folder, settings=None, x_of=lambda x: x, judges=()):
        x, y = examples()
        with Progress(folder, "means", settings or {"number": 1}, judges=judges) as progress:
            for k, (images, labels) in enumerate(streamed(x_of(x), y)):
                if k == number:
                    raise Interrupted
                progress.batch(lambda images=images: {"mean": images.mean(axis=(1, 2, 3))}, images, labels)
        return progress.results()["mean"]

    return run


def test_what_belongs_to_something_else_is_refused_by_name(tmp_path):
    with pytest.raises(Interrupted):
        stopping_at(2)(tmp_path)
    with pytest.raises(ValueError, match=r"means.npz holds results of another evaluation: number: 1 there, 2 here"):
        stopping_at(4)(tmp_path, {"number": 2})
    with pytest.raises(ValueError, match=r"other: null there, NaN here|other: null there, \"nan\" here"):
        stopping_at(4)(tmp_path, {"number": 1, "other": float("nan")})
    with pytest.raises(ValueError, match=r"other images, labels or models: batch 0 differs. Delete it to start"):
        stopping_at(4)(tmp_path, x_of=lambda x: x[::-1])
    mean = examples()[0].mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(stopping_at(4)(tmp_path), mean)


def test_models_are_told_apart_by_their_weights_or_scores(tmp_path):
    x, y = examples()
    kernel = np.random.default_rng(0).normal(size=(36, 3)).astype("float32")
    with_kernel = lambda x: ops.reshape(x, (-1, 36)) @ KERNELS[0]  # noqa: E731
    for before, after in [(network(), network(1)), (with_kernel, with_kernel)]:
        folder = tmp_path / str(before)[1:9]
        KERNELS[:] = [kernel]
        evaluate.robustness(before, PGD, (x, y), work=folder)
        KERNELS[:] = [-kernel]
        with pytest.raises(
            ValueError, match=r"robustness.npz holds results of (another evaluation: model|other images)"
        ):
            evaluate.robustness(after, PGD, (x, y), work=folder)


KERNELS = []


def test_other_settings_of_attacks_objectives_and_explainers_are_seen(tmp_path):
    x, y = examples(4)
    model = network()
    evaluate.robustness(model, PGD, (x, y), objective=attacks.logits, work=tmp_path)
    with pytest.raises(ValueError, match=r"another evaluation: attack: .*0.05.* there, .*0.06.* here"):
        evaluate.robustness(
            model, dataclasses.replace(PGD, epsilon=0.06), (x, y), objective=attacks.logits, work=tmp_path
        )
    with pytest.raises(ValueError, match=r"another evaluation: objective: "):
        evaluate.robustness(model, PGD, (x, y), work=tmp_path)
    two_samples, three_samples = (described(explain.SmoothGrad(explain.Saliency(model), samples)) for samples in (2, 3))
    assert two_samples != three_samples
    assert described(explain.Saliency(model)) != described(explain.Saliency(network(1)))
    assert described(evaluate.random_targets(3, 1)) != described(evaluate.random_targets(3, 2))
    used = explain.Saliency(model)
    before = described(used)
    used(x)
    assert described(used) == before


def test_a_damaged_file_is_refused_and_what_to_do_is_said(tmp_path):
    with pytest.raises(Interrupted):
        stopping_at(2)(tmp_path)
    path = tmp_path / "means.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"means.npz cannot be read.*Delete it to start from the beginning"):
        stopping_at(4)(tmp_path)
    path.write_bytes(content)
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "result mean": arrays["result mean"] + 1})
    with pytest.raises(ValueError, match=r"means.npz holds no results of .*results as they were written.*Delete it"):
        stopping_at(4)(tmp_path)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(ValueError, match=r"means.npz holds no results of an evaluation.*Delete it"):
        stopping_at(4)(tmp_path)


def test_numbers_of_batches_are_known_where_they_are():
    x, y = examples()
    assert batches_in((x, y), 4) == 3
    assert batches_in(streamed(x, y), 4) is None
    assert batches_in(iter(streamed(x, y)), 4) is None
    assert batches_in((5, 3), 4) is None  # which batches_of refuses in its words
