"""One form for all that can be wrong with a file."""

import contextlib
import json
import pathlib

_BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive, as .npz and .keras are",
    b"\x93NUMPY": "a single array, .npy",
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x80\x02": "a pickle, which is never read",
    b"\x80\x03": "a pickle, which is never read",
    b"\x80\x04": "a pickle, which is never read",
    b"\x80\x05": "a pickle, which is never read",
    b"MATLAB": "a MATLAB file",
}
_REMEDY = "Write, copy or download it again."


class FileError(ValueError):
    """A file that cannot be read: damaged, cut off, encrypted, of another kind, or too large for what it should be."""


@contextlib.contextmanager
def reading(path, kind, remedy=_REMEDY):
    """Put whatever goes wrong while a file is read into an error that names the file and says what to do.

    Args:
        path: path of the file.
        kind: str, what the file should be, with its article.
        remedy: str, what to do.

    Raises:
        FileError: instead of any other exception, except the system's own for files that are missing or not ours to
            read, which name the file.
    """
    try:
        yield
    except (FileError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        refuse(path, kind, _reason(error), remedy, error)


def refuse(path, kind, reason, remedy=_REMEDY, cause=None):
    """Raise the error that ``reading`` raises, for a reason of our own."""
    raise FileError(
        f"{path} cannot be read as {kind}: {reason}. It is damaged, was not written to its end, or is of another "
        f"kind{_likeness(path)}. {remedy}"
    ) from cause


def check_exists(path, kind):
    """Refuse a path that is no file; ``kind`` is what was expected there, with its article."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"Expected {kind} at {path}; there is no such file. Give the path of an existing one.")


def read_json(path, kind, *, most=2**24):
    """What a JSON file holds.

    Args:
        path: path of the file.
        kind: str, what the file should be, with its article.
        most: int, bytes that it may have.

    Returns:
        The value; numbers are finite.

    Raises:
        FileNotFoundError: if there is no such file.
        FileError: for what is no JSON in UTF-8, NaN and infinite numbers, and more than ``most`` bytes.
    """
    path = pathlib.Path(path)
    check_exists(path, kind)
    with reading(path, kind):
        size = path.stat().st_size
        if size > most:
            refuse(path, kind, f"it has {size:,} bytes, more than {most:,}")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)


def _no_number(text):
    raise ValueError(f"{text} is no number in JSON")


def _reason(error):
    text = " ".join(str(error).split())[:300].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _likeness(path):
    """What the first bytes of a file look like."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return ""
    if not head.strip(b"\0"):
        return " (it begins with zeros)" if head else " (it is empty)"
    names = (name for beginning, name in _BEGINNINGS.items() if head.startswith(beginning))
    name = next(names, None)
    return f" (it begins like {name})" if name else ""
