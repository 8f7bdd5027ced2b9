"""Encoded images in the graph: what is decoded is what Pillow sees, and what is too large is refused by its header."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.tensorflow
LIMIT = 10_000
SIZE = (20, 24)


@functools.cache
def decoder(channels=3, dtype="float32", size=SIZE):
    """Function from a list of bytes to images in [0, 255]."""
    import tensorflow as tf

    from keras_capsvit.serving import encoded

    spec = tf.TensorSpec((None, *size, channels), dtype)
    signature = [tf.TensorSpec((None,), tf.string)]
    decode = tf.function(lambda files: encoded.pixels(files, spec, (0.0, 255.0), LIMIT), signature, autograph=False)
    return lambda *files: decode(tf.constant(files, tf.string, (len(files),))).numpy()


@pytest.fixture
def refused():
    """Message of the error that a list of bytes is refused with."""
    import tensorflow as tf

    def refuse(*files, channels=3):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            decoder(channels)(*files)
        return error.value.message

    return refuse


def photo(*size):
    """Smooth uint8 pixels ``(H, W, 3)``, which JPEG keeps."""
    rows, columns = np.meshgrid(*(np.linspace(0, 1, side) for side in size), indexing="ij")
    return (255 * np.stack([rows, columns, (rows + columns) / 2], axis=-1)).astype("uint8")


def saved(picture, kind="png", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, data=b"", before_header=b"", *, bits=8, colour=0, interlaced=0):
    """PNG of a header and of rows, which may contradict it; ``before_header`` stands before it."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = [before_header, chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(width, height):
    """JPEG whose header says another size than its data have."""
    file = bytearray(saved(Image.fromarray(photo(*SIZE)), "jpeg"))
    at = file.index(b"\xff\xc0")  # start of frame: length, bits, height, width
    file[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(file)


def test_every_kind_of_png_and_jpeg_is_seen_as_pillow_does():
    colour = Image.fromarray(photo(*SIZE))
    grey = colour.convert("L")
    with_alpha = [picture.copy() for picture in (colour, grey)]
    for picture in with_alpha:
        picture.putalpha(77)
    deep = np.asarray(grey, "uint16") * 256 + 200
    lossy = {
        "JPEG": saved(colour, "jpeg"),
        "grey JPEG": saved(grey, "jpeg"),
        "progressive JPEG": saved(colour, "jpeg", progressive=True),
    }
    files = {
        "colour": (colour, saved(colour)),
        "grey": (grey, saved(grey)),
        "colour and alpha": (colour, saved(with_alpha[0])),
        "grey and alpha": (grey, saved(with_alpha[1])),
        "palette": (colour.quantize(64).convert("RGB"), saved(colour.quantize(64))),
        "1 bit": (grey.convert("1", dither=0).convert("L"), saved(grey.convert("1", dither=0))),
        "16 bits": (grey, saved(Image.fromarray(deep))),
        **{name: (Image.open(io.BytesIO(file)), file) for name, file in lossy.items()},
    }
    for channels in (3, 1):
        seen = decoder(channels)(*(file for _, file in files.values()))
        for (kind, (picture, _)), pixels in zip(files.items(), seen, strict=True):
            expected = np.asarray(picture.convert("RGB" if channels == 3 else "L"), "float32")
            assert np.abs(pixels - expected.reshape(pixels.shape)).max() < (6 if "JPEG" in kind else 1.5), (
                channels,
                kind,
            )
    cmyk = saved(colour.convert("CMYK"), "jpeg", quality=95)
    assert np.abs(decoder(3)(cmyk)[0] - np.asarray(colour)).max() < 8


def test_a_grey_model_refuses_cmyk_by_its_name(refused):
    cmyk = saved(Image.fromarray(photo(*SIZE)).convert("CMYK"), "jpeg")
    assert "encoded: expected a JPEG in grey, or red, green and blue; received one in CMYK" in refused(cmyk, channels=1)


def test_integers_are_rounded():
    pixels = photo(*SIZE)
    np.testing.assert_array_equal(decoder(dtype="uint8")(saved(Image.fromarray(pixels)))[0], pixels)


@pytest.mark.parametrize("size", [(16_000, 16_000), (101, 100), (65_536, 1), (1, 70_000), (2**31 - 1, 2**31 - 1)])
def test_what_is_too_large_is_not_decoded(refused, size):
    # Its rows are missing, which the decoder would tell.
    message = refused(png(*size))
    assert f"encoded: expected at most {LIMIT} pixels, 1 to 65535 a side" in message
    assert f"[{size[0]} {size[1]}]" in message


def test_a_jpeg_is_measured_by_its_header(refused):
    for size in ((60_000, 50_000), (101, 100)):
        assert f"received a header of width and height] [{size[0]} {size[1]}]" in refused(jpeg(*size)).replace("\n", "")


def test_the_limit_itself_is_allowed():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), "uint8")
    (seen,) = decoder(size=(100, 100))(saved(Image.fromarray(pixels)))
    np.testing.assert_allclose(seen, pixels, rtol=1e-6)


def test_sizes_that_are_none_and_headers_that_hide_are_refused(refused):
    for size in ((0, 5), (5, 0), (2**31, 1), (2**32 - 1, 2**32 - 1)):
        assert "1 to 65535 a side" in refused(png(*size))
    hidden = png(16_000, 16_000, before_header=chunk(b"teXt", b"before the header"))
    assert "encoded: expected bytes of JPEG or PNG files; received others, at] [0]" in refused(hidden)
    apple = png(16_000, 16_000, before_header=chunk(b"CgBI", b"\0\0\0\0"))
    assert "JPEG or PNG" in refused(apple)


def test_data_that_contradict_the_header_are_an_error_or_what_the_header_says(refused):
    rows = b"".join(b"\0" + bytes([40 * row] * 4) for row in range(4))
    (seen,) = decoder(1, size=(4, 4))(png(4, 4, rows + b"\0\1\2\3\4" * 1000))  # more than it says
    np.testing.assert_allclose(seen[..., 0], np.repeat(40.0 * np.arange(4)[:, None], 4, axis=1), rtol=1e-6)
    whole = saved(Image.fromarray(photo(*SIZE)))
    damaged = {
        "less than it says": png(90, 90, rows),
        "no data": png(4, 4),
        "checksum": whole[:29] + bytes([whole[29] ^ 1]) + whole[30:],
        "flipped": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        **{f"cut at {end}": whole[:end] for end in (8, 16, 23, 24, 33, 60, len(whole) // 2, len(whole) - 20)},
    }
    whole = saved(Image.fromarray(photo(*SIZE)), "jpeg")
    damaged |= {f"JPEG cut at {end}": whole[:end] for end in (3, 4, 20, 170, len(whole) // 2)}
    for kind, file in damaged.items():
        assert "encoded" in refused(file), kind


def test_other_files_empty_ones_and_bad_ones_in_a_batch_are_refused_with_their_place(refused):
    colour = Image.fromarray(photo(*SIZE))
    good = saved(colour)
    for bad in (
        b"",
        b"\x89PNG",
        b"\xff\xd8",
        b"text",
        saved(colour, "gif"),
        saved(colour, "bmp"),
        saved(colour, "webp"),
    ):
        message = refused(good, bad, good, bad)
        assert "encoded: expected bytes of JPEG or PNG files; received others, at] [1 3]" in message
    assert "at most" in refused(good, png(101, 100), good)
    assert "encoded" in refused(good, good[:60], good)
    assert "at least one image; received an empty batch" in refused()
