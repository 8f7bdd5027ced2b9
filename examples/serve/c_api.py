"""Answers a SavedModel through TensorFlow's C API, without Python TensorFlow, Keras or keras_capsvit; needs NumPy.

    python examples/serve/c_api.py saved_models/digits_gracapsnet                          # lists the endpoints
    python examples/serve/c_api.py saved_models/digits_gracapsnet --signature explain images=x.npy target=ids.npy
    python examples/serve/c_api.py saved_models/digits_gracapsnet --signature serve_bytes encoded=digit.png

The second prints the outputs as JSON, or writes them with --out. server.py answers clients so.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # 2 would print every error that is raised here

import numpy as np
from google.protobuf import empty_pb2, unknown_fields

STRING = 7
DTYPES = {  # TF_DataType
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    STRING: "object",
    9: "int64",
    10: "bool",
    19: "float16",
}
NAMES = {1: "DT_FLOAT", 2: "DT_DOUBLE", STRING: "DT_STRING", 19: "DT_HALF"}  # the others are called as in NumPy
CODES = {name: code for code, name in DTYPES.items()}
TSTRING_BYTES = 24
INITIALIZER = "__saved_model_init_op"  # listed among the signatures; it has run when the session is there
POINTERS = ("NewStatus", "NewGraph", "NewBuffer", "NewSessionOptions", "LoadSessionFromSavedModel")
POINTERS += ("GraphOperationByName", "AllocateTensor", "TensorData", "StringGetDataPointer")
SIZES = ("TensorByteSize", "TensorElementCount", "StringGetSize", "Dim")


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p))


class Output(ctypes.Structure):
    """TF_Output: a node of the graph and the number of its output."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class TensorFlowError(Exception):
    """An error of TensorFlow, with its message and the number of its status, 13 for an internal error."""

    def __init__(self, message, code=13):
        super().__init__(message)
        self.code = code


def dtype_name(code):
    """What protocol buffers in JSON call a dtype."""
    return NAMES.get(code) or f"DT_{DTYPES.get(code, code)}".upper()


def library():
    """The C library of the installed TensorFlow wheel, which is found but not imported.

    Raises:
        FileNotFoundError: if there is none.
    """
    spec = importlib.util.find_spec("tensorflow")
    folder = pathlib.Path(spec.origin).parent if spec else None
    path = next(folder.glob("libtensorflow_cc.*"), None) if folder else None
    if path is None:
        raise FileNotFoundError(f"Expected libtensorflow_cc in TensorFlow's wheel; found none in {folder}.")
    loaded = ctypes.CDLL(str(path))
    for name in POINTERS:
        getattr(loaded, f"TF_{name}").restype = ctypes.c_void_p
    for name in SIZES:
        getattr(loaded, f"TF_{name}").restype = ctypes.c_int64
    loaded.TF_Message.restype = ctypes.c_char_p
    return loaded


def fields(message):
    """Fields of a serialised protocol buffer, by number: lists of ints and bytes."""
    values = {}
    for field in unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(message)):
        values.setdefault(field.field_number, []).append(field.data)
    return values


def entries(message, number):
    """Values by key of the map that is field ``number`` of a serialised message."""
    pairs = (fields(entry) for entry in fields(message).get(number, ()))
    return {pair[1][0].decode(): pair[2][0] for pair in pairs}


def tensor_info(message):
    """Name, dtype code and shape (-1 where any size is taken, None for any rank) of a serialised TensorInfo."""
    info = fields(message)
    shape = fields(info[3][0]) if 3 in info else {3: [1]}
    # A size is a varint of 64 bits; the largest ones stand for negative numbers.
    sizes = [fields(dim).get(1, [0])[0] for dim in shape.get(2, ())]
    sizes = tuple(size - 2**64 if size >= 2**63 else size for size in sizes)
    return {"name": info[1][0].decode(), "dtype": info[2][0], "shape": None if shape.get(3, [0])[0] else sizes}


def check_names(infos, names):
    """Refuse other input names than an endpoint has."""
    if set(names) != set(infos):
        raise ValueError(f"Expected the inputs {', '.join(infos)}; received {', '.join(names) or 'none'}.")


def check_dtype(name, array, expected):
    """Refuse an array of another dtype; TensorFlow would too, but does not say which input it is."""
    if array.dtype.name != expected:
        raise ValueError(f"Expected {name} of dtype {expected}; received {array.dtype}.")
    if expected == DTYPES[STRING] and not all(isinstance(element, bytes) for element in array.flat):
        raise ValueError(f"Expected {name} of bytes; received other objects.")


