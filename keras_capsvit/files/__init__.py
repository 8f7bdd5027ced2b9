"""Files: what is damaged, lies or is of another kind is refused in our words; what is written appears whole.

Every reader of this package goes through here: ``reading`` puts the errors of whatever decodes a file into one form,
``arrays_of`` shows the shapes in a file of named arrays before any value is read, ``replacing`` writes.
"""

from keras_capsvit.files.arrays import Arrays, arrays_of
from keras_capsvit.files.damage import FileError, check_exists, read_json, reading, refuse
from keras_capsvit.files.whole import aside, remove_abandoned, replacing, write_text

__all__ = [
    "Arrays",
    "FileError",
    "arrays_of",
    "aside",
    "check_exists",
    "read_json",
    "reading",
    "refuse",
    "remove_abandoned",
    "replacing",
    "write_text",
]
