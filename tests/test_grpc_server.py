"""server.py over gRPC: its answers, what it refuses, and how versions come and go."""

import pathlib
import shutil
import threading
import time

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow
MODEL = pathlib.Path(__file__).parent.parent / "saved_models" / "digits_gracapsnet"
NAME = "digits_gracapsnet"
grpc = pytest.importorskip("grpc")
apis = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")
pytest.importorskip("waitress")


class Client:
    """Both services of an address, by the stubs of tensorflow-serving-api."""

    def __init__(self, address):
        from tensorflow_serving.apis import model_service_pb2_grpc

        channel = grpc.insecure_channel(address)
        self.prediction = apis.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)

    def predict(self, signature="", name=NAME, number=None, label=None, only=(), **inputs):
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(output_filter=only)
        fill(request.model_spec, name, number, label)
        request.model_spec.signature_name = signature
        for key, value in inputs.items():
            is_proto = hasattr(value, "tensor_shape")
            request.inputs[key].CopyFrom(value if is_proto else tf.make_tensor_proto(value))
        return self.prediction.Predict(request, timeout=60)

    def status(self, name=NAME, number=None, label=None):
        """State, code and message by version."""
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        fill(request.model_spec, name, number, label)
        answer = self.models.GetModelStatus(request, timeout=60).model_version_status
        return {each.version: (each.state, each.status.error_code, each.status.error_message) for each in answer}

    def configure(self, *configs):
        from tensorflow_serving.apis import model_management_pb2
        from tensorflow_serving.config import model_server_config_pb2

        listed = model_server_config_pb2.ModelServerConfig(
            model_config_list=model_server_config_pb2.ModelConfigList(config=configs)
        )
        self.models.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(config=listed), timeout=60)


def fill(spec, name, number, label):
    spec.name = name
    if number is not None:
        spec.version.value = number
    if label is not None:
        spec.version_label = label


def arrays(answer):
    import tensorflow as tf

    return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}


def refused(call, *args, **kwargs):
    """Name of the status and message of what a call is refused with."""
    with pytest.raises(grpc.RpcError) as error:
        call(*args, **kwargs)
    return error.value.code().name, error.value.details()


