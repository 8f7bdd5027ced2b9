"""Grids of patches, positions, and images with patches on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_capsvit.patches import PatchGrid, apply_patch, check_positions, cut_patches, random_positions

X = np.random.default_rng(0).uniform(size=(3, 7, 9, 2)).astype("float32")


def test_a_grid_numbers_patches_row_by_row():
    grid = PatchGrid((7, 9, 2), (2, 4))
    assert (grid.rows, grid.columns, len(grid)) == (3, 2, 6)
    assert grid.positions.tolist() == [[0, 0], [0, 4], [2, 0], [2, 4], [4, 0], [4, 4]]
    assert grid.boxes.tolist()[3] == [2, 4, 4, 8]
    shifted = PatchGrid((7, 9), 2, offset=(1, 2))
    assert (shifted.rows, shifted.columns) == (3, 3)
    assert shifted.positions[[0, -1]].tolist() == [[1, 2], [5, 6]]
    assert PatchGrid([7, 9], np.int64(2)) == PatchGrid((7, 9, 2), 2)
    assert hash(grid) == hash(PatchGrid((7, 9), (2, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((7, 9), 0), "patch_size must be an integer from 1, or a pair of such; received 0"),
        (((7, 9), 2.0), "patch_size must be an integer from 1"),
        (((7,), 2), r"image_shape must be \(H, W\) or \(H, W, C\), integers from 1; received \(7,\)"),
        (((7, 9), 8), r"A patch must fit into the image; received patches of \(8, 8\) from \(0, 0\)"),
    ],
)
def test_grids_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchGrid(*arguments)


def test_grids_refuse_offsets_that_are_none_and_too_many_patches():
    with pytest.raises(ValueError, match="offset must be an integer from 0"):
        PatchGrid((7, 9), 2, offset=(-1, 0))
    with pytest.raises(ValueError, match="num_patches must be an integer from 0 to 12; received 13"):
        PatchGrid((7, 9), 2).draw(1, 13)


@given(st.integers(0, 12), st.integers(0, 3))
def test_drawn_patches_differ_and_depend_on_seed_and_number_only(count, seed):
    grid = PatchGrid((7, 9), 2)
    drawn = grid.draw(4, count, seed=seed)
    assert drawn.shape == (4, count)
    assert all(len(set(row)) == count for row in drawn.tolist())
    np.testing.assert_array_equal(drawn[:2], grid.draw(2, count, seed=seed))


def test_seeds_and_images_differ():
    drawn = PatchGrid((64, 64), 4).draw(2, 5, seed=0)
    assert set(drawn[0]) != set(drawn[1])
    assert not np.array_equal(drawn, PatchGrid((64, 64), 4).draw(2, 5, seed=1))
    assert not np.array_equal(drawn, PatchGrid((64, 64), 4).draw(2, 5, seed=(0, 1)))


@given(st.integers(1, 3), st.integers(0, 20))
def test_random_positions_lie_inside_and_apart(count, seed):
    positions = random_positions((7, 9, 2), (2, 3), 4, count, seed=seed)
    pixels = apply_patch(np.zeros((4, 7, 9, 1)), np.ones((2, 3, 1)), positions)
    assert np.all(pixels.sum(axis=(1, 2, 3)) == 6 * count)
    np.testing.assert_array_equal(positions[:2], random_positions((7, 9), (2, 3), 2, count, seed=seed))


def test_random_positions_reach_every_place_and_say_when_there_is_none():
    positions = random_positions((3, 4), 2, 200)
    assert {tuple(each) for each in positions[:, 0].tolist()} == {(i, j) for i in range(2) for j in range(3)}
    with pytest.raises(ValueError, match=r"3 patches of \(2, 2\) on images of \(3, 4\) overlapped 1000 times"):
        random_positions((3, 4), 2, 1, 3)


def replica(images, patches, positions):
    images = images.copy()
    for b in range(len(images)):
        for k in range(positions.shape[1]):
            for i in range(patches.shape[2]):
                for j in range(patches.shape[3]):
                    images[b, positions[b, k, 0] + i, positions[b, k, 1] + j] = patches[b, k, i, j]
    return images


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9), st.integers(0, 5))
def test_patches_replace_pixels_the_last_on_top(count, height, width, seed):
    random = np.random.default_rng(seed)
    patches = random.uniform(size=(3, count, height, width, 2)).astype("float32")
    positions = random.integers([8 - height, 10 - width], size=(3, count, 2))
    before = X.copy()
    patched = apply_patch(X, patches, positions)
    np.testing.assert_array_equal(patched, replica(X, patches, positions))
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(cut_patches(patched, positions, (height, width))[:, -1], patches[:, -1])


def test_one_patch_serves_all_images_and_positions():
    patches = np.random.default_rng(1).uniform(size=(2, 2, 3, 2)).astype("float32")
    places = np.array([[0, 1], [4, 5]])
    every = np.broadcast_to(patches, (3, 2, 2, 3, 2)), np.broadcast_to(places, (3, 2, 2))
    expected = replica(X, *every)
    np.testing.assert_array_equal(apply_patch(X, patches, places), expected)
    np.testing.assert_array_equal(apply_patch(X, every[0], places), expected)
    np.testing.assert_array_equal(apply_patch(X, patches, every[1]), expected)
    patched = apply_patch(X, patches[0], (0, 1))
    np.testing.assert_array_equal(patched, replica(X, every[0][:, :1], every[1][:, :1]))
    assert apply_patch(X, patches[0], np.zeros((0, 2), int)).tolist() == X.tolist()
    assert apply_patch((X * 255).astype("uint8"), np.full((1, 1, 2), 7), (0, 0)).dtype == "uint8"


@pytest.mark.long
def test_a_saved_patch_needs_nothing_else(tmp_path, fresh_process):
    np.save(tmp_path / "patch.npy", np.ones((2, 2, 3)))
    code = """
