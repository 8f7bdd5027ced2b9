import numpy as np
import pytest
import replicas
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import CapsuleMask, evaluate, taps
from keras_capsvit.ops import squash

rng = np.random.default_rng(0)
IMAGES = rng.uniform(size=(5, 9, 7, 2)).astype("float32")
LABELS = np.array([2, 0, 1, 2, 0])
SCALES = {"scale": (0.9, 1.0, 1.1)}
MIX = rng.normal(size=(9 * 7 * 2, 3 * 4)).astype("float32")


def represent(x):
    """Class capsules (b, 3, 4) that depend on the pixels."""
    return ops.tanh(ops.reshape(ops.matmul(ops.reshape(x, (-1, 126)), MIX), (-1, 3, 4)) / 8)


def inverse(factor, degree, column, row):
    """Where the pixel at (column, row), measured from the centre, came from."""
    angle = np.deg2rad(degree)
    return {
        # Counter-clockwise as seen, so what is on the right came from below it.
        "rotation": (
            np.cos(angle) * column - np.sin(angle) * row,
            np.sin(angle) * column + np.cos(angle) * row,
        ),
        "trans_x": (column - degree, row),
        "trans_y": (column, row - degree),
        "scale": (column / degree, row / degree),
        "shear_x": (column - degree * row, row),
        "shear_y": (column, row - degree * column),
    }[factor]


def bilinear(image, column, row):
    total = np.zeros(image.shape[-1])
    for r in (int(np.floor(row)), int(np.floor(row)) + 1):
        for c in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= r < image.shape[0] and 0 <= c < image.shape[1]:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * image[r, c]
    return total


def varied(image, factor, degree):
    out = np.zeros_like(image)
    middle_row, middle_column = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            column, row = inverse(factor, degree, c - middle_column, r - middle_row)
            out[r, c] = bilinear(image, column + middle_column, row + middle_row)
    return out


def test_the_ranges_of_the_factors():
    ends = {"rotation": (-30, 30), "trans_x": (-4, 4), "trans_y": (-4, 4), "scale": (0.8, 1.2)}
    ends |= {"shear_x": (-0.4, 0.4), "shear_y": (-0.4, 0.4)}
    assert {factor: (min(steps), max(steps)) for factor, steps in evaluate.FACTORS.items()} == ends
    for steps in evaluate.FACTORS.values():
        np.testing.assert_allclose(steps, np.linspace(steps[0], steps[-1], 11), atol=0.005)  # of two decimals


@pytest.mark.parametrize("factor", evaluate.FACTORS)
def test_varied_images_agree_with_a_loop_over_pixels(factor):
    degrees = evaluate.FACTORS[factor][::3]
    result = ops.convert_to_numpy(evaluate.vary(IMAGES[:2], factor, degrees))
    assert result.shape == (2, len(degrees), 9, 7, 2)
    for image, row in zip(IMAGES, result, strict=False):
        for degree, each in zip(degrees, row, strict=True):
            np.testing.assert_allclose(each, varied(image, factor, degree), atol=2e-4)
    still = 1.0 if factor == "scale" else 0.0
    unchanged = ops.convert_to_numpy(evaluate.vary(IMAGES, factor, [still] * 3))
    np.testing.assert_allclose(unchanged, np.stack([IMAGES] * 3, axis=1), atol=1e-6)


def score(vectors):
    """Steps 3 and 4 of thesis 5.3.3 for one image: vectors (degrees, n)."""
    variances = []
    for values in np.asarray(vectors, "float64").T:
        mean = sum(values) / len(values)
        variances.append(sum((value - mean) ** 2 for value in values) / len(values))
    total = 0.0
    for variance in variances:
        p = variance / sum(variances)
        total += p * np.log(p * len(variances)) if p else 0.0
    return total


