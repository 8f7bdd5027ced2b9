"""Serves a SavedModel in KServe, explanations included, through TensorFlow's C API.

    python examples/serve/kserve_runtime.py --model_dir saved_models/digits_gracapsnet --model_name digits
    python examples/serve/kserve_runtime.py --model_dir /mnt/models --model_name digits --explainer lrp --http_port 8080

The highest version in the folder is served: inference in the Open Inference Protocol (V2) over REST and gRPC, binary
tensors too, and in V1, ``:predict`` and ``:explain``. The parameter ``signature_name`` of a request of V2, or the key
of this name in V1, is the endpoint that answers, so explanations can be asked for in both. ``:explain`` answers
``{"predictions": [...], "explanations": [...]}`` by the endpoint of ``--explainer``, of classes in ``target``, or of
the predicted ones. ``/v2/models/NAME`` tells inputs and outputs, ``/v2/models/NAME/card`` is the model card. Image
files go over gRPC, or in V1 as ``{"b64": ...}``: KServe's REST of V2 takes texts only. KServe's own options
(``--help``) hold. Needs ``pip install kserve tensorflow``; kserve.yaml is a manifest.
"""

import argparse
import asyncio
import json
import pathlib

import kserve
import numpy as np
from c_api import DTYPES, STRING, SavedModel, TensorFlowError, check_names, newest
from kserve.errors import InferenceError, InvalidInput, ModelNotFound
from kserve.model_server import app
from rest import checked, in_rows, numbers, run

V2 = {  # datatypes of the protocol
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
    "object": "BYTES",
}
PREDICTED = -1  # as a target: the predicted class
REFUSED = (3, 11)  # TensorFlow's codes for what is wrong with a request


class Runtime(kserve.Model):
    """A SavedModel as KServe's model.

    Args:
        name: str, in addresses.
        path: of a SavedModel, or its version folders.
        explainer: str, the endpoint of ``:explain``; None for the first that takes a target.
    """

    def __init__(self, name, path, explainer=None):
        super().__init__(name)
        self._path, self._explainer, self._served = path, explainer, None
        self.card = {}

    def load(self):
        folder = newest(self._path)
        served = SavedModel(folder)
        card = folder / "model_card.json"
        self.card = json.loads(card.read_text()) if card.is_file() else {}
        explainers = [name for name, signature in served.signatures.items() if "maps" in signature["outputs"]]
        if self._explainer is not None and self._explainer not in explainers:
            raise ValueError(f"Expected an explainer among {', '.join(explainers)}; received {self._explainer}.")
        by_class = [name for name in explainers if "target" in served.signatures[name]["inputs"]]
        self._explainer = self._explainer or next(iter(by_class + explainers), None)
        self._served, self.ready = served, True
        return True

    def get_input_types(self):
        return self._types("inputs")

    def get_output_types(self):
        return self._types("outputs")

    def _types(self, kind):
        infos = self._served.signature("serving_default")[kind]
        return [
            {"name": name, "datatype": V2[DTYPES[info["dtype"]]], "shape": list(info["shape"] or ())}
            for name, info in infos.items()
        ]

    async def predict(self, payload, headers=None, response_headers=None):
        return await self._answered(self._inferred if isinstance(payload, kserve.InferRequest) else self._rows, payload)

    async def explain(self, payload, headers=None):
        return await self._answered(self._explained, payload)

    async def _answered(self, method, payload):
        """What a method answers, in a thread, so that others are answered meanwhile; its errors are KServe's."""
        try:
            return await asyncio.to_thread(method, payload)
        except TensorFlowError as error:
            raise (InvalidInput if error.code in REFUSED else InferenceError)(str(error)) from error
        except ValueError as error:
            raise InvalidInput(str(error)) from error

    def _rows(self, payload):
        return {"predictions": in_rows(*run(self._served, checked(payload)))}

    def _explained(self, payload):
        if isinstance(payload, kserve.InferRequest):
            raise ValueError("Expected a request of V1 to :explain; in V2 name the explainer as signature_name.")
        if self._explainer is None:
            raise ValueError("The model was exported without explainers; pass explainers= to serving.export.")
        request = checked(payload)
        if "instances" not in request:
            raise ValueError("Expected 'instances', a list with one entry per image.")
        answers = in_rows(*run(self._served, request, self._explainer, {"target": PREDICTED}))
        if not answers or "maps" not in answers[0]:
            raise ValueError(f"Expected an explainer as signature_name; {request.get('signature_name')} is none.")
        explanations = [row.pop("maps") for row in answers]
        return {"predictions": answers, "explanations": explanations}

    def _inferred(self, request):
        name = parameter(request.parameters, "signature_name") or "serving_default"
        infos = self._served.signature(name)["inputs"]
        tensors = {each.name: each for each in request.inputs}
        check_names(infos, tensors)
        outputs = self._served.run(
            name, {key: array(tensors[key], DTYPES[info["dtype"]]) for key, info in infos.items()}
        )
        asked = [each.name for each in request.request_outputs or ()] or list(outputs)
        check_outputs(asked, outputs)
        answers = [
            kserve.InferOutput(key, list(outputs[key].shape), V2[outputs[key].dtype.name], data=outputs[key])
            for key in asked
        ]
        return kserve.InferResponse(
            response_id=request.id,
            model_name=self.name,
            infer_outputs=answers,
            from_grpc=request.from_grpc,
            use_binary_outputs=request.use_binary_outputs and not request.from_grpc,  # where arrays are always binary
            requested_outputs=request.request_outputs,
        )


