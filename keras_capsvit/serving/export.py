"""Export to a SavedModel in a version folder, which appears whole or not at all."""

import json
import os
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf

from keras_capsvit import checks
from keras_capsvit.files import aside, remove_abandoned
from keras_capsvit.serving import warmup as warming
from keras_capsvit.serving.encoded import MAX_PIXELS
from keras_capsvit.serving.endpoints import BYTES, DEFAULT, EXPLAIN, Endpoints, blank
from keras_capsvit.taps import OF_NODES, names, scores, tap
from keras_capsvit.taps import input_range as range_of
from keras_capsvit.taps.declared import SCORES

CARD = "model_card.json"
_MEASURED = ("version", "input", "classes", "endpoints", "made_with")  # what the card says by itself
_READ = "from the model"  # of the range of pixels


def export(
    model,
    path,
    *,
    output=None,
    input_shape=None,
    taps=None,
    explainers=None,
    warmup=None,
    input_range=_READ,
    max_pixels=MAX_PIXELS,
    card=None,
):
    """Write ``path/<version>/``, a SavedModel with dynamic batch size that TF Serving loads as it is.

    Signatures, from ``images (b, H, W, C)`` unless said otherwise, which are float32, or of the integers that the model
    takes; what comes out in half precision is float32:

    - ``serving_default`` → ``{"outputs": (b, M), "class": (b,)}``, what ``model(x)`` returns, and the class of the
      highest score, int64: of one sigmoid output ``(b, 1)`` 1 where it is above 1/2, else 0;
    - one per tap → ``{"outputs": ...}``;
    - ``explain``, where the model explains itself → ``{"outputs", "class", "maps"}``. Of a capsule network maps are
      ``(b, h, w, M)``, what the nodes contribute to every class (see ``explain.GraphContribution``); of a vision
      transformer ``(b, H, W)``, the rollout (see ``explain.AttentionRollout``);
    - one per explainer, from ``images`` and ``target (b,)`` int64, class ids or -1 for the predicted class →
      ``{"outputs", "class", "maps"}``, maps ``(b, H, W)`` or ``(b, H, W, C)``; they receive float32 images;
    - ``serve_bytes``, from ``encoded (b,)``, strings with JPEG or PNG files of up to ``max_pixels``, in colour or not,
      which are resized to ``(H, W)`` and scaled to ``input_range`` → as ``serving_default``. Only of models that take
      images of a fixed size with one or three channels.

    Every one refuses empty batches, other shapes, NaN and infinite pixels, bytes that are no image or, by their header,
    too large a one, and targets that are no class, with an ``INVALID_ARGUMENT`` that names the input. Beside
    ``saved_model.pb`` lies ``model_card.json``.
    The folder is written as ``.tmp-...`` and renamed: readers of other versions are not disturbed, and an export that
    is killed leaves no version, only that hidden folder, which the next export on the same machine removes. Several
    exporters may write to one path.

    Args:
        model: Keras model of any kind with one input, images, and class scores ``(b, M)``, or one score ``(b, 1)`` that
            decides between two classes.
        path: str or path of the folder that TF Serving calls the model's base path.
        output: str or int, which of several outputs are the class scores.
        input_shape: tuple ``(H, W, C)``, of a subclassed model that was not called yet, or to fix sizes that a model
            leaves open.
        taps: list of str, the intermediates to export: names of ``taps.tap``, such as declared taps, layers,
            ``"features"`` and ``"attention_0"``; None for all that the model, or the one inside it, declares.
        explainers: dict from endpoint names to explainers of this model (``LRP``, ``CLRP``, ``Saliency``,
            ``GraphContribution``, ...) or callables ``(images, ids) → maps`` of tensors, ids ``(b,)`` int32. The name
            ``explain`` replaces the built-in explanation. Relevance keeps the weights of now as constants of its own.
        warmup: images ``(b, H, W, C)``, which TF Serving sends to every endpoint before it takes requests; needs the
            extra ``serving``.
        input_range: pair of floats, the lowest and highest pixel that the model takes; left out, it is read from the
            model (see ``taps.input_range``); None for an export without ``serve_bytes``.
        max_pixels: int from ``H * W``, width times height of the largest image that ``serve_bytes`` decodes, which
            takes a byte per pixel and channel, up to ten of a request at once. No side may be longer than 65,535.
        card: dict of what else is to be in the model card, such as ``accuracy`` and ``trained``; JSON values.

    Returns:
        pathlib.Path of the new version folder, one above the highest version in ``path``.

    Raises:
        ValueError: on a backend other than TensorFlow; for what is no Keras model, or one without scores, with
            variables or scores that are not finite, with several inputs, with several outputs unless ``output`` names
            one, with channels in front, or that does not tell the shape of its images or the range of their pixels; for
            taps that are none, names that other endpoints have, explainers that cannot run in a graph, are of another
            model, or return no maps; for warm-up images of another shape, and cards that are no JSON or contradict what
            is measured.
        ImportError: for ``warmup`` without tensorflow-serving-api.

    Example::

        serving.export(model, "saved_models/digits", explainers={"lrp": explain.LRP(model, "epsilon")}, warmup=x[:8])
    """
    subject, shape = _checked_model(model, output, input_shape)
    path, explainers = pathlib.Path(path), dict(explainers or {})
    builder = Endpoints(subject, shape, output)
    taps = _checked_taps(subject, shape, output, taps)
    _check_names(explainers, {DEFAULT, BYTES, *names(model), *taps})
    input_range = _checked_range(model, input_range, builder.takes_bytes)
    max_pixels = _checked_pixels(max_pixels, shape) if builder.takes_bytes and input_range is not None else None
    card = _checked_card(card)
    if warmup is not None:
        warmup = warming.check(warmup, builder.images)
        _check_finite(subject, warmup)
    for explainer in explainers.values():
        if hasattr(explainer, "refresh"):  # relevance has folded the weights of the time when it was made
            explainer.refresh()

    module = tf.Module()
    endpoints = builder.signatures(taps, explainers, input_range, max_pixels)
    if taps:  # no signature; for ``load``, where several taps are asked for in one pass
        module.tapped = builder.tapped(taps)
        module.centres = builder.centres([name for name in taps if name in OF_NODES and name in names(model)])
    signatures = {name: function.get_concrete_function() for name, function in endpoints.items()}
    # What the endpoints read: variables of Keras, and those of TensorFlow that a subclass may have.
    module.model_variables = [variable.value for variable in model.variables]
    module.other_variables = [variable for function in signatures.values() for variable in function.variables]
    card = {
        "name": model.name,
        "version": None,
        "input": {
            "name": "images",
            "shape": [None, *shape],
            "dtype": builder.images.dtype.name,
            "range": input_range,
            "max_pixels": max_pixels,  # of files
        },
        "classes": builder.classes,
        **card,
        "endpoints": {name: _described(function) for name, function in signatures.items()},
        "made_with": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }
    remove_abandoned(path)
    temporary = aside(path)
    try:
        tf.saved_model.save(module, str(temporary), signatures)
        if warmup is not None:
            warming.write(temporary, endpoints, warmup, input_range, card["name"])
        return _publish(temporary, path, card)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def newest(path):
    """Highest version in a folder, int; None if there is none."""
    return max((int(version.name) for version in path.glob("*") if version.name.isdigit()), default=None)