@pytest.mark.parametrize("batch_size", [1, 25])
def test_compactness_agrees_with_a_loop_over_images(batch_size):
    result = evaluate.compactness(represent, IMAGES, LABELS, batch_size=batch_size)
    assert list(result) == ["rotation", "trans_x", "trans_y", "scale", "shear_x", "shear_y"]
    for factor, value in result.items():
        expected = []
        for image, label in zip(IMAGES, LABELS, strict=True):
            images = ops.convert_to_numpy(evaluate.vary(image[None], factor, evaluate.FACTORS[factor]))[0]
            expected.append(score([ops.convert_to_numpy(represent(each[None]))[0, label] for each in images]))
        assert value == pytest.approx(np.mean(expected), rel=1e-4)
        assert 0 < value < np.log(4)


def test_compactness_keeps_flat_representations_whole_and_calls_in_chunks():
    sizes = []

    def flat(x):
        sizes.append(x.shape[0])
        return ops.reshape(represent(x), (-1, 12))

    result = evaluate.compactness(flat, IMAGES, LABELS[:, None], factors=SCALES, batch_size=7)
    assert sizes == [6, 6, 3]
    vectors = ops.reshape(evaluate.vary(IMAGES, "scale", SCALES["scale"]), (-1, 9, 7, 2))
    expected = [score(each) for each in ops.convert_to_numpy(flat(vectors)).reshape(5, 3, 12)]
    assert result == {"scale": pytest.approx(np.mean(expected), rel=1e-4)}


def returning(vectors):
    """Representation that is a given vector per degree, whatever the images."""
    return lambda x: np.tile(vectors, (x.shape[0] // len(vectors), 1))


finite = st.floats(-10, 10, width=32)


# Three degrees everywhere, because JAX compiles the images' transformation anew for every shape.
@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(finite, min_size=n, max_size=n), min_size=3, max_size=3)))
def test_compactness_lies_between_0_and_log_n(vectors):
    vectors = np.array(vectors)
    result = evaluate.compactness(returning(vectors), IMAGES, LABELS, factors=SCALES)["scale"]
    assert -1e-12 <= result <= np.log(vectors.shape[1]) + 1e-12
    permuted = evaluate.compactness(returning(vectors[::-1, ::-1] * 2), IMAGES, LABELS, factors=SCALES)["scale"]
    assert permuted == pytest.approx(result, abs=1e-5)


@given(st.integers(2, 20), st.integers(0, 19), st.floats(0.01, 10), finite)
def test_compactness_of_a_single_changing_dimension_is_log_n(n, dim, change, base):
    vectors = np.full((3, n), base)
    vectors[1, dim % n] += change
    result = evaluate.compactness(returning(vectors), IMAGES, LABELS, factors=SCALES)["scale"]
    assert result == pytest.approx(np.log(n))
    vectors[1] = vectors[0] * (1 + 1e-7)  # the rounding of float32
    assert evaluate.compactness(returning(vectors), IMAGES, LABELS, factors=SCALES)["scale"] == 0.0
    vectors[1] = vectors[0] + change  # all alike
    result = evaluate.compactness(returning(vectors), IMAGES, LABELS, factors=SCALES)["scale"]
    assert result == pytest.approx(0, abs=1e-9)


def decode(capsules):
    """Images (b, 2, 6, 1) that show every component of (b, 3, 4)."""
    return ops.reshape(capsules, (-1, 2, 6, 1))


@pytest.mark.parametrize("label, moved", [(None, 1), (2, 2)])
@pytest.mark.parametrize("dims", [None, [3, 0]])
def test_sweep_moves_one_dimension_of_one_capsule(label, moved, dims):
    capsules = np.array([[0.1] * 4, [-0.4] * 4, [0.2] * 4])
    result = evaluate.sweep(decode, ops.convert_to_tensor(capsules), label, dims=dims)
    rows = [0, 1, 2, 3] if dims is None else dims
    assert result.shape == (len(rows), 11, 2, 6, 1)
    for row, dim in enumerate(rows):
        for column, offset in enumerate([-0.25, -0.2, -0.15, -0.1, -0.05, 0, 0.05, 0.1, 0.15, 0.2, 0.25]):
            expected = capsules.copy()
            expected[moved, dim] += offset
            np.testing.assert_allclose(result[row, column].reshape(3, 4), expected, atol=1e-6)


