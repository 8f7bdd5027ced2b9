"""What may be exported, and with what, or an error in our words."""

import json

import keras
import numpy as np
import tensorflow as tf

from keras_capsvit import checks
from keras_capsvit.serving.endpoints import OWN, blank
from keras_capsvit.taps import input_range as range_of
from keras_capsvit.taps import names, scores, tap
from keras_capsvit.taps.declared import SCORES

_MEASURED = ("version", "input", "classes", "endpoints", "made_with")  # what the card says by itself
READ = "from the model"  # of the range of pixels


def checked_model(model, output, input_shape):
    """Scores of a model, and the shape of its images."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Export needs the tensorflow backend; received {keras.backend.backend()!r}. Save the model as .keras and "
            "load it in a process with KERAS_BACKEND=tensorflow."
        )
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected a Keras model, whose variables are saved along; received {type(model).__name__}. Put a callable "
            "into the call of a subclass of keras.Model."
        )
    subject = scores(model, output)
    shape = subject.sample_shape
    if input_shape is None and shape is None:
        raise ValueError(
            f"Expected a model that tells the shape of its images; {model.name} does not. Call it on images "
            "(b, H, W, C) first, or pass input_shape=(H, W, C)."
        )
    if input_shape is not None:
        input_shape = tuple(input_shape)
        sizes = shape if getattr(model, "inputs", None) else (None,) * len(input_shape)
        if not tf.TensorShape(sizes).is_compatible_with(input_shape):
            raise ValueError(f"Expected input_shape= of images that fit {(None, *sizes)}; received {input_shape}.")
        shape = input_shape
    if not model.built:
        model(blank(shape))
        subject = scores(model, output)  # with the variables that it has now
    check_finite(subject, subject.noise([size or 64 for size in shape])[:4])
    return subject, shape


def check_finite(subject, images):
    """Refuse a model with NaN or infinite variables, or such scores of images."""
    checks.finite_variables(subject.model.variables, subject.model.name)
    if not np.isfinite(keras.ops.convert_to_numpy(subject(tf.constant(images)))).all():
        raise ValueError(
            f"Expected a model of finite class scores; {subject.name} returns NaN or infinite ones. Evaluate it on "
            "images that it was trained on."
        )


def checked_taps(subject, shape, output, taps):
    """Names of taps without duplicates."""
    model = subject.model
    if taps is None:
        return [name for name in names(model) if _tells_scores(subject, name, shape, output) is not False]
    taps = list(dict.fromkeys([taps] if isinstance(taps, str) else taps))
    reserved = [name for name in taps if name in OWN]
    if reserved:
        raise ValueError(f"Expected taps of other names than endpoints have; received {reserved}. Rename the layers.")
    if taps:
        tap(model, taps, blank(shape), output)  # refuses what is none
    misleading = [name for name in taps if _tells_scores(subject, name, shape, output) is False]
    if misleading:
        raise ValueError(
            f"Expected taps {list(SCORES)} to be the class scores of {subject.name}, which the exported model "
            f"would take them for; received {misleading}, of a layer or a model inside. Leave it out, or rename "
            "the layer."
        )
    return taps


def _tells_scores(subject, name, shape, output):
    """Whether a tap that is called as class scores are is these; None of others, which are called otherwise."""
    if name not in SCORES or getattr(subject.model, "taps", None):
        return None
    pixels = np.random.default_rng(0).uniform(size=(2, *blank(shape).shape[1:])).astype("float32")
    tapped, expected = tap(subject.model, name, pixels, output)(pixels), subject(pixels)
    return tapped.shape == expected.shape and bool(np.allclose(tapped, expected, rtol=1e-4, atol=1e-5))


def check_names(explainers, reserved):
    for name, explainer in explainers.items():
        if name in reserved or not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"Expected names for the endpoints of explainers that are identifiers, and none of {sorted(reserved)}; "
                f"received {name!r}."
            )
        if not callable(explainer):
            raise ValueError(f"Expected explainer {name!r} to be callable; received {type(explainer).__name__}.")


def checked_range(model, input_range, needed):
    """The range of pixels as a list of two floats; None where it is not known and not needed."""
    if input_range is None:
        return None
    if isinstance(input_range, str) and input_range == READ:
        known = range_of(model)
        if known is None and needed:
            raise ValueError(
                f"Expected to know the range of pixels that {model.name} takes, which serve_bytes scales images to; "
                "its first layers do not tell. Pass input_range=(lowest, highest), such as (0, 1) or (0, 255), or "
                "input_range=None for an export without serve_bytes."
            )
        return None if known is None else list(known)
    try:
        low, high = map(float, input_range)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"input_range must be (lowest, highest) pixel, finite; received {input_range}.")
    return [low, high]


def checked_pixels(max_pixels, shape):
    """The most pixels of an image to be decoded, at least those of the model's own."""
    least = shape[0] * shape[1]
    if checks.positive_int("max_pixels", max_pixels) < least:
        raise ValueError(f"max_pixels must allow the model's own {shape[0]} x {shape[1]}; received {max_pixels}.")
    return int(max_pixels)


def checked_card(card):
    card = dict(card or {})
    contradicts = sorted(set(card) & set(_MEASURED))
    if contradicts:
        raise ValueError(f"The model card says {contradicts} by itself; leave them out of card=.")
    try:
        return json.loads(json.dumps(card, allow_nan=False, default=lambda value: value.tolist()))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Expected a card of finite JSON values; received {card}: {error}.") from error
