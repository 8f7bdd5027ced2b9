"""Requests that TF Serving answers before it takes any other, so that the first client does not wait."""

import numpy as np
import tensorflow as tf

from keras_capsvit import checks

FILE = "assets.extra/tf_serving_warmup_requests"


def check(images, spec):
    """Images for warming up as an array of what the endpoints take.

    Args:
        images: array ``(b, ...)``, ``1 <= b``.
        spec: tf.TensorSpec of what the endpoints take.

    Raises:
        ImportError: without tensorflow-serving-api.
        ValueError: for images of another shape, none, NaN or infinite ones.
    """
    _protos()
    images = np.asarray(images)
    if not spec.shape.is_compatible_with(images.shape):
        raise ValueError(f"Expected warmup images of shape {tuple(spec.shape)}; received {images.shape}.")
    if not len(images) or not np.isfinite(images).all():
        raise ValueError("Expected at least one warmup image, and finite pixels; received none, NaN or infinite ones.")
    return images.astype(spec.dtype.as_numpy_dtype)


def write(folder, endpoints, images, input_range, model):
    """One request per endpoint.

    Args:
        folder: pathlib.Path of the SavedModel.
        endpoints: dict from names to tf.functions with an ``input_signature``.
        images: array ``(b, ...)``, see ``check``.
        input_range: pair of floats, of the pixels; None if no endpoint takes files.
        model: str, the name that requests are for.
    """
    predict_pb2, prediction_log_pb2 = _protos()
    (folder / FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / FILE)) as file:
        for name, function in endpoints.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model, name
            for spec in function.input_signature:
                if spec.name == "target":
                    value = np.full(len(images), checks.PREDICTED)
                elif spec.name == "encoded":
                    low, high = input_range
                    pixels = np.rint(255 * (images - low) / (high - low)).clip(0, 255).astype("uint8")
                    value = [tf.io.encode_png(image).numpy() for image in pixels]
                else:
                    value = images
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(value, spec.dtype))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            file.write(log.SerializeToString())


def _protos():
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Warm-up requests need tensorflow-serving-api; install keras-capsvit[serving], or leave warmup out."
        ) from error
    return predict_pb2, prediction_log_pb2
