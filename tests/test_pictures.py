"""Folders of pictures: sizes, modes and names of all kinds are read right, or refused before anything is computed."""

import numpy as np
import pytest
from PIL import Image

from keras_capsvit import data
from keras_capsvit.data.pictures import read_picture

pytestmark = pytest.mark.tensorflow
rng = np.random.default_rng(0)
SHAPE = (6, 5, 3)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def coloured(size=(5, 6)):
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype="uint8"))


def folder_of(path, names, count=2):
    for name in names:
        for number in range(count):
            save(path / name / f"{number}.png", coloured())
    return path


def test_pixels_are_those_of_the_file(tmp_path):
    image = coloured()
    pixels = read_picture(save(tmp_path / "a.png", image), SHAPE)
    np.testing.assert_allclose(pixels, np.asarray(image) / 255, atol=1e-6)
    assert pixels.dtype == "float32"
    grey = read_picture(tmp_path / "a.png", (6, 5, 1))
    np.testing.assert_allclose(grey[..., 0], np.asarray(image.convert("L")) / 255, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_not_cut_off(tmp_path, channels):
    values = rng.integers(0, 65536, (6, 5)).astype("uint16")
    pixels = read_picture(save(tmp_path / "deep.png", Image.fromarray(values)), (6, 5, channels))
    for channel in range(channels):
        np.testing.assert_allclose(pixels[..., channel], values / 65535, atol=1e-6)


def test_transparent_pixels_lie_on_white(tmp_path):
    source = rng.integers(0, 256, (6, 5, 4), dtype="uint8")
    source[0, 0, 3], source[0, 1, 3] = 0, 255
    pixels = read_picture(save(tmp_path / "a.png", Image.fromarray(source)), SHAPE)
    np.testing.assert_allclose(pixels[0, 0], 1)
    np.testing.assert_allclose(pixels[0, 1], source[0, 1, :3] / 255, atol=1e-6)


@pytest.mark.parametrize("mode, suffix", [("CMYK", "jpg"), ("P", "png"), ("1", "png"), ("LA", "png"), ("L", "gif")])
def test_other_modes_become_red_green_and_blue(tmp_path, mode, suffix):
    image = coloured().convert(mode)
    pixels = read_picture(save(tmp_path / f"a.{suffix}", image), SHAPE)
    expected = np.asarray(image.convert("RGB"), "float32") / 255
    assert pixels.shape == SHAPE
    np.testing.assert_allclose(pixels, expected, atol=0.25 if suffix == "jpg" else 1e-6)


def test_floats_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(rng.uniform(size=(6, 5)).astype("float32")))
    with pytest.raises(ValueError, match="its pixels are floats"):
        read_picture(path, SHAPE)


def test_sizes_may_differ(tmp_path):
    save(tmp_path / "a" / "small.png", coloured((2, 3)))
    save(tmp_path / "b" / "large.jpg", coloured((50, 40)))
    pictures = data.Pictures(tmp_path, SHAPE)
    ((x, y),) = pictures
    assert x.shape == (2, *SHAPE)
    assert y.tolist() == [0, 1]
    assert (len(pictures), pictures.class_names, pictures.empty) == (1, ["a", "b"], [])


def test_classes_by_name_by_number_and_in_order(tmp_path):
    by_number = data.Pictures(folder_of(tmp_path / "numbers", ["10", "9"]), SHAPE)
    assert by_number.labels.tolist() == [9, 9, 10, 10]
    by_name = data.Pictures(folder_of(tmp_path / "names", ["cat", "ant"]), SHAPE, class_names=["dog", "cat", "ant"])
    assert by_name.labels.tolist() == [1, 1, 2, 2]
    strange = ["<b>ünï & 'code'</b>".replace("/", "\N{FRACTION SLASH}"), "猫 $x^2$"]
    in_order = data.Pictures(folder_of(tmp_path / "strange", strange), SHAPE)
    assert in_order.class_names == sorted(strange)
    with pytest.raises(ValueError, match=r"'wolf'.* are no names of classes"):
        data.Pictures(folder_of(tmp_path / "wrong", ["wolf", "cat"]), SHAPE, class_names=["dog", "cat", "ant"])
    with pytest.raises(ValueError, match="different classes"):
        data.Pictures(folder_of(tmp_path / "twice", ["1", "01"]), SHAPE)


def test_bounds_and_numbers(tmp_path):
    folder_of(tmp_path, ["0", "1", "2"], count=3)
    plain, scaled = (data.Pictures(tmp_path, SHAPE, bounds=bounds, batch_size=4) for bounds in ((0, 1), (-1, 1)))
    assert [len(y) for _, y in plain] == [4, 4, 1]
    x, y = plain.read([7, 0])
    assert y.tolist() == [2, 0]
    np.testing.assert_allclose(scaled.read([7, 0])[0], 2 * x - 1, atol=1e-6)
    np.testing.assert_array_equal(next(iter(plain))[0][0], x[1])


def test_files_that_are_no_pictures(tmp_path):
    folder_of(tmp_path, ["a", "b"])
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"whatever")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"whatever")
    assert len(data.Pictures(tmp_path, SHAPE).files) == 4
    (tmp_path / "b" / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as a picture"):
        data.Pictures(tmp_path, SHAPE)


def test_a_picture_that_is_cut_off_is_named(tmp_path):
    path = folder_of(tmp_path, ["a"]) / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"0\.png cannot be read as a picture"):
        list(data.Pictures(tmp_path, SHAPE))


def test_empty_classes_keep_their_place(tmp_path):
    folder_of(tmp_path, ["a", "c"])
    (tmp_path / "b").mkdir()
    pictures = data.Pictures(tmp_path, SHAPE)
    assert pictures.labels.tolist() == [0, 0, 2, 2]
    assert (pictures.class_names, pictures.empty) == (["a", "b", "c"], ["b"])


def test_folders_without_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a folder with a folder of pictures"):
        data.Pictures(tmp_path / "none", SHAPE)
    with pytest.raises(ValueError, match="there is no folder in it"):
        data.Pictures(tmp_path, SHAPE)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="there are none"):
        data.Pictures(tmp_path, SHAPE)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        data.Pictures(folder_of(tmp_path, ["a"]), (6, 5, 2))
