"""Export to a SavedModel in a version folder, which appears whole or not at all."""

import json
import os
import pathlib
import shutil
import uuid

import keras
import tensorflow as tf

from keras_capsvit.serving import warmup as warming
from keras_capsvit.serving.endpoints import BYTES, DEFAULT, Endpoints
from keras_capsvit.taps import names

CARD = "model_card.json"
_MEASURED = ("version", "input", "classes", "endpoints", "made_with")  # what the card says by itself


def export(model, path, *, taps=None, explainers=None, warmup=None, input_range=(0.0, 1.0), card=None):
    """Write ``path/<version>/``, a SavedModel with dynamic batch size that TF Serving loads as it is.

    Signatures, from ``images (b, H, W, C)`` float32 unless said otherwise:

    - ``serving_default`` → ``{"outputs": (b, M), "class": (b,)}``, what ``model(x)`` returns, and the class of the
      highest score, int64;
    - one per tap → ``{"outputs": ...}``;
    - ``explain``, where the model explains itself → ``{"outputs", "class", "maps"}``. Of a graph capsule network maps
      are ``(b, h, w, M)``, the attention of the nodes for every class, averaged over heads (thesis Eq. 3.7); of a
      vision transformer ``(b, H, W)``, the rollout (see ``explain.AttentionRollout``);
    - one per explainer, from ``images`` and ``target (b,)`` int64, class ids or -1 for the predicted class →
      ``{"outputs", "class", "maps"}``, maps ``(b, H, W)``;
    - ``serve_bytes``, from ``encoded (b,)``, strings with JPEG or PNG files of any size, in colour or not, which are
      resized to ``(H, W)`` and scaled to ``input_range`` → as ``serving_default``. Only of models that take images of a
      fixed size with one or three channels.

    Every one refuses empty batches, other shapes, NaN and infinite pixels, bytes that are no image, and targets that
    are no class, with an ``INVALID_ARGUMENT`` that names the input. Beside ``saved_model.pb`` lies ``model_card.json``.
    The folder is written as ``.tmp-...`` and renamed: readers of other versions are not disturbed, and an export that
    is killed leaves no version, only that hidden folder. Several exporters may write to one path.

    Args:
        model: functional Keras model with one input and one output ``(b, M)``.
        path: str or path of the folder that TF Serving calls the model's base path.
        taps: list of str, the taps to export; None for all.
        explainers: dict from endpoint names to explainers of this model (``LRP``, ``CLRP``, ``Saliency``,
            ``GraphAttention``, ...) or callables ``(images, ids) → maps`` of tensors, ids ``(b,)`` int32. The name
            ``explain`` replaces the built-in explanation. Relevance keeps the weights of now as constants of its own.
        warmup: images ``(b, H, W, C)``, which TF Serving sends to every endpoint before it takes requests; needs the
            extra ``serving``.
        input_range: pair of floats, the lowest and highest pixel that the model takes.
        card: dict of what else is to be in the model card, such as ``accuracy`` and ``trained``; JSON values.

    Returns:
        pathlib.Path of the new version folder, one above the highest version in ``path``.

    Raises:
        ValueError: on a backend other than TensorFlow; for a model without a fixed input or scores, taps that are none,
            names of explainers that other endpoints have, explainers that cannot run in a graph, warm-up images of
            another shape, and cards that are no JSON or contradict what is measured.
        ImportError: for ``warmup`` without tensorflow-serving-api.

    Example::

        serving.export(model, "saved_models/digits", explainers={"lrp": explain.LRP(model, "epsilon")}, warmup=x[:8])
    """
    _check_model(model)
    path, explainers = pathlib.Path(path), dict(explainers or {})
    wanted = _checked_taps(model, taps)
    _check_names(explainers, {DEFAULT, BYTES, *names(model)})
    input_range = _checked_range(input_range)
    card = _checked_card(card)
    shape = tuple(model.inputs[0].shape[1:])
    if warmup is not None:
        warmup = warming.check(warmup, shape)
    for explainer in explainers.values():
        if hasattr(explainer, "refresh"):  # relevance has folded the weights of the time when it was made
            explainer.refresh()

    module = tf.Module()
    module.model_variables = [variable.value for variable in model.variables]  # what the endpoints read
    build = Endpoints(model)
    endpoints = build.signatures(wanted, explainers, input_range)
    if wanted:  # no signature; for ``load``, where several taps are wanted of one pass
        module.tapped = build.tapped(wanted)
    signatures = {name: function.get_concrete_function() for name, function in endpoints.items()}
    card = {
        "name": model.name,
        "version": None,
        "input": {"name": "images", "shape": [None, *shape], "dtype": "float32", "range": input_range},
        "classes": model.outputs[0].shape[-1],
        **card,
        "endpoints": {name: _described(function) for name, function in signatures.items()},
        "made_with": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }
    temporary = path / f".tmp-{uuid.uuid4().hex}"
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
    return max((int(one.name) for one in path.glob("*") if one.name.isdigit()), default=None)


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
        "inputs": {one.name: spec(one) for one in inputs},
        "outputs": {name: spec(one) for name, one in function.structured_outputs.items()},
    }


def _check_model(model):
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Export needs the tensorflow backend; received {keras.backend.backend()!r}. Save the model as .keras and "
            "load it in a process with KERAS_BACKEND=tensorflow."
        )
    if len(getattr(model, "inputs", None) or ()) != 1:
        raise ValueError("Expected a functional model with one input; build or call the model first.")
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        shapes = [tuple(output.shape) for output in model.outputs]
        raise ValueError(f"Expected a model with one output, class scores (batch, classes); received {shapes}.")


def _checked_taps(model, wanted):
    known = names(model)
    wanted = known if wanted is None else list(dict.fromkeys(wanted))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"Expected taps of {model.name}, which has {known}; received {unknown}.")
    return wanted


def _check_names(explainers, taken):
    for name, explainer in explainers.items():
        if name in taken or not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"Expected names for the endpoints of explainers that are identifiers, and none of {sorted(taken)}; "
                f"received {name!r}."
            )
        if not callable(explainer):
            raise ValueError(f"Expected explainer {name!r} to be callable; received {type(explainer).__name__}.")


def _checked_range(input_range):
    low, high = map(float, input_range)
    if not low < high < float("inf"):
        raise ValueError(f"input_range must be (lowest, highest) pixel, finite; received {input_range}.")
    return [low, high]


def _checked_card(card):
    card = dict(card or {})
    contradicts = sorted(set(card) & set(_MEASURED))
    if contradicts:
        raise ValueError(f"The model card says {contradicts} by itself; leave them out of card=.")
    try:
        return json.loads(json.dumps(card, allow_nan=False, default=lambda value: value.tolist()))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Expected a card of finite JSON values; received {card}: {error}.") from error
