"""The last feature map of a model that declares none, and its tokens: where they lie on the image."""

import collections
import math
import re

import numpy as np
from keras import ops

from keras_capsvit.taps.influence import influence
from keras_capsvit.taps.seen import listed, look, resolve

NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "BatchNormalization", "GroupNormalization")
_MOST_PREFIX = 16  # class, distillation and register tokens
_REORDERING = ("Permute", "Transpose", "Reshape")


class FeatureMap(collections.namedtuple("FeatureMap", "layer shape grid prefix")):
    """Where a layer's output lies on the image.

    Attributes:
        layer: str, name of the layer.
        shape: tuple, its static output shape without the batch: ``(h, w, c)``, or ``(t, c)`` of tokens.
        grid: ``(h, w)``.
        prefix: int, tokens in front of those of the grid.
    """

    def on_grid(self, values):
        """Values ``(b, h, w, c)`` or ``(b, t, c)``, a tensor, as ``(b, h, w, c)``, without the prefix."""
        if len(self.shape) == 3:
            return values
        return ops.reshape(values[:, self.prefix :], (-1, *self.grid, values.shape[-1]))


def feature_map(subject, x=None, layer=None, *, before_attention=False):
    """The last feature map that the class scores depend on and that is larger than one pixel, or the last tokens.

    Args:
        subject: Scores.
        x: images, of a model that does not tell their size.
        layer: str, a layer to take instead.
        before_attention: bool, of tokens those that the last attention mixes, because the class may be read from a
            token of its own afterwards.

    Returns:
        FeatureMap.

    Raises:
        ValueError: if there is no such layer, its output is no map, or one with channels in front.
    """
    place = _feature_map(subject, x, layer, before_attention)
    if _channels_in_front(place.layer, look(subject, x)):
        raise ValueError(
            f"Expected a feature map (b, h, w, c); {place.layer!r} of {subject.name} returns {(None, *place.shape)}, "
            "with channels in front (data_format='channels_first'). Pass layer= with the name of another layer, or "
            "build the model with channels last."
        )
    return place


def _feature_map(subject, x, layer, before_attention):
    seen = look(subject, x)
    shape = subject.input_shape if x is None else tuple(x.shape[1:])
    if layer is not None:
        name = resolve(seen, layer, subject.name)
        place = place_of(name, seen.shapes[name], shape, seen)
        if place is None:
            raise ValueError(
                f"Expected a layer with an output (b, h, w, c) or tokens (b, t, c); {name!r} returns "
                f"{(None, *seen.shapes[name])}."
            )
        return place
    names = list(seen.shapes)
    if seen.attentions:
        until = len(names)
        if before_attention:
            until = seen.before[-1]
        places = [
            place_of(name, seen.shapes[name], shape, seen) for name in names[:until] if len(seen.shapes[name]) == 2
        ]
        places = [place for place in places if place is not None]
        places = [place for place in places if place.shape[0] == places[-1].shape[0]]  # of the last stage
        width = min((place.shape[-1] for place in places), default=0)  # what is inside of an MLP is wider
        places = [place for place in places if place.shape[-1] == width]
        normal = [place for place in places if seen.kinds[place.layer] in NORMALIZATIONS]
        if places:
            return _last_that_matters(subject, normal if before_attention and normal else places, shape)
    maps = [name for name in names if len(seen.shapes[name]) == 3 and math.prod(seen.shapes[name][:2]) > 1]
    # Votes of capsules, say, have three axes too; grids of the image are those that convolutions and pooling return.
    grids = {seen.shapes[name][:2] for name in maps if re.search("conv|pool", seen.kinds[name], re.IGNORECASE)}
    maps = [name for name in maps if not grids or seen.shapes[name][:2] in grids]
    places = [place_of(name, seen.shapes[name], shape, seen) for name in maps if not _inside_attention(name, seen)]
    if not places:
        raise ValueError(
            f"Expected a model with a feature map (b, h, w, c) larger than 1x1, or tokens; {subject.name} has "
            f"{listed(seen.shapes)}. Pass layer=."
        )
    return _last_that_matters(subject, places, shape)


