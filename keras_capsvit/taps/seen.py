"""What runs in a model that declares no taps: layers by name, or nodes of a served one."""

from keras_capsvit import checks
from keras_capsvit.taps.scores import scores


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
    raise ValueError(f"{whose} has no tap {name!r}; it has {list(taps)}, and the layers {listed(seen.shapes)}.")


def listed(names):
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