def version_folders(path):
    """The folders of versions in ``path``, a pathlib.Path, by number; that of a SavedModel is one itself."""
    if (path / "saved_model.pb").is_file():
        return {int(path.name) if path.name.isdigit() else 1: path}
    return {int(child.name): child for child in path.glob("*") if child.name.isdigit() and child.is_dir()}


def newest(path):
    """Folder of the highest version in ``path``, or ``path`` if it is one itself.

    Raises:
        FileNotFoundError: if there is no SavedModel.
    """
    versions = version_folders(pathlib.Path(path))
    folder = versions[max(versions)] if versions else None
    if folder is None or not (folder / "saved_model.pb").is_file():
        where = pathlib.Path(path).resolve()
        raise FileNotFoundError(f"Expected a SavedModel, or version folders of one, in {where}; found none.")
    return folder


class SavedModel:
    """A SavedModel in a session of the C API.

    Args:
        folder: path of a folder with saved_model.pb.

    ``signatures`` has for every endpoint ``{"inputs": {name: info}, "outputs": {name: info}}`` (see ``tensor_info``),
    ``definitions`` its serialised SignatureDef.

    Raises:
        TensorFlowError: if it cannot be loaded.
    """

    def __init__(self, folder):
        self._tf = library()
        self._graph = ctypes.c_void_p(self._tf.TF_NewGraph())
        options = ctypes.c_void_p(self._tf.TF_NewSessionOptions())
        meta_graph = self._tf.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = self._checked(
            lambda status: self._tf.TF_LoadSessionFromSavedModel(
                options, None, str(folder).encode(), tags, 1, self._graph, ctypes.c_void_p(meta_graph), status
            )
        )
        self._tf.TF_DeleteSessionOptions(options)
        buffer = Buffer.from_address(meta_graph)
        signatures = sorted(entries(ctypes.string_at(buffer.data, buffer.length), 5).items())
        self._tf.TF_DeleteBuffer(ctypes.c_void_p(meta_graph))
        self.definitions = {name: definition for name, definition in signatures if name != INITIALIZER}
        self.signatures = {
            name: {
                kind: {key: tensor_info(info) for key, info in entries(definition, number).items()}
                for kind, number in (("inputs", 1), ("outputs", 2))
            }
            for name, definition in self.definitions.items()
        }

    def close(self):
        """Free the session and the graph; nothing may be running."""
        self._checked(lambda status: self._tf.TF_CloseSession(self._session, status))
        self._checked(lambda status: self._tf.TF_DeleteSession(self._session, status))
        self._tf.TF_DeleteGraph(self._graph)

    def signature(self, name):
        """Inputs and outputs of an endpoint; a ValueError lists those that there are."""
        if name not in self.signatures:
            raise ValueError(f"Expected a signature among {', '.join(self.signatures)}; received {name!r}.")
        return self.signatures[name]

    def run(self, name, inputs):
        """Outputs by name of an endpoint.

        Args:
            name: str, one of ``signatures``.
            inputs: dict of arrays by input name; bytes in arrays of dtype object.

        Returns:
            dict of arrays.

        Raises:
            ValueError: for an unknown endpoint, other inputs than it has, and other dtypes than these.
            TensorFlowError: for what the graph refuses.
        """
        signature = self.signature(name)
        check_names(signature["inputs"], inputs)
        arrays = {key: np.asarray(array) for key, array in inputs.items()}
        for key, array in arrays.items():
            check_dtype(key, array, DTYPES.get(signature["inputs"][key]["dtype"]))
        feeds = self._outputs(signature["inputs"][key] for key in arrays)
        fetches = self._outputs(signature["outputs"].values())
        outputs = (ctypes.c_void_p * len(fetches))()
        handles = []
        try:
            handles.extend(self._tensor(array) for array in arrays.values())
            tensors = (ctypes.c_void_p * len(handles))(*handles)
            self._checked(
                lambda status: self._tf.TF_SessionRun(
                    *(self._session, None, feeds, tensors, len(feeds), fetches, outputs, len(fetches)),
                    *(None, 0, None, status),
                )
            )
            return {key: self._array(tensor) for key, tensor in zip(signature["outputs"], outputs, strict=True)}
        finally:
            for tensor in handles:
                self._delete_strings(tensor)
            for tensor in (*handles, *filter(None, outputs)):
                self._tf.TF_DeleteTensor(ctypes.c_void_p(tensor))

    def _checked(self, call):
        """What ``call(status)`` returns, as a pointer."""
        status = ctypes.c_void_p(self._tf.TF_NewStatus())
        try:
            result = call(status)
            code = self._tf.TF_GetCode(status)
            if code:
                raise TensorFlowError(self._tf.TF_Message(status).decode(errors="replace"), code)
            return ctypes.c_void_p(result)
        finally:
            self._tf.TF_DeleteStatus(status)

    def _outputs(self, infos):
        """Array of TF_Output from infos whose names are like ``node:0``."""
        outputs = []
        for info in infos:
            node, _, index = info["name"].partition(":")
            operation = self._tf.TF_GraphOperationByName(self._graph, node.encode())
            if not operation:
                raise TensorFlowError(f"A signature names the node {node}, which the graph does not have.")
            outputs.append(Output(operation, int(index)))
        return (Output * len(outputs))(*outputs)

    def _tensor(self, array):
        """Pointer to a new TF_Tensor with the values of an array."""
        code = CODES[array.dtype.name]
        size = TSTRING_BYTES * array.size if code == STRING else array.nbytes
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = self._tf.TF_AllocateTensor(code, shape, array.ndim, ctypes.c_size_t(size))
        if code == STRING:
            for string, text in zip(self._strings(tensor), array.ravel(), strict=True):
                self._tf.TF_StringInit(string)
                self._tf.TF_StringCopy(string, text, ctypes.c_size_t(len(text)))
        elif size:
            values = array.astype(DTYPES[code]).tobytes()  # contiguous, and in this machine's byte order
            ctypes.memmove(self._tf.TF_TensorData(ctypes.c_void_p(tensor)), values, size)
        return tensor

    def _strings(self, tensor):
        """Pointers to the TF_TStrings of a TF_Tensor; none of one of numbers."""
        tensor = ctypes.c_void_p(tensor)
        if self._tf.TF_TensorType(tensor) != STRING:
            return []
        data, count = self._tf.TF_TensorData(tensor), self._tf.TF_TensorElementCount(tensor)
        return [ctypes.c_void_p(data + TSTRING_BYTES * index) for index in range(count)]

    def _delete_strings(self, tensor):
        """Free the strings of a tensor made here, which TF_DeleteTensor does not know."""
        for string in self._strings(tensor):
            self._tf.TF_StringDealloc(string)

    def _array(self, tensor):
        """Array with the values of a TF_Tensor."""
        pointer = ctypes.c_void_p(tensor)
        code = self._tf.TF_TensorType(pointer)
        if code not in DTYPES:
            raise ValueError(f"Expected outputs of {', '.join(CODES)}; received one of TensorFlow's dtype {code}.")
        shape = [self._tf.TF_Dim(pointer, axis) for axis in range(self._tf.TF_NumDims(pointer))]
        if code == STRING:
            parts = [(self._tf.TF_StringGetDataPointer(s), self._tf.TF_StringGetSize(s)) for s in self._strings(tensor)]
            return np.array([ctypes.string_at(*part) for part in parts], "object").reshape(shape)
        values = ctypes.string_at(self._tf.TF_TensorData(pointer), self._tf.TF_TensorByteSize(pointer))
        return np.frombuffer(values, DTYPES[code]).reshape(shape)