def test_compactness_and_sweep_of_a_model(small_model, resized, digits):
    model = small_model(reconstruction="conditional", reconstruction_units=(8,))
    represent = taps.tap(model, "capsules")
    x, y = resized(4, 12), digits[1][:4]
    result = evaluate.compactness(represent, x, y, batch_size=22)
    assert all(0 < value < np.log(6) for value in result.values())
    blank = evaluate.compactness(represent, 0 * x[:2], y[:2], batch_size=22)
    assert set(blank.values()) == {0.0}
    capsules = CapsuleMask()(represent(x), y)[2]
    images = evaluate.sweep(model.decoder, capsules)
    assert images.shape == (6, 11, 12, 12, 1)
    unmoved = ops.convert_to_numpy(model.reconstruct(x, y))[2]
    np.testing.assert_allclose(images[:, 5], np.stack([unmoved] * 6), atol=1e-6)
    assert (np.ptp(images, axis=1).max(axis=(1, 2, 3)) > 1e-4).all()


def routed(batch=3, inputs=5, classes=4, dim=2, seed=0):
    draw = np.random.default_rng(seed)
    votes = draw.normal(size=(batch, inputs, classes, dim)).astype("float32")
    scores = np.exp(draw.normal(size=(batch, inputs, classes)))
    coupling = (scores / scores.sum(-1, keepdims=True)).astype("float32")
    sums = (votes * coupling[..., None]).sum(axis=1)
    capsules = np.array([[replicas.squash(s) for s in row] for row in sums], "float32")
    return votes, capsules, coupling, draw.integers(0, classes, batch)


def test_agreement_agrees_with_the_equation():
    votes, _, coupling, labels = routed()
    target, others = [], []
    for u, c, t in zip(votes, coupling, labels, strict=True):
        terms = []
        for j in range(4):
            s = sum(c[i, j] * u[i, j] for i in range(5))
            terms.append(s @ (s @ s / (1 + s @ s) * s / np.sqrt(s @ s)))  # v_j = g(s_j), Eq. 4.2
        target.append(terms[t])
        others.append(sum(terms) - terms[t])
    result = evaluate.agreement(*routed())
    assert result == (pytest.approx(np.mean(target), rel=1e-5), pytest.approx(np.mean(others), rel=1e-5))
    assert all(isinstance(value, float) for value in result)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4))
def test_agreement_is_the_sum_over_classes_split_in_two(seed, batch, classes):
    votes, capsules, coupling, labels = routed(batch, 3, classes, 2, seed)
    target, others = evaluate.agreement(votes, capsules, coupling, labels)
    s = (votes * coupling[..., None]).sum(axis=1)
    assert target + others == pytest.approx((s * capsules).sum() / batch, rel=1e-4, abs=1e-6)
    assert target >= 0  # squashing keeps the direction
    assert others == 0 if classes == 1 else others >= 0
    constant = np.full((3, classes), 1 / classes, "float32")  # as without routing
    everywhere = evaluate.agreement(votes, capsules, np.tile(constant, (batch, 1, 1)), labels)
    assert evaluate.agreement(*map(ops.convert_to_tensor, (votes, capsules, constant)), labels) == everywhere


