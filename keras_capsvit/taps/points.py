"""Intermediates of models that declare none: layers by name, the last feature map, tokens and their attention."""

import collections
import math
import re

import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.taps import declared
from keras_capsvit.taps.influence import influence
from keras_capsvit.taps.outputs import check_output
from keras_capsvit.taps.scores import scores

NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "BatchNormalization", "GroupNormalization")
_MOST_PREFIX = 16  # class, distillation and register tokens
_STANDARD = "features"
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


def layers(model, x=None, output=None):
    """Layers of a live model, nested ones and those inside of layers included, or nodes of a served one.

    Args:
        model: see ``scores``.
        x: images ``(b, H, W, C)``, of a model that does not tell their size.
        output: see ``scores``.

    Returns:
        dict from names to static output shapes without the batch, in the order in which they run. The name of a layer
        in a nested model or layer is a path, ``"backbone/conv1"``; that of a second call of a layer ends in ``":1"``.
    """
    return dict(look(scores(model, output), x).shapes)


def look(subject, x=None):
    """Seen, of Scores, for images like ``x`` or as the model tells them; asked once, if the model tells."""
    if x is not None:
        if len(getattr(x, "shape", ())) != 4:
            raise ValueError(f"Expected images x (b, H, W, C); received {getattr(x, 'shape', type(x).__name__)}.")
        checks.of_size(x, subject.input_shape, subject.name)
    shape = subject.input_shape if x is None else tuple(x.shape[1:])
    if shape is None or None in shape:
        raise ValueError(f"{subject.name} leaves the size of its images open ({shape}); pass images x (b, H, W, C).")
    if shape not in subject.seen:
        subject.seen[shape] = subject.look(shape)
    return subject.seen[shape]


def resolve(seen, name, whose, taps=()):
    """The full name of a layer, of its last parts.

    Args:
        seen: Seen.
        name: str, such as ``"conv1"``, ``"backbone/conv1"``.
        whose: str, name of the model.
        taps: names of the taps that it declares, for the message.

    Raises:
        ValueError: if there is none, or several; lists them.
    """
    if checks.text("The name of a layer", name) in seen.shapes:
        return name
    ending = [full for full in seen.shapes if full.endswith(f"/{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ValueError(f"Expected the name of one layer of {whose}; {name!r} is that of {ending}. Pass one of these.")
    raise ValueError(f"{whose} has no tap {name!r}; it has {list(taps)}, and the layers {_some(seen.shapes)}.")


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
        place = _place(name, seen.shapes[name], shape, seen)
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
        places = [_place(name, seen.shapes[name], shape, seen) for name in names[:until] if len(seen.shapes[name]) == 2]
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
    places = [_place(name, seen.shapes[name], shape, seen) for name in maps if not _inside_attention(name, seen)]
    if not places:
        raise ValueError(
            f"Expected a model with a feature map (b, h, w, c) larger than 1x1, or tokens; {subject.name} has "
            f"{_some(seen.shapes)}. Pass layer=."
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


def tap(model, name, x=None, output=None):
    """Callable from images to a named intermediate.

    Args:
        model: live or served model, or callable.
        name: str: a tap that the model declares (``names(model)``); or ``"features"``, the last feature map
            ``(b, h, w, c)``; ``"attention_0"``, ``"attention_1"``, ... ``(b, heads, t, t)``; or a layer (``layers``).
            Or a list of such, for one pass that returns the list of intermediates.
        x: images ``(b, H, W, C)``, of a model that does not tell their size.
        output: see ``scores``.

    Returns:
        Callable ``x`` → tensor; a ``keras.Model``, which has ``predict`` too, where a live model declares the tap.

    Raises:
        ValueError: if the model has no such intermediate; the message lists those it has.
    """
    listed = name if isinstance(name, tuple | list) and name else [name]
    listed = [checks.text("The name of a tap", each) for each in listed]
    if x is not None and (isinstance(x, np.ndarray) or not hasattr(x, "shape")):
        images = checks.images(x, empty=False)
        x = x if isinstance(x, np.ndarray) else images  # as it is, because models of integers take integers
    check_output(output)
    known = declared.names(model)
    if all(each in known for each in listed):
        return declared.tap(model, name)
    try:
        subject = scores(model, output)
        seen = look(subject, x)
    except ValueError as error:
        raise ValueError(f"{_name(model)} has no tap {listed}; it has {known}. {error}") from None
    pick = _picker(subject, [each for each in listed if each not in known], seen, x)
    declared_names = [each for each in listed if each in known]
    first = declared.tap(model, declared_names) if declared_names else None

    def several(x):
        values = dict(zip(declared_names, first(x), strict=True)) if declared_names else {}
        values.update(pick(x))
        return values[name] if isinstance(name, str) else [values[each] for each in listed]

    return several


def _picker(subject, names, seen, x):
    """Function from images to a dict of intermediates."""
    places, positions, paths = {}, {}, {}
    for name in names:
        head, _, number = name.rpartition("_")
        if name == _STANDARD and name not in seen.shapes:
            places[name] = feature_map(subject, x)
            paths[name] = places[name].layer
        elif head == "attention" and number.isdigit() and name not in seen.shapes:
            if int(number) >= len(seen.attentions):
                raise ValueError(
                    f"{subject.name} has no tap {name!r}, but {len(seen.attentions)} self-attentions and the declared "
                    f"taps {declared.names(subject.model)}."
                )
            positions[name] = int(number)
        else:
            paths[name] = resolve(seen, name, subject.name, declared.names(subject.model))

    def pick(x):
        x = ops.convert_to_tensor(x)
        values, attentions = subject.intermediates(x, tuple(paths.values()), attention=bool(positions))
        values = dict(zip(paths, values, strict=True))
        values.update({name: place.on_grid(values[name]) for name, place in places.items()})
        return values | {name: attentions[position] for name, position in positions.items()}

    return pick


def _place(name, shape, image, seen):
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


def _name(model):
    return getattr(model, "name", None) or type(model).__name__


def _some(names):
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
