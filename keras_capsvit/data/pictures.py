"""Pictures in a folder of classes, of any size and kind, as images of one shape; read a batch at a time."""

import contextlib
import pathlib
import warnings

import numpy as np
from PIL import Image

from keras_capsvit import checks
from keras_capsvit.files import check_exists, reading, refuse

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")  # none that runs another program
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
MOST_PIXELS = 2**26  # of a picture
_KIND = "a picture"
_DEEP = ("I", "I;16", "I;16B", "I;16L")  # grey values of 16 bits, which Pillow would cut off at 255
_BATCH = 32


@contextlib.contextmanager
def opened(path, *, decoded=True):
    """A picture file as a PIL image; refused by name if it is damaged, none, or of more than MOST_PIXELS.

    Args:
        path: path of the file.
        decoded: bool, whether its pixels are read, or only what it begins with.
    """
    check_exists(path, _KIND)
    with reading(path, _KIND), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path, formats=FORMATS)
    with image:
        if image.width * image.height > MOST_PIXELS:
            refuse(path, _KIND, f"it has {image.width} x {image.height} pixels", f"Give it at most {MOST_PIXELS:,}.")
        if decoded:
            with reading(path, _KIND):
                image.load()
        yield image


def read_picture(path, shape):
    """Pixels of a picture in [0, 1], resized bilinearly.

    Grey values of 16 bits are divided by 65,535. Palettes, CMYK and what else there is become red, green and blue, or
    grey; what is transparent lies on white. The first picture of an animation counts.

    Args:
        path: path of the file.
        shape: ints ``(H, W, C)`` with 1 or 3 channels.

    Returns:
        float32 array ``(H, W, C)``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for what is no picture, is damaged, or has floats for pixels.
    """
    height, width, channels = shape
    with opened(path) as image:
        if image.mode == "F":
            refuse(path, _KIND, "its pixels are floats, of a range that it does not tell", "Write it with integers.")
        if image.mode in _DEEP:
            grey = np.asarray(image, "float32") / 65535
            image = Image.fromarray(grey.clip(0, 1))
        else:
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), "float32")
        pixels = pixels if image.mode == "F" else pixels / 255
    return np.broadcast_to(pixels.reshape(height, width, -1), shape).astype("float32")


class Pictures:
    """Pictures in a folder for each class, which are read when they are asked for.

    Args:
        folder: path. A folder in it is a class: the one of that name, if all folders have names out of
            ``class_names``; else that of its number, if all are named by numbers; else classes are in the order of the
            folders' names. Pictures may lie in folders inside of it; files that do not end like pictures, and hidden
            ones, are passed over.
        shape: ints ``(H, W, C)`` that pictures are resized to, with 1 or 3 channels.
        class_names: list of str, or None.
        bounds: pair of floats, the values of black and white.
        batch_size: int, pictures of a batch.

    Attributes:
        image_shape: tuple ``(H, W, C)``.
        labels: int array ``(n,)``, class ids.
        class_names: list of str, of all classes up to the highest id.
        files: list of paths.
        empty: list of str, folders without a picture.

    Call: iterating gives batches ``(images (b, H, W, C), labels (b,))`` in the order of classes and files.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a folder without folders or pictures; for files that end like pictures and are none, which it
            names; and for other channels.

    Example::

        pictures = data.Pictures("pets", (224, 224, 3))
        print(evaluate.robust_accuracy(model, attack, pictures))
    """

    def __init__(self, folder, shape, *, class_names=None, bounds=(0.0, 1.0), batch_size=_BATCH):
        folder = pathlib.Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"Expected a folder with a folder of pictures for each class at {folder}.")
        self.image_shape = tuple(
            checks.integers("shape", shape, (3,), "(3,), height, width and channels", low=1).tolist()
        )
        if self.image_shape[-1] not in (1, 3):
            raise ValueError(f"Pictures have 1 or 3 channels; received a shape of {self.image_shape}.")
        self._low, self._high = map(float, checks.bounds(bounds))
        self.batch_size = checks.batch_size(batch_size)
        classes = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        if not classes:
            raise ValueError(f"Expected a folder of pictures for each class in {folder}; there is no folder in it.")
        ids, self.class_names = _ids([each.name for each in classes], class_names)
        files = [
            (number, file) for number, each in sorted(zip(ids, classes, strict=True)) for file in _pictures_in(each)
        ]
        if not files:
            raise ValueError(f"Expected pictures ({', '.join(SUFFIXES)}) in the folders of {folder}; there are none.")
        self.files = [file for _, file in files]
        self.labels = np.array([number for number, _ in files])
        filled = set(self.labels.tolist())
        self.empty = [each.name for number, each in zip(ids, classes, strict=True) if number not in filled]
        self._check()

    def __len__(self):
        """Number of batches."""
        return -(-len(self.files) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.files), self.batch_size):
            yield self.read(np.arange(start, min(start + self.batch_size, len(self.files))))

    def read(self, numbers):
        """Images ``(k, H, W, C)`` and class ids ``(k,)`` by their numbers.

        Args:
            numbers: ints ``(k,)``.
        """
        images = np.stack([read_picture(self.files[number], self.image_shape) for number in numbers])
        return self._low + images * np.float32(self._high - self._low), self.labels[np.asarray(numbers)]

    def described(self):
        """What the images depend on, as JSON takes it: names, sizes and times of files."""
        stats = [file.stat() for file in self.files]
        files = [[str(file), each.st_size, each.st_mtime_ns] for file, each in zip(self.files, stats, strict=True)]
        return {"files": files, "shape": list(self.image_shape), "bounds": [self._low, self._high]}

    def _check(self):
        """Refuse files that are no pictures, before anything is computed from others."""
        wrong = []
        for file in self.files:
            try:
                with opened(file, decoded=False):
                    pass
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            more = f" So are {len(wrong) - 1} others." if len(wrong) > 1 else ""
            raise ValueError(f"Expected pictures only. {wrong[0]}{more} Take them away, or give them another ending.")


def _ids(folders, class_names):
    """Class ids of folders by their names, and the names of classes."""
    if class_names is not None:
        class_names = [str(name) for name in class_names]
        if set(folders) <= set(class_names):
            return [class_names.index(name) for name in folders], class_names
    if all(name.isdecimal() and name.isascii() for name in folders):
        ids = [int(name) for name in folders]
        if len(set(ids)) < len(ids):
            raise ValueError(f"Expected folders of different classes; received {folders}.")
        return ids, class_names or [str(number) for number in range(max(ids) + 1)]
    if class_names is not None and len(class_names) != len(folders):
        others = [name for name in folders if name not in class_names]
        raise ValueError(
            f"Expected folders named like classes, or by their numbers, or one for each of {len(class_names)} classes; "
            f"received {len(folders)} folders, of which {others[:5]} are no names of classes."
        )
    return list(range(len(folders))), class_names or folders


def _pictures_in(folder):
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted(file for file in files if file.is_file())
