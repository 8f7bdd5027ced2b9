"""TF Serving's gRPC API: PredictionService and ModelService, of models that the C API answers.

https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis defines what is asked and answered; the stubs
are those of tensorflow-serving-api. Errors are statuses of gRPC: NOT_FOUND for models and versions that are not served,
INVALID_ARGUMENT for what is wrong with a request, UNIMPLEMENTED for the classification and regression of tf.Examples,
and TensorFlow's own codes for what the graph refuses.
"""

import concurrent.futures
import functools
import pathlib

import grpc
import tensorflow as tf
from c_api import DTYPES, TensorFlowError
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from versions import STATES, Config, NotServedError

THREADS, MAX_REQUEST = 4, 2**27  # bytes
WARM_UP = "assets.extra/tf_serving_warmup_requests"
CODES = {code.value[0]: code for code in grpc.StatusCode}


def start(models, port):
    """Start to answer.

    Args:
        models: Models.
        port: int; 0 for any that is free.

    Returns:
        The server, which has ``stop``, and its port.
    """
    limits = {
        "grpc.max_receive_message_length": MAX_REQUEST,
        "grpc.max_send_message_length": -1,
        "grpc.so_reuseport": 0,
    }
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(THREADS), options=list(limits.items()))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Management(models), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


def told(method):
    """A method of a service whose errors become statuses."""

    @functools.wraps(method)
    def answered(self, request, context):
        try:
            return method(self, request)
        except NotServedError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except TensorFlowError as error:
            context.abort(CODES.get(error.code, grpc.StatusCode.INTERNAL), str(error))
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except NotImplementedError as error:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except MemoryError:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "There is not enough memory. Send fewer images.")

    return answered


def named(request):
    """Arguments of ``Models.use`` that a request's ModelSpec stands for."""
    if not request.HasField("model_spec") or not request.model_spec.name:
        raise ValueError("Expected a model_spec with the name of a model; received none.")
    spec = request.model_spec
    kind = spec.WhichOneof("version_choice")
    number = spec.version.value if kind == "version" else None
    return {"name": spec.name, "number": number, "label": spec.version_label if kind == "version_label" else None}


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """PredictionService of models."""

    def __init__(self, models):
        self._models = models

    @told
    def Predict(self, request):
        with self._models.use(**named(request)) as (number, model):
            name = request.model_spec.signature_name or "serving_default"
            outputs = model.run(name, {key: array(key, proto) for key, proto in request.inputs.items()})
            unknown = set(request.output_filter) - set(outputs)
            if unknown:
                raise ValueError(f"Expected outputs among {', '.join(outputs)}; received {', '.join(sorted(unknown))}.")
        answer = predict_pb2.PredictResponse()
        describe(answer.model_spec, request.model_spec.name, number, name)
        for key in request.output_filter or outputs:
            answer.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return answer

    @told
    def GetModelMetadata(self, request):
        if list(request.metadata_field) != ["signature_def"]:
            raise ValueError(
                f"Expected metadata_field to be ['signature_def']; received {list(request.metadata_field)}."
            )
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._models.use(**named(request)) as (number, model):
            describe(answer.model_spec, request.model_spec.name, number)
            for name, definition in model.definitions.items():
                signatures.signature_def[name].CopyFrom(meta_graph_pb2.SignatureDef.FromString(definition))
        answer.metadata["signature_def"].Pack(signatures)
        return answer

    @told
    def Classify(self, request):
        raise NotImplementedError("There are no signatures of tf.Examples here; ask Predict.")

    Regress = MultiInference = Classify


class Management(model_service_pb2_grpc.ModelServiceServicer):
    """ModelService of models."""

    def __init__(self, models):
        self._models = models

    @told
    def GetModelStatus(self, request):
        answer = get_model_status_pb2.GetModelStatusResponse()
        for number, state, code, message in self._models.states(**named(request)):
            status = answer.model_version_status.add(version=number, state=STATES[state])
            status.status.error_code, status.status.error_message = code, message
        return answer

    @told
    def HandleReloadConfigRequest(self, request):
        self._models.configure([config(each) for each in request.config.model_config_list.config])
        return model_management_pb2.ReloadConfigResponse()


def config(proto):
    """Config that a ModelConfig of TF Serving stands for."""
    policy = proto.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    latest = {"all": None, "specific": None, "latest": policy.latest.num_versions or 1, None: 1}[kind]
    specific = tuple(policy.specific.versions) if kind == "specific" else ()
    if kind == "specific" and not specific:
        raise ValueError(f"Expected the specific versions of {proto.name}; received none.")
    return Config(proto.name, pathlib.Path(proto.base_path), latest, specific, dict(proto.version_labels))


def describe(spec, name, number, signature=""):
    """Say in a ModelSpec what answered."""
    spec.name, spec.signature_name = name, signature
    spec.version.value = number


def array(name, proto):
    """Array of a TensorProto; refuses one whose values are not as many as its shape says."""
    dtype = DTYPES.get(proto.dtype)
    if dtype is None:
        raise ValueError(f"Expected {name} of {', '.join(DTYPES.values())}; received TensorFlow's dtype {proto.dtype}.")
    if proto.tensor_shape.unknown_rank or any(dim.size < 0 for dim in proto.tensor_shape.dim):
        raise ValueError(f"Expected {name} of a known shape; received {proto.tensor_shape}.")
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if functools.reduce(lambda size, side: size * side, sizes, 1) > MAX_REQUEST:  # one value may stand for all
        raise ValueError(f"Expected {name} of at most {MAX_REQUEST} values; received {sizes}.")
    try:
        return tf.make_ndarray(proto)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Expected {name} of as many values as its shape {sizes} says: {error}") from error


def warm_up(model, folder):
    """Answer the requests that a version brings along for it.

    Raises:
        ValueError, TensorFlowError: if it cannot.
    """
    path = folder / WARM_UP
    if not path.is_file():
        return
    try:
        logs = [
            prediction_log_pb2.PredictionLog.FromString(record)
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        ]
    except (tf.errors.OpError, DecodeError) as error:
        raise ValueError(f"Expected requests for warming up in {path}; it is damaged: {error}") from error
    for log in logs:
        kind, request = log.WhichOneof("log_type"), log.predict_log.request
        if kind != "predict_log":
            raise ValueError(f"Expected requests to Predict in {path}; received a {kind}.")
        name = request.model_spec.signature_name or "serving_default"
        model.run(name, {key: array(key, proto) for key, proto in request.inputs.items()})
