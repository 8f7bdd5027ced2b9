"""Export to a SavedModel in a version folder, which appears whole or not at all."""

import json
import os
import pathlib
import shutil

import keras
import tensorflow as tf

from keras_capsvit.files import aside, remove_abandoned
from keras_capsvit.serving import warmup as warming
from keras_capsvit.serving.checked import (
    READ,
    check_finite,
    check_names,
    checked_card,
    checked_model,
    checked_pixels,
    checked_range,
    checked_taps,
)
from keras_capsvit.serving.encoded import MAX_PIXELS
from keras_capsvit.serving.endpoints import EXPLAIN, OWN, Endpoints
from keras_capsvit.taps import OF_NODES, names

CARD = "model_card.json"


def export(
    model,
    path,
    *,
    output=None,
    input_shape=None,
    taps=None,
    explainers=None,
    warmup=None,
    input_range=READ,
    max_pixels=MAX_PIXELS,
    card=None,
) -> pathlib.Path:
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
    subject, shape = checked_model(model, output, input_shape)
    path, explainers = pathlib.Path(path), dict(explainers or {})
    builder = Endpoints(subject, shape, output)
    taps = checked_taps(subject, shape, output, taps)
    check_names(explainers, {*(set(OWN) - {EXPLAIN}), *names(model), *taps})
    input_range = checked_range(model, input_range, builder.takes_bytes)
    max_pixels = checked_pixels(max_pixels, shape) if builder.takes_bytes and input_range is not None else None
    card = checked_card(card)
    if warmup is not None:
        warmup = warming.check(warmup, builder.images)
        check_finite(subject, warmup)
    for explainer in explainers.values():
        if hasattr(explainer, "renew"):  # here, because nothing can be constructed while endpoints are traced
            explainer.renew()

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