def _last_that_matters(subject, places, size):
    """The last place that the class scores depend on; of a model without class scores, the last."""
    for place in reversed(places):
        try:
            if influence(subject, place.layer, place.shape, size).any():
                return place
        except ValueError:  # no class scores
            break
    return places[-1]


def _channels_in_front(name, seen):
    data_format = None
    for each in list(seen.shapes)[: list(seen.shapes).index(name) + 1]:
        data_format = None if seen.kinds[each] in _REORDERING else seen.formats[each] or data_format
    return len(seen.shapes[name]) == 3 and data_format == "channels_first"


def tokens(subject, x=None):
    """How many tokens lie in front of the patches, and the grid of these.

    Args:
        subject: Scores of a model with self-attention over all tokens.
        x: images, of a model that does not tell their size.

    Returns:
        ``(prefix, (h, w))``.

    Raises:
        ValueError: for a model without such attention, or tokens that fit no grid.
    """
    seen = look(subject, x)
    if not seen.attentions:
        raise ValueError(f"Expected a model with self-attention; {subject.name} has none that could be seen.")
    batch = {attention[0] for attention in seen.attentions}
    counts = {attention[-1] for attention in seen.attentions}
    if batch != {1} or len(counts) != 1:
        raise ValueError(
            f"Expected attention over the same tokens of the whole image in every block; {subject.name} has attention "
            f"of shapes {sorted(set(seen.attentions))} (windows, or stages of different sizes)."
        )
    shape = subject.input_shape if x is None else tuple(x.shape[1:])
    (count,) = counts
    grid = _grid(count, shape, seen)
    if grid is None:
        raise ValueError(f"The {count} tokens of {subject.name} fit no grid of patches on images of {shape[:2]}.")
    return count - math.prod(grid), grid


def place_of(name, shape, image, seen):
    if len(shape) == 3 and None not in shape[:2]:
        return FeatureMap(name, shape, shape[:2], 0)
    if len(shape) != 2 or None in shape or name not in seen.whole:
        return None
    counts = {attention[-1] for attention in seen.attentions}
    grid = _grid(shape[0], image, seen) if shape[0] in counts else _tiling(shape[0], image)
    return None if grid is None else FeatureMap(name, shape, grid, shape[0] - math.prod(grid))


def _grid(count, image, seen):
    """Grid ``(h, w)`` of the patches among ``count`` tokens: the declared, that of a map before them, or a tiling."""
    if seen.grid is not None and count - _MOST_PREFIX <= math.prod(seen.grid) <= count:
        return seen.grid
    until = list(seen.shapes)[: seen.before[0]] if seen.before else list(seen.shapes)
    for name in reversed(until):
        shape = seen.shapes[name]
        fits = len(shape) == 3 and count - _MOST_PREFIX <= math.prod(shape[:2]) <= count and shape[0] > 1
        if fits and count not in shape:  # else these are heads, dimensions and tokens
            return shape[:2]
    grids = [_tiling(count - prefix, image) for prefix in range(min(_MOST_PREFIX, count - 1))]
    grids = [grid for grid in grids if grid is not None]
    if len(grids) > 1:  # the patches may have been a sequence before other tokens were put in front of them
        lengths = {seen.shapes[name][0] for name in until if len(seen.shapes[name]) == 2}
        grids = [grid for grid in grids if math.prod(grid) in lengths]
    return grids[0] if len(grids) == 1 else None


def _tiling(count, image):
    """Grid of ``count`` equal square patches on an image, or None."""
    side = math.sqrt(math.prod(image[:2]) / count) if count > 0 else 0
    if not side or not np.isclose(side, round(side)) or any(size % round(side) for size in image[:2]):
        return None
    return tuple(size // round(side) for size in image[:2])


def _inside_attention(name, seen):
    parts = name.split("/")
    return any(
        seen.kinds.get("/".join(parts[:k])) in ("MultiHeadAttention", "MultiHeadSelfAttention")
        for k in range(1, len(parts))
    )
