"""Intermediates by name, of any model: declared taps, layers, the last feature map, attention."""

import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.taps import declared
from keras_capsvit.taps.feature_maps import feature_map
from keras_capsvit.taps.outputs import check_output
from keras_capsvit.taps.scores import scores
from keras_capsvit.taps.seen import look, resolve

_STANDARD = "features"


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
        ValueError: if the model has no such intermediate, or no such output; the message lists those it has.
    """
    listed = name if isinstance(name, tuple | list) and name else [name]
    listed = [checks.text("The name of a tap", each) for each in listed]
    if x is not None and (isinstance(x, np.ndarray) or not hasattr(x, "shape")):
        images = checks.images(x, empty=False)
        x = x if isinstance(x, np.ndarray) else images  # as it is, because models of integers take integers
    check_output(output)
    known = declared.names(model)
    if all(each in known for each in listed):
        if output is not None:
            look(scores(model, output), x)  # which refuses an output that is not there
        return declared.tap(model, name)
    try:
        subject = scores(model, output)
        seen = look(subject, x)
    except ValueError as error:
        raise ValueError(f"{_name(model)} has no tap {listed}; it has {known}. {error}") from None
    pick = _picker(subject, [each for each in listed if each not in known], seen, x)
    declared_names = [each for each in listed if each in known]
    declared_tap = declared.tap(model, declared_names) if declared_names else None

    def several(x):
        values = dict(zip(declared_names, declared_tap(x), strict=True)) if declared_names else {}
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


def _name(model):
    return getattr(model, "name", None) or type(model).__name__