@pytest.mark.parametrize("label", range(4))  # so that the true class is sometimes the longest, sometimes not
def test_vote_statistics_agree_with_a_loop(label):
    votes, capsules, coupling, _ = routed()
    labels = np.full(3, label)
    result = evaluate.vote_statistics(votes, capsules, coupling, labels)
    assert {name: array.shape for name, array in result.items()} == {
        "classes": (2, 3),
        "cosine": (2, 3, 5),
        "length": (2, 3, 5),
        "coupling": (2, 3, 5),
    }
    for b in range(3):
        others = [j for j in range(4) if j != label]
        longest = max(others, key=lambda j: np.linalg.norm(capsules[b, j]))
        assert result["classes"][:, b].tolist() == [label, longest]
        for k, j in enumerate((label, longest)):
            for i in range(5):
                u, v = votes[b, i, j], capsules[b, j]
                assert result["length"][k, b, i] == pytest.approx(np.linalg.norm(u), rel=1e-5)
                cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                assert result["cosine"][k, b, i] == pytest.approx(cosine, abs=1e-5)
                assert result["coupling"][k, b, i] == coupling[b, i, j]


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_vote_statistics_of_any_length_stay_in_the_histogram(scale):
    votes, capsules, coupling, labels = routed(batch=50, dim=5)
    votes[:, 0] = scale * capsules
    cosine = evaluate.vote_statistics(votes, capsules, coupling[0], labels)["cosine"]
    np.testing.assert_allclose(cosine[:, :, 0], 0 if scale == 0 else 1, atol=1e-6)
    assert np.abs(cosine).max() <= 1


def pool(votes):
    """Uniform routing."""
    return squash(ops.mean(votes, axis=1))


def test_vote_gradients_agree_with_differences():
    votes = routed()[0]
    weights = np.array([1.0, -2.0, 0.5, 3.0], "float32")

    def loss(lengths):
        return ops.sum(weights * ops.square(lengths), axis=-1)

    result = evaluate.vote_gradients(pool, votes, loss)
    assert result.shape == votes.shape

    def total(votes):
        value = 0.0
        for u in votes.astype("float64"):
            for j, weight in enumerate(weights):
                s = sum(u[:, j]) / len(u)
                value += weight * (s @ s / (1 + s @ s)) ** 2
        return value

    for index in np.ndindex(votes.shape):
        step = np.zeros(votes.shape)
        step[index] = 1e-4
        difference = (total(votes + step) - total(votes - step)) / 2e-4
        assert result[index] == pytest.approx(difference, abs=1e-5)