def read(path):
    """Array from an .npy file; the bytes of any other file as an array of one."""
    path = pathlib.Path(path)
    return np.load(path) if path.suffix == ".npy" else np.array([path.read_bytes()], "object")


def describe(model):
    """Print the endpoints."""
    for name, signature in model.signatures.items():
        inputs, outputs = (
            ", ".join(f"{key} {dtype_name(info['dtype'])} {info['shape']}" for key, info in signature[kind].items())
            for kind in ("inputs", "outputs")
        )
        print(f"{name}: {inputs} -> {outputs}")


def answer(model, args):
    """Print or write the outputs of one endpoint."""
    inputs = dict(text.split("=", 1) for text in args.inputs)
    outputs = model.run(args.signature, {key: read(path) for key, path in inputs.items()})
    if args.out:
        np.savez(args.out, **outputs)
    else:
        print(json.dumps({key: array.tolist() for key, array in outputs.items()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, help="folder of a SavedModel, or of its version folders")
    parser.add_argument("inputs", nargs="*", metavar="NAME=FILE", help=".npy files, or images for serve_bytes")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--out", type=pathlib.Path, help=".npz file for the outputs")
    args = parser.parse_intermixed_args()
    if not all("=" in text for text in args.inputs):
        parser.error(f"expected inputs as NAME=FILE; received {' '.join(args.inputs)}")
    try:
        model = SavedModel(newest(args.path))
        if args.inputs:
            answer(model, args)
        else:
            describe(model)
    except (TensorFlowError, ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
