"""Data sets as ``tf.data`` streams."""

from keras_capsvit.versions import require_tensorflow

require_tensorflow("keras_capsvit.data")

from keras_capsvit.data import affine, affine_sets, corruptions, multidigit
from keras_capsvit.data.augment import augment, mix
from keras_capsvit.data.datasets import DATASETS, Info, from_arrays, info, load, take
from keras_capsvit.data.pictures import Pictures

__all__ = [
    "DATASETS",
    "Info",
    "Pictures",
    "affine",
    "affine_sets",
    "augment",
    "corruptions",
    "from_arrays",
    "info",
    "load",
    "mix",
    "multidigit",
    "take",
]
