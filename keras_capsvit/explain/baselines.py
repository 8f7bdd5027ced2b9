"""Explanations that know nothing, which others are compared with."""

import zlib

import numpy as np

from keras_capsvit import checks
from keras_capsvit.explain.base import Explainer


class RandomMap(Explainer):
    """Uniform random values ("Random" of thesis Fig. 3.5), the same for the same image whatever batch it comes in.

    Args:
        seed: int.

    Call: see Explainer; maps in [0, 1), which depend on the image, but not on ``target``.
    """

    def __init__(self, seed=0):
        self.seed = checks.integer("seed", seed)

    def attributions(self, x, ids):
        generators = (np.random.default_rng([self.seed, zlib.crc32(image.tobytes())]) for image in x)
        return np.stack([generator.random(x.shape[1:3], "float32") for generator in generators])