def check_outputs(names, outputs):
    """Refuse names of outputs that an endpoint does not have."""
    if not set(names) <= set(outputs):
        raise ValueError(f"Expected outputs among {', '.join(outputs)}; received {', '.join(names)}.")


def parameter(parameters, name):
    """Value of a request's parameter, over REST or gRPC; None if it is not given."""
    value = (parameters or {}).get(name)
    value = getattr(value, "string_param", value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"Expected the parameter {name} as a string; received {value!r:.60}.")
    return value


def array(tensor, dtype):
    """Array of a dtype of an input of a request; refuses what is of another one, or not as much as its shape says."""
    if tensor.datatype != V2[dtype]:
        raise ValueError(f"Expected {tensor.name} of datatype {V2[dtype]}; received {tensor.datatype}.")
    if not tensor.data:  # binary, or nothing
        try:
            return tensor.as_numpy()
        except ValueError as error:
            raise ValueError(f"Expected as many values of {tensor.name} as its shape {tensor.shape} says.") from error
    cells = np.array(tensor.data, "object").ravel()
    of_bytes = dtype == DTYPES[STRING] and all(isinstance(value, bytes) for value in cells)
    values = cells if of_bytes else numbers(tensor.name, cells, dtype)
    if any(size < 0 for size in tensor.shape) or np.prod(tensor.shape, dtype="object") != values.size:
        raise ValueError(
            f"Expected as many values of {tensor.name} as its shape {tensor.shape}; received {values.size}."
        )
    return values.reshape(tensor.shape)


def main():
    parser = argparse.ArgumentParser(
        parents=[kserve.model_server.parser], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_dir", required=True, type=pathlib.Path, help="a SavedModel, or its version folders")
    parser.add_argument("--explainer", help="the endpoint of :explain; the first that takes a target if not given")
    args = parser.parse_args()
    model = Runtime(args.model_name, args.model_dir, args.explainer)
    try:
        model.load()
    except (TensorFlowError, ValueError, OSError) as error:
        raise SystemExit(str(error)) from error

    @app.get("/v2/models/{name}/card")
    async def card(name: str):
        if name != model.name:
            raise ModelNotFound(name)
        return model.card

    server = kserve.ModelServer(http_port=args.http_port, grpc_port=args.grpc_port, enable_grpc=args.enable_grpc)
    server.start([model])


if __name__ == "__main__":
    main()