@pytest.fixture(scope="module")
def client():
    """Client of a server, in this process, of the model in saved_models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(MODEL.parent.parent / "examples" / "serve")
        import grpc_server
        import versions
    models = versions.Models([versions.Config(NAME, MODEL)])
    answering, port = grpc_server.start(models, 0)
    yield Client(f"localhost:{port}")
    answering.stop(None).wait()
    models.close()


@pytest.mark.slow
def test_the_command_answers_both_protocols_warmed_up(serve_example, served_digits, enlarged_digits):
    load_test, client = serve_example("load_test"), serve_example("client")
    expected = served_digits(enlarged_digits)
    with load_test.stand_in(MODEL, grpc=True) as (url, name, address):
        for asked in (client.Rest(url, name), client.Grpc(address, name)):
            inputs = asked.predict("serving_default", {"images": enlarged_digits})["outputs"]
            np.testing.assert_allclose(inputs, expected, atol=1e-5)
            assert asked.inputs("serve_bytes") == {"encoded": ("string", (-1,))}


def test_every_signature_answers_as_python_does(client, served_digits, enlarged_digits, serve_example):
    encoded = serve_example("load_test").encoded(np.rint(enlarged_digits[0] * 255).astype("uint8"))
    values = {"images": enlarged_digits, "target": np.arange(len(enlarged_digits)), "encoded": np.array([encoded])}
    for endpoint in served_digits.endpoints:
        inputs = {name: values[name] for name in served_digits._inputs(endpoint)}
        answer = client.predict(endpoint, **inputs)
        expected = served_digits.run(endpoint, **inputs)
        arguments = arrays(answer)
        assert set(arguments) == set(expected), endpoint
        for name, value in expected.items():
            np.testing.assert_allclose(arguments[name], value, atol=1e-5, err_msg=f"{endpoint} {name}")
        spec = answer.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == (NAME, 1, endpoint)
    assert list(client.predict(only=["class"], images=enlarged_digits).outputs) == ["class"]
    assert client.predict(number=1, images=enlarged_digits).model_spec.signature_name == "serving_default"


def test_metadata_are_the_signatures(client):
    from tensorflow.python.saved_model import loader_impl
    from tensorflow_serving.apis import get_model_metadata_pb2 as about

    request = about.GetModelMetadataRequest(metadata_field=["signature_def"])
    fill(request.model_spec, NAME, None, None)
    answer, signatures = client.prediction.GetModelMetadata(request, timeout=60), about.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    written = loader_impl.parse_saved_model(str(MODEL / "1")).meta_graphs[0].signature_def
    expected = {name: definition for name, definition in written.items() if not name.startswith("__")}
    assert dict(signatures.signature_def) == expected
    assert answer.model_spec.version.value == 1
    for fields in ([], ["graph"], ["signature_def", "graph"]):
        del request.metadata_field[:]
        request.metadata_field.extend(fields)
        code, message = refused(client.prediction.GetModelMetadata, request)
        assert code == "INVALID_ARGUMENT" and "metadata_field to be ['signature_def']" in message


def test_states(client):
    assert client.status() == client.status(number=1) == {1: (30, 0, "")}
    assert refused(client.status, number=2) == ("NOT_FOUND", f"Could not find 2 of model {NAME}.")
    assert refused(client.status, "other")[0] == refused(client.status, label="stable")[0] == "NOT_FOUND"
    assert refused(client.status, "")[0] == "INVALID_ARGUMENT"


def test_errors_are_statuses(client, enlarged_digits):
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2

    x, far = enlarged_digits[:1], np.full((1, 28, 28, 1), np.nan, "float32")
    short, unknown, huge = (tf.make_tensor_proto(x) for _ in range(3))
    short.tensor_content = short.tensor_content[:-4]
    unknown.tensor_shape.unknown_rank = True
    huge.ClearField("tensor_content")
    huge.float_val.append(0.5)
    huge.tensor_shape.dim[0].size = 10**9
    cases = [
        ("NOT_FOUND", "Could not find model 'other'", {"name": "other", "images": x}),
        ("NOT_FOUND", "Could not find version 7", {"number": 7, "images": x}),
        ("NOT_FOUND", "no version of label 'canary'", {"label": "canary", "images": x}),
        ("INVALID_ARGUMENT", "Expected a model_spec", {"name": "", "images": x}),
        ("INVALID_ARGUMENT", "Expected a signature among", {"signature": "explains", "images": x}),
        ("INVALID_ARGUMENT", "Expected the inputs images; received none", {}),
        ("INVALID_ARGUMENT", "Expected the inputs images; received pictures", {"pictures": x}),
        ("INVALID_ARGUMENT", "images of dtype float32; received float64", {"images": x.astype("float64")}),
        ("INVALID_ARGUMENT", "is not compatible", {"images": x[0]}),
        ("INVALID_ARGUMENT", "expected finite pixels", {"images": far}),
        ("INVALID_ARGUMENT", "expected class ids", {"signature": "lrp", "images": x, "target": np.array([10])}),
        ("INVALID_ARGUMENT", "received maps", {"only": ["maps"], "images": x}),
        ("INVALID_ARGUMENT", "as many values as its shape", {"images": short}),
        ("INVALID_ARGUMENT", "images of a known shape", {"images": unknown}),
        ("INVALID_ARGUMENT", "images of at most", {"images": huge}),
        ("INVALID_ARGUMENT", "TensorFlow's dtype 14", {"images": tf.cast(x, "bfloat16")}),
    ]
    for code, message, request in cases:
        inputs = refused(client.predict, **request)
        assert inputs[0] == code and message in inputs[1], (request.keys(), inputs)
    code, message = refused(client.prediction.Classify, classification_pb2.ClassificationRequest())
    assert code == "UNIMPLEMENTED" and "ask Predict" in message
    assert client.predict(images=x).model_spec.name == NAME  # it is still there


@pytest.fixture
def growing(tmp_path, serve_example):
    """Folder of version 1 of ``times``, and the address of a server in this process that looks there all the time."""
    versions, server = serve_example("versions"), serve_example("grpc_server")
    add(tmp_path / "times", 1)
    models = versions.Models([versions.Config("times", tmp_path / "times")], server.warm_up)
    models.watch(0.1)
    answering, port = server.start(models, 0)
    yield tmp_path / "times", f"localhost:{port}"
    answering.stop(None).wait()
    models.close()


def add(folder, number, damage=None, warm_up=None):
    """Put a version there that multiplies by its number; whole at once, as ``serving.export`` does."""
    import tensorflow as tf

    module = tf.Module()
    module.factor = tf.Variable(float(number))
    module.multiplied = tf.function(lambda x: {"y": module.factor * x}, [tf.TensorSpec((None,), name="x")])
    aside = folder.parent / f"aside_{number}"
    tf.saved_model.save(module, str(aside), {"serving_default": module.multiplied})
    if damage:
        (aside / damage).write_bytes(b"damaged")
    if warm_up is not None:
        (aside / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(aside / "assets.extra" / "tf_serving_warmup_requests")) as file:
            file.write(warm_up)
    folder.mkdir(exist_ok=True)
    aside.rename(folder / str(number))


def eventually(condition, seconds=60):
    """Wait for a condition to hold."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def factor(client, **version):
    """What the version that answers multiplies by, as it says and as it does."""
    answer = client.predict(name="times", x=np.float32([1, 2]), **version)
    values = arrays(answer)["y"]
    assert values[1] == 2 * values[0] == 2 * answer.model_spec.version.value
    return int(values[0])