import sys
import numpy as np
from keras_capsvit.patches import PatchGrid, apply_patch
patch = np.load(sys.argv[1], allow_pickle=False)
print(apply_patch(np.zeros((1, 8, 8, 3)), patch, PatchGrid((8, 8), 2).positions[[3, 5]]).sum())
"""
    assert fresh_process(code, tmp_path / "patch.npy").split()[-1] == "24.0"


@pytest.mark.parametrize(
    ("images", "patch", "positions", "message"),
    [
        (X[0], np.ones((2, 2, 2)), (0, 0), r"Images must have shape .*; received \(7, 9, 2\)"),
        (X, np.ones((2, 2, 3)), (0, 0), r"A patch must have shape \(h, w, 2\), .*; received \(2, 2, 3\)"),
        (X, np.ones((2, 2)), (0, 0), "A patch must have shape"),
        (X, np.ones((3, 2, 2, 2)), [(0, 0), (1, 1)], "Expected a patch for each of 2 positions"),
        (X, np.ones((2, 1, 2, 2, 2)), (0, 0), "for 3 images; received patches"),
        (X, np.ones((2, 2, 2)), (6, 0), r"must lie within images of \(7, 9\); received the position \(6, 0\)"),
        (X, np.ones((2, 2, 2)), (0, -1), r"received the position \(0, -1\)"),
        (X, np.ones((2, 2, 2)), (0.0, 1.0), r"Positions must be integers of shape \(2,\), \(n, 2\) or \(3, n, 2\)"),
        (X, np.ones((2, 2, 2)), [0, 0, 0], "Positions must be integers of shape"),
        (X, np.ones((2, 2, 2)), np.zeros((2, 1, 2), int), "Expected positions for 3 images; received 2"),
    ],
)
def test_what_does_not_fit_is_refused(images, patch, positions, message):
    with pytest.raises(ValueError, match=message):
        apply_patch(images, patch, positions)


def test_positions_are_spread_over_images():
    assert check_positions((1, 2), (2, 2), X.shape).tolist() == [[[1, 2]]] * 3