def _publish(temporary, path, card):
    """Rename a finished folder to the next version; where another exporter was first, to the one after."""
    while True:
        card["version"] = 1 + (newest(path) or 0)
        (temporary / CARD).write_text(json.dumps(card, indent=1) + "\n")
        folder = path / str(card["version"])
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.exists():
                raise
        else:
            return folder


def _described(function):
    """Inputs and outputs of an endpoint, for the card."""

    def spec(tensor):
        return {"dtype": tensor.dtype.name, "shape": list(tensor.shape)}

    inputs = function.structured_input_signature[0] + tuple(function.structured_input_signature[1].values())
    return {
        "inputs": {tensor.name: spec(tensor) for tensor in inputs},
        "outputs": {name: spec(tensor) for name, tensor in function.structured_outputs.items()},
    }


def _checked_model(model, output, input_shape):
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
    _check_finite(subject, subject.noise([size or 64 for size in shape])[:4])
    return subject, shape


def _check_finite(subject, images):
    """Refuse a model with NaN or infinite variables, or such scores of images."""
    checks.finite_variables(subject.model.variables, subject.model.name)
    if not np.isfinite(keras.ops.convert_to_numpy(subject(tf.constant(images)))).all():
        raise ValueError(
            f"Expected a model of finite class scores; {subject.name} returns NaN or infinite ones. Evaluate it on "
            "images that it was trained on."
        )


def _checked_taps(subject, shape, output, taps):
    """Names of taps without duplicates."""
    model = subject.model
    if taps is None:
        return [name for name in names(model) if _tells_scores(subject, name, shape, output) is not False]
    taps = list(dict.fromkeys([taps] if isinstance(taps, str) else taps))
    reserved = [name for name in taps if name in (DEFAULT, EXPLAIN, BYTES)]
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


def _check_names(explainers, taken):
    for name, explainer in explainers.items():
        if name in taken or not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"Expected names for the endpoints of explainers that are identifiers, and none of {sorted(taken)}; "
                f"received {name!r}."
            )
        if not callable(explainer):
            raise ValueError(f"Expected explainer {name!r} to be callable; received {type(explainer).__name__}.")


def _checked_range(model, input_range, needed):
    """The range of pixels as a list of two floats; None where it is not known and not needed."""
    if input_range is None:
        return None
    if isinstance(input_range, str) and input_range == _READ:
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


def _checked_pixels(max_pixels, shape):
    """The most pixels of an image to be decoded, at least those of the model's own."""
    least = shape[0] * shape[1]
    if checks.positive_int("max_pixels", max_pixels) < least:
        raise ValueError(f"max_pixels must allow the model's own {shape[0]} x {shape[1]}; received {max_pixels}.")
    return int(max_pixels)


def _checked_card(card):
    card = dict(card or {})
    contradicts = sorted(set(card) & set(_MEASURED))
    if contradicts:
        raise ValueError(f"The model card says {contradicts} by itself; leave them out of card=.")
    try:
        return json.loads(json.dumps(card, allow_nan=False, default=lambda value: value.tolist()))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Expected a card of finite JSON values; received {card}: {error}.") from error