def test_a_new_version_comes_without_a_lost_request(growing):
    folder, address = growing
    client, ends, stop = Client(address), [], threading.Event()

    def keep_asking():
        own = Client(address)
        while not stop.is_set():
            try:
                ends.append(factor(own))
            except Exception as error:
                ends.append(error)

    asking = [threading.Thread(target=keep_asking) for _ in range(32)]
    for thread in asking:
        thread.start()
    try:
        for number in (2, 3):
            add(folder, number)
            eventually(lambda number=number: client.status("times") == {number: (30, 0, "")})
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert set(ends) == {1, 2, 3}, {type(end) for end in ends}
    assert len(ends) > 100
    assert factor(client) == 3


@pytest.mark.parametrize("damage", ["saved_model.pb", "variables/variables.index", "warm-up", "other requests"])
def test_a_damaged_version_leaves_the_one_before_it(growing, damage):
    from tensorflow_serving.apis import prediction_log_pb2

    folder, address = growing
    client = Client(address)
    log = prediction_log_pb2.PredictionLog()
    log.classify_log.SetInParent()
    warm_up = {"warm-up": b"damaged", "other requests": log.SerializeToString()}.get(damage)
    add(folder, 2, damage=None if warm_up else damage, warm_up=warm_up)
    eventually(lambda: client.status("times").get(2, (0,))[0] == 50)
    states = client.status("times")
    assert states[1] == (30, 0, "") and states[2][1] != 0 and states[2][2]
    assert factor(client) == 1
    code, message = refused(factor, client, number=2)
    assert code == "NOT_FOUND" and "version 2 of model times that is available; those are [1]" in message
    shutil.rmtree(folder / "2")
    add(folder, 2)
    eventually(lambda: client.status("times") == {2: (30, 0, "")})
    assert factor(client) == 2


def test_configs_with_policies_and_labels(growing):
    from tensorflow_serving.config import model_server_config_pb2

    folder, address = growing
    client = Client(address)
    add(folder, 2)
    eventually(lambda: client.status("times") == {2: (30, 0, "")})
    config = model_server_config_pb2.ModelConfig(name="times", base_path=str(folder))
    config.model_version_policy.all.SetInParent()
    client.configure(config)
    assert set(client.status("times")) == {1, 2}
    config.version_labels["stable"] = 1
    client.configure(config)
    assert (factor(client, label="stable"), factor(client), factor(client, number=1)) == (1, 2, 1)
    assert client.status("times", label="stable") == {1: (30, 0, "")}
    config.version_labels["canary"] = 7
    code, message = refused(client.configure, config)
    assert code == "INVALID_ARGUMENT" and "label 'canary'" in message
    del config.version_labels["stable"]
    assert refused(client.configure, config)[0] == "INVALID_ARGUMENT"
    assert factor(client, label="stable") == 1  # labels change all or none
    assert refused(client.status, label="canary")[0] == "NOT_FOUND"
    renamed = model_server_config_pb2.ModelConfig(name="other", base_path=str(folder))
    renamed.model_version_policy.specific.versions.append(1)
    client.configure(renamed)
    assert refused(client.status, "times")[0] == "NOT_FOUND"
    assert set(client.status("other")) == {1}
    renamed.model_version_policy.specific.ClearField("versions")
    assert refused(client.configure, renamed)[0] == "INVALID_ARGUMENT"
    lost = model_server_config_pb2.ModelConfig(name="lost", base_path=str(folder / "nowhere"))
    assert "Expected a name and a folder" in refused(client.configure, lost)[1]
    assert "different names" in refused(client.configure, config, config)[1]
