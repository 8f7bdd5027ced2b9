"""The card of a model: what it is, how fast it answers, and what usually goes wrong with it."""

import contextlib
import statistics
import time

import keras
import numpy as np

from keras_capsvit import checks, explain, models, taps
from keras_capsvit.report.sections import Section, percent

_BATCHES = (1, 32)
_LOOKED_AT = 64  # images that checks are made on
_SAME = 1e-4  # of the largest score, what rounding may change


def model(subject, results):
    """What the model is."""
    section = Section(how="models.flops(model)  # and model.count_params(), taps.names(model), taps.input_range(model)")
    network = subject.model
    section.figure("name", "Model", subject.name, "text")
    section.figure("kind", "Kind", _kind(network), "text")
    section.figure("input", "Image", "x".join(map(str, subject.shape)), "text")
    low, high = (np.asarray(end) for end in subject.bounds)
    section.figure("range", "Pixels", f"{_ends(low)} to {_ends(high)}", "text")
    section.figure("classes", "Classes", int(subject.classes), "count")
    parameters = network.count_params() if isinstance(network, keras.Model) else getattr(network, "parameters", None)
    if parameters is None:
        section.left_out.append("Parameters: the model does not tell its weights.")
    else:
        section.figure("parameters", "Parameters", int(parameters), "count")
    try:
        flops = models.flops(network, None if _knows_size(subject) else subject.shape)
        section.figure("flops", "Multiplications of one image", int(flops), "count")
    except ValueError as error:
        section.left_out.append(f"Multiplications: {error}")
    named = taps.names(network)
    section.figure("taps", "Named intermediates", ", ".join(named) if named else "none declared", "text")
    section.figure("scores", "Class scores", _scores(subject), "text")
    return section


def latency(subject, results):
    """How long one image, and a batch, take."""
    times = subject.effort.repetitions
    section = Section(how=f"Judge(model)(x)  # images to scores as arrays; median of {times} calls after the first two")
    x, _ = subject.read(np.arange(min(max(_BATCHES), len(subject.predictions.label))))
    for size in _BATCHES:
        images = np.resize(x, (size, *x.shape[1:]))
        seconds = []
        for turn in range(times + 2):
            started = time.perf_counter()
            subject.judge(images)
            if turn > 1:
                seconds.append(time.perf_counter() - started)
        label = "One image" if size == 1 else f"{size} images"
        section.figure(f"latency_{size}", label, statistics.median(seconds), "ms")
        section.figure(f"slowest_{size}", f"{label}, slowest of {times}", max(seconds), "ms")
    section.say(
        "Times are of this machine, while the audit ran; they say how the two compare rather than what to expect."
    )
    return section


def common_mistakes(subject, results):
    """Whether what usually goes wrong did."""
    numbers = np.arange(min(_LOOKED_AT, len(subject.predictions.label)))
    x, y = subject.read(numbers)
    section = Section(how="taps.scores(model)(x); explain.Saliency(model)(x)", numbers=numbers.tolist())
    rows = [_output(subject, x), _determinism(subject, x), _batching(subject, x)]
    rows += [_gradients(subject, x, section), _range(subject, x), _scaling(subject, x, y), _told_range(subject)]
    section.table("checks", "Checks", [row for row in rows if row])
    warned = [row["check"] for row in section.tables[0]["rows"] if row["result"] == "look at this"]
    section.figure("to_look_at", "Checks to look at", len(warned), "count", headline=True)
    if warned:
        section.say(f"Look at: {', '.join(warned)}.")
    return section


def _row(check, fine, seen):
    return {"check": check, "result": "fine" if fine else "look at this", "seen": seen}


def _output(subject, x):
    try:
        output = np.asarray(subject.model(x[:8]))
    except Exception as error:  # a callable of another kind; the scores themselves were computed
        return _row("Output", True, f"could not be asked directly ({type(error).__name__}); the scores are used.")
    if output.ndim != 2:
        return _row("Output", True, "the model has several outputs; its class scores are used.")
    if output.shape[1] > 1 and np.allclose(output.sum(axis=1), 1, atol=1e-3) and output.min() >= 0:
        seen = "probabilities. All is measured on the scores before the softmax, whose gradients do not vanish."
        return _row("Output", True, seen)
    if subject.kind == "lengths":
        return _row("Output", True, "lengths of class capsules, in [0, 1).")
    if output.shape[1] == 1:
        return _row("Output", True, "a single number, taken for two classes.")
    return _row("Output", True, f"logits, here from {output.min():.3g} to {output.max():.3g}.")


