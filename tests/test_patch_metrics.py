"""Fooling rates of patches, by hand-made models and attacks."""

import dataclasses
import math

import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, evaluate
from keras_capsvit.patches import PatchGrid, apply_patch, boxes

# Class 1 where the pixel at PLACE is bright.
X = np.zeros((8, 6, 6, 1), "float32")
Y = np.zeros(8, int)


def looks_at(top, left):
    return lambda x: ops.stack([0.5 + 0 * x[:, 0, 0, 0], x[:, top, left, 0]], axis=-1)


MODELS = {"corner": looks_at(0, 0), "centre": looks_at(3, 3)}


@dataclasses.dataclass(frozen=True)
class Bright:
    """Paints a white patch, and says that it took as many iterations as the image's number."""

    positions: np.ndarray

    def run(self, model, x, y):
        places = np.broadcast_to(self.positions, (len(x), 1, 2))
        patches = np.ones((len(x), 1, 2, 2, 1), "float32")
        images = apply_patch(x, patches, places)
        return attacks.PatchResult(images, patches, places, np.ones(len(x), bool), np.arange(len(x)))

    def __call__(self, model, x, y):
        return self.run(model, x, y).images


def test_rates_are_of_images_that_all_classify_correctly():
    x = X.copy()
    x[:2, 0, 0], x[4, 3, 3] = 1, 1  # three of them are classified wrongly by one or the other
    kept = evaluate.classified_correctly(MODELS, [(x[:2], Y[:2]), (x[2:], Y[2:])])
    assert [len(batch[0]) for batch in kept] == [5]

    def noise(model, x, y):
        images = x.copy()
        images[:2, 3, 3] = 1
        return images

    table = evaluate.fooling_rate(MODELS, noise, (x, Y))
    assert table["model"] == ["corner", "centre"]
    assert table["examples"] == [5, 5]
    assert table["fooling_rate"] == [0.0, 0.4]
    assert "mean_iterations" not in table.columns


def test_an_attack_is_made_on_each_model_and_tells_its_iterations():
    attack = Bright([[3, 3]])
    table = evaluate.fooling_rate(MODELS, attack, (X, Y))
    assert table["fooling_rate"] == [0.0, 1.0]
    assert table["mean_iterations"][1] == 3.5
    assert table["median_iterations"][1] == 3.5
    assert math.isnan(table["mean_iterations"][0])
    assert min(table["seconds_per_example"]) > 0


def test_rates_of_patch_attacks_are_what_they_found():
    attack = attacks.PatchAttack(2, positions=[(0, 0)], steps=30, step_size=0.1)
    table = evaluate.fooling_rate(MODELS, attack, (X + 0.3, Y))
    result = attack.run(MODELS["corner"], X + 0.3, Y)
    assert table["fooling_rate"] == [1.0, 0.0]
    assert table["mean_iterations"][0] == result.iterations.mean()


def test_without_images_there_is_no_rate():
    table = evaluate.fooling_rate(MODELS, Bright([[0, 0]]), (X, Y + 1))
    assert table["examples"] == [0, 0]
    assert all(math.isnan(rate) for rate in table["fooling_rate"])
    assert np.isnan(evaluate.position_map(MODELS["centre"], Bright([[0, 0]]), (X, Y + 1), PatchGrid((6, 6), 2))).all()


def test_a_map_has_the_rate_of_every_position():
    grid = PatchGrid((6, 6), 2)
    result = evaluate.position_map(MODELS["centre"], Bright([[0, 0]]), [(X[:4], Y[:4]), (X[4:], Y[4:])], grid)
    expected = np.zeros((3, 3))
    expected[1, 1] = 1
    np.testing.assert_array_equal(result, expected)
    real = attacks.PatchAttack(2, steps=20, step_size=0.1)
    np.testing.assert_array_equal(evaluate.position_map(MODELS["centre"], real, (X + 0.3, Y), grid), expected)


def test_shifted_patches_fool_where_they_reach():
    result = Bright([[2, 2]]).run(None, X, Y)
    table = evaluate.shift_table(MODELS["centre"], X, Y, result, [(0, 0), (1, 1), (0, 2), (2, 3), (-2, -2)])
    assert table["fooling_rate"][:3] == [1.0, 1.0, 0.0]
    assert math.isnan(table["fooling_rate"][3])
    assert table["fooling_rate"][4] == 0.0
    assert table["examples"] == [8, 8, 8, 0, 8]
    assert table["dx"] == [0, 1, 2, 3, -2]
    universal = dataclasses.replace(result, patches=result.patches[0])
    assert evaluate.shift_table(MODELS["centre"], X, Y, universal, [(1, 0)])["fooling_rate"] == [1.0]
    moved = dataclasses.replace(result, positions=np.array([[[2, 2]]] * 6 + [[[4, 4]]] * 2))
    assert evaluate.shift_table(MODELS["centre"], X, Y, moved, [(1, 1)])["examples"] == [6]


def test_transfer_is_to_other_models_and_to_the_next_image():
    results = {"corner": Bright([[0, 0]]).run(None, X, Y), "centre": Bright([[2, 2]]).run(None, X, Y)}
    patches = results["centre"].patches.copy()
    patches[0] = 0  # of the first image, which fools nobody there or on the second
    images = apply_patch(X, patches, results["centre"].positions)
    results["centre"] = dataclasses.replace(results["centre"], patches=patches, images=images)
    table = evaluate.patch_transfer(MODELS, X, Y, results)
    assert table.rows == [
        {"made_on": "corner", "corner": 1.0, "centre": 0.0, "other_images": 1.0},
        {"made_on": "centre", "corner": 0.0, "centre": 0.875, "other_images": 0.875},
    ]
    with pytest.raises(ValueError, match="received a universal patch"):
        evaluate.patch_transfer(MODELS, X, Y, {"corner": dataclasses.replace(results["corner"], patches=patches[0])})


def test_the_share_of_a_map_on_its_patches():
    maps = np.zeros((3, 6, 6))
    maps[0, 0, 0], maps[0, 5, 5] = -3, 1
    maps[1, 5, 5], maps[1, 1, 1] = 3, 1
    places = boxes(np.array([[[0, 0], [1, 1]]] * 3), 2)  # they overlap
    result = evaluate.patch_share(maps, places)
    np.testing.assert_allclose(result["sum"], [0.75, 0.25, 0])
    assert result["max"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(evaluate.patch_share(np.ones((3, 6, 6)), places)["sum"], 7 / 36)


def test_attacks_that_return_more_than_images_but_take_no_iterations():
    table = evaluate.fooling_rate(MODELS, attacks.Square(0.6, queries=200), (X, Y))
    assert table["fooling_rate"] == [1.0, 1.0]  # a window over one pixel is all it takes
    assert "mean_iterations" not in table.columns