def test_vote_gradients_tell_rolled_from_unrolled_routing():
    votes = routed()[0]

    def route(votes, hold):
        agreement = ops.sum(votes * pool(votes)[:, None], axis=-1)
        coupling = hold(ops.softmax(agreement, axis=-1))
        return squash(ops.sum(coupling[..., None] * votes, axis=1))

    def gradients(hold):
        return evaluate.vote_gradients(lambda votes: route(votes, hold), votes, lambda lengths: lengths[:, 0])

    rolled, unrolled = gradients(ops.stop_gradient), gradients(lambda coupling: coupling)
    assert np.abs(rolled[:, :, 0]).max() > 0
    np.testing.assert_array_equal(rolled[:, :, 1:], 0)  # other classes act through the coupling only
    assert np.abs(unrolled[:, :, 1:]).max() > 1e-3
    np.testing.assert_array_equal(
        evaluate.vote_gradients(pool, 0 * votes, lambda lengths: lengths[:, 0]), np.zeros(votes.shape)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": IMAGES[0]}, r"channels\), not empty; received \(9, 7, 2\)"),
        ({"x": IMAGES[:0], "labels": LABELS[:0]}, r"not empty; received \(0, 9, 7, 2\)"),
        ({"x": np.full(IMAGES.shape, np.nan)}, "finite images; received NaN"),
        ({"labels": LABELS[:3]}, r"ids of shape \(5,\); received shape \(3,\)"),
        ({"labels": 2 * np.eye(3)[LABELS]}, r"ids of shape \(5,\); received shape \(5, 3\) of float64"),
        ({"labels": LABELS + 1}, "class ids between 0 and 2; received values between 1 and 3"),
        ({"labels": LABELS - 1}, "class ids from 0; received values between -1 and 1"),
        ({"batch_size": 0}, "batch_size must be an integer from 1 to 2147483647; received 0"),
        ({"factors": {"colour": [0, 1]}}, "Unknown factor 'colour'; expected one of rotation, trans_x, trans_y, scale"),
        ({"factors": {"scale": [0, 1]}}, "scale must be above 0; received 0"),
        ({"factors": {"rotation": [5, 5]}}, r"'rotation' needs at least 2 different degrees; received \[5, 5\]"),
        ({"factors": {"rotation": [0, np.inf]}}, "finite degrees of rotation"),
        ({"represent": lambda x: x}, r"dimension\); received shape \(15, 9, 7, 2\)"),
        ({"represent": lambda x: represent(x)[:3]}, r"received shape \(3, 3, 4\)"),
        ({"represent": lambda x: represent(x) * np.nan}, "represent must return finite values"),
    ],
)
def test_compactness_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate.compactness(**{"represent": represent, "x": IMAGES, "labels": LABELS, "factors": SCALES, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"capsules": np.ones((1, 3, 4))},
            r"capsules of shape \(classes, dimension\), not empty; received \(1, 3, 4\)",
        ),
        ({"capsules": np.full((3, 4), np.inf)}, "finite capsules"),
        ({"label": 3}, "label must be an integer from 0 to 2; received 3"),
        ({"label": 1.5}, r"label must be an integer from 0 to 2; received 1.5"),
        ({"dims": [0, 4]}, r"dimension between 0 and 3; received \[0, 4\]"),
        ({"dims": []}, r"at least 1 dimension between 0 and 3; received \[\]"),
        ({"offsets": []}, r"offsets of shape \(n_offsets,\), not empty; received \(0,\)"),
        ({"decode": lambda capsules: capsules}, r"shape \(44, height, width, channels\); received \(44, 3, 4\)"),
    ],
)
def test_sweep_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate.sweep(**{"decode": decode, "capsules": np.ones((3, 4)), **change})


@pytest.mark.parametrize("measure", [evaluate.agreement, evaluate.vote_statistics])
def test_votes_say_what_is_wrong(measure):
    votes, capsules, coupling, labels = routed()
    for change, message in [
        ({"votes": votes[0]}, r"votes of shape \(batch, inputs, classes, dimension\), not empty; received \(5, 4, 2\)"),
        ({"votes": votes * np.nan}, "finite votes"),
        ({"capsules": capsules[:, :2]}, r"\(3, 5, 4, 2\) need capsules \(3, 4, 2\); received \(3, 2, 2\)"),
        ({"coupling": coupling[:2]}, r"coupling of shape \(3, 5, 4\) or \(5, 4\); received \(2, 5, 4\)"),
        ({"coupling": coupling * np.inf}, "finite coupling"),
        ({"labels": [0, 1]}, r"ids of shape \(3,\); received shape \(2,\)"),
        ({"labels": [0, 1, 4]}, "class ids between 0 and 3; received values between 0 and 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure(**{"votes": votes, "capsules": capsules, "coupling": coupling, "labels": labels, **change})


def test_a_single_class_has_no_other():
    with pytest.raises(ValueError, match="at least 2 classes; received 1"):
        evaluate.vote_statistics(*routed(classes=1))


def test_vote_gradients_say_what_is_wrong():
    votes = routed()[0]
    for route, given_votes, loss, message in [
        (pool, votes[0], lambda y: y[:, 0], r"votes of shape .* received \(5, 4, 2\)"),
        (pool, votes * np.nan, lambda y: y[:, 0], "finite votes"),
        (lambda u: u, votes, lambda y: y[:, 0], r"class capsules, of shape \(3, 4, 2\); received \(3, 5, 4, 2\)"),
        (lambda u: (pool(u), u), votes, lambda y: y[:, 0], r"of shape \(3, 4, 2\); received tuple"),
        (pool, votes, lambda y: y, r"one value per image, of shape \(3,\); received \(3, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate.vote_gradients(route, given_votes, loss)