def _determinism(subject, x):
    pairs = [(subject.judge(x), subject.judge(x))]
    with contextlib.suppress(Exception):  # what cannot be called directly was called above
        pairs.append(tuple(np.asarray(subject.model(x)) for _ in range(2)))  # not compiled, as Python may draw, too
    difference = max(float(np.abs(scores - again).max()) for scores, again in pairs)
    fine = difference <= _SAME * max(np.abs(pairs[0][0]).max(), 1e-12)
    return _row("Same images, same scores", fine, f"two calls differ by at most {difference:.2g}.")


def _batching(subject, x):
    together = subject.judge(x[:8])
    single = np.concatenate([subject.judge(x[k : k + 1]) for k in range(len(x[:8]))])
    difference = float(np.abs(together - single).max())
    fine = difference <= 10 * _SAME * max(np.abs(together).max(), 1e-12)
    seen = f"scores of an image alone and in a batch differ by at most {difference:.2g}."
    return _row("An image alone or in a batch", fine, seen)


def _gradients(subject, x, section):
    try:
        maps = explain.Saliency(subject.model)(x[:32])
    except (ValueError, NotImplementedError) as error:
        section.left_out.append(f"Dead gradients: {error}")
        return None
    dead = np.mean(~np.any(maps, axis=(1, 2)))
    section.figure("dead_gradients", "Images without gradient", float(dead), "share")
    seen = f"the gradient of the predicted class is zero everywhere on {percent(dead)} of {len(maps)} images."
    return _row("Gradients reach the pixels", dead == 0, seen)


def _range(subject, x):
    low, high = checks.limits(subject.bounds, x.shape[-1])
    used = float(np.ptp(x) / np.max(high - low))
    seen = f"pixels lie between {x.min():.3g} and {x.max():.3g}, of {_ends(low)} to {_ends(high)}."
    return _row("Pixels fill their range", used > 0.5, seen)


def _scaling(subject, x, y):
    """Whether the model is better on images that are scaled otherwise."""
    low, high = checks.limits(subject.bounds, x.shape[-1])
    shares = (x - low) / (high - low)
    usual = {"[0, 1]": (0.0, 1.0), "[0, 255]": (0.0, 255.0), "[-1, 1]": (-1.0, 1.0)}
    unscaled = float(np.mean(subject.judge.classes(x) == y))
    scaled_to = {}
    for name, (dark, bright) in usual.items():
        if not (np.allclose(low, dark) and np.allclose(high, bright)):
            scaled = (dark + shares * (bright - dark)).astype("float32")
            try:
                scaled_to[name] = float(np.mean(subject.judge.classes(scaled) == y))
            except ValueError:  # scores that are not finite
                continue
    if not scaled_to:
        return None
    best = max(scaled_to, key=scaled_to.get)
    fine = scaled_to[best] <= unscaled + 0.05
    seen = f"{percent(unscaled)} of {len(x)} images are right; scaled to {best}, {percent(scaled_to[best])}."
    if not fine:
        seen += f" The model seems to want pixels in {best}: pass that range."
    return _row("Scaling of pixels", fine, seen)


def _told_range(subject):
    told = taps.input_range(subject.model)
    if told is None:
        card = getattr(subject.model, "card", {}).get("input", {})
        told = card.get("range")
    if told is None:
        return None
    low, high = subject.bounds
    fine = bool(np.allclose(low, told[0]) and np.allclose(high, told[1]))
    return _row(
        "Range that the model tells", fine, f"{told[0]:g} to {told[1]:g}; given are {_ends(low)} to {_ends(high)}."
    )


def _ends(end):
    values = np.unique(np.atleast_1d(end))
    return f"{values[0]:g}" if len(values) == 1 else f"({', '.join(f'{value:g}' for value in np.atleast_1d(end))})"


def _kind(network):
    named, name = taps.names(network), type(network).__name__
    if "contributions" in named or "lengths" in named:
        return f"capsule network ({name})"
    return name


def _scores(subject):
    return "lengths of class capsules" if subject.kind == "lengths" else "logits, before any softmax or sigmoid"


def _knows_size(subject):
    shape = subject.scores.sample_shape
    return shape is not None and None not in shape
