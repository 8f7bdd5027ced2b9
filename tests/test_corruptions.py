"""Natural corruptions of images and patches."""

import sys

import numpy as np
import pytest
from scipy import ndimage

pytest.importorskip("tensorflow")

from keras_capsvit.data import corruptions
from keras_capsvit.data.corruptions import CORRUPTIONS, corrupt, corrupt_patches
from keras_capsvit.patches import PatchGrid

# Where the published strengths do not change small images more with each step: their parameters are not in order.
UNEVEN = {"glass_blur", "snow", "frost"}


# Tests that need the library run where the other libraries are.
@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("imagecorruptions")


@pytest.fixture(scope="module")
def images():
    """Colours that change smoothly, for a blur changes neither noise nor nothing."""
    coarse = np.random.default_rng(0).uniform(0.1, 0.9, size=(12, 9, 9, 3))
    return ndimage.zoom(coarse, (1, 33 / 9, 34 / 9, 1), order=1).clip(0, 1).astype("float32")


@pytest.mark.peers
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_results_depend_on_the_seed_and_the_key_only(name, images, library):
    few = images[:4]
    np.random.seed(3)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    corrupted = corrupt(few, name, 3, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert corrupted.shape == few.shape
    assert corrupted.dtype == "float32"
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    np.testing.assert_array_equal(corrupt(few, name, 3, seed=1), corrupted)
    np.testing.assert_array_equal(corrupt(few[2:3], name, 3, seed=1, keys=[2]), corrupted[2:3])
    if name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
        assert not np.array_equal(corrupt(few, name, 3, seed=2), corrupted)
        twice = corrupt(few[[0, 0]], name, 3, seed=1)
        assert not np.array_equal(twice[0], twice[1])


@pytest.mark.peers
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_corruptions_change_more(name, images, library):
    distances = [np.abs(corrupt(images, name, severity) - images).mean() for severity in range(1, 6)]
    assert distances[0] > 0.005
    if name in UNEVEN:
        assert distances[4] > distances[0]
    else:
        assert np.all(np.diff(distances) > 0)


@pytest.mark.peers
def test_a_corruption_is_the_published_one(images, library):
    corrupted = corrupt(images[:1], "contrast", 5)
    pixels = np.rint(255 * images[0]) / 255
    means = pixels.mean(axis=(0, 1))
    np.testing.assert_allclose(corrupted[0], (pixels - means) * 0.05 + means, atol=1 / 255)
    salted = corrupt(images, "impulse_noise", 5)
    assert np.mean((salted == 0) | (salted == 1)) == pytest.approx(0.27, abs=0.02)
    noise = corrupt(np.full((4, 40, 40, 3), 0.5, "float32"), "gaussian_noise", 1) - 0.5
    assert noise.std() == pytest.approx(0.08, abs=0.005)


@pytest.mark.peers
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_small_and_grey_images_stay_as_large_and_grey(name, images, library):
    small = images[:2, :9, :11, :1]
    corrupted = corrupt(small, name, 5)
    assert corrupted.shape == small.shape
    assert np.abs(corrupted - small).mean() > 0.005
    assert corrupt(images[:0], name, 5).shape == (0, 33, 34, 3)


@pytest.mark.peers
def test_patches_are_those_of_the_corrupted_image(images, library):
    grid, few = PatchGrid((33, 34), 8), images[:3]
    indices = grid.draw(3, 5, seed=2)
    corrupted = corrupt_patches(few, grid, indices, "snow", 4, seed=3)
    whole = corrupt(few, "snow", 4, seed=3)
    for b in range(3):
        inside = np.zeros((33, 34), bool)
        for top, left, bottom, right in grid.boxes[indices[b]]:
            inside[top:bottom, left:right] = True
        np.testing.assert_array_equal(corrupted[b][inside], whole[b][inside])
        np.testing.assert_array_equal(corrupted[b][~inside], few[b][~inside])
    np.testing.assert_array_equal(corrupt_patches(few, grid, np.zeros(0, int), "snow"), few)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "rain"}, "Unknown corruption 'rain'; expected one of gaussian_noise, shot_noise"),
        ({"severity": 6}, "severity must be an integer from 1 to 5; received 6"),
        ({"severity": 1.5}, "severity must be an integer from 1 to 5; received 1.5"),
        ({"images": np.zeros((2, 8, 8, 2))}, "with 1 or 3 channels; received float64 of shape"),
        ({"images": np.zeros((2, 8, 8, 3), "uint8")}, "Images must be float in"),
        ({"images": np.full((2, 8, 8, 3), 2.0)}, r"Pixels must lie in \[0, 1\]; received values in \[2.0, 2.0\]"),
        ({"images": np.full((2, 8, 8, 3), np.nan)}, r"Pixels must lie in \[0, 1\]"),
        ({"keys": [1]}, r"keys must be integers of shape \(2,\), one per image"),
    ],
)
def test_what_is_no_corruption_is_refused(change, message):
    arguments = {"images": np.zeros((2, 8, 8, 3)), "name": "snow", "severity": 1, **change}
    with pytest.raises(ValueError, match=message):
        corrupt(**arguments)


def test_patches_that_are_none_are_refused():
    x, grid = np.zeros((2, 8, 8, 3)), PatchGrid((8, 8), 4)
    with pytest.raises(ValueError, match=r"The grid is one of images of \(8, 8\); received images of \(9, 8\)"):
        corrupt_patches(np.zeros((2, 9, 8, 3)), grid, [0], "snow")
    with pytest.raises(ValueError, match=r"indices must be integers of shape \(n,\) or \(2, n\)"):
        corrupt_patches(x, grid, np.zeros((3, 1), int), "snow")
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 4\); received 0 to 4"):
        corrupt_patches(x, grid, [0, 4], "snow")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ImportError, match="need the package imagecorruptions-imaug"):
        corruptions.corrupt(np.zeros((1, 8, 8, 3)), "snow", 1)
