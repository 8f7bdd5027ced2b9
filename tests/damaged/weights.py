"""Files of weights: .npz, .safetensors, .weights.h5 and .keras, into a small vision transformer."""

import io
import json
import pathlib
import struct
import zipfile

import h5py
import keras
import numpy as np
from safetensors.numpy import save

from damaged import damages
from damaged.damages import GENERIC
from keras_capsvit import VisionTransformer, load_model, load_weights_from
from keras_capsvit.models.published import published_names, torch_shape

UNNOTICED = ("flip", "zero")


class Weights:
    """A kind of file that a model gets its weights from.

    Args:
        name: str, of the file.
        special: dict from damages to callables ``(data, rng, marker) → data``.
        unnoticed: damages after which other finite values are no fault, because nothing in the file could tell.
    """

    errors = (ValueError, FileNotFoundError)

    def __init__(self, name, special, unnoticed=()):
        self.name, self.special, self.unnoticed = name, special, unnoticed
        self.damages = (*GENERIC, *special)

    def make(self, folder):
        rng = np.random.default_rng(0)
        self.model = transformer()
        self.model.set_weights([rng.normal(size=array.shape).astype("float32") for array in self.model.get_weights()])
        self.write(folder / self.name)
        self.base = [array + 1 for array in self.model.get_weights()]

    def write(self, path):
        self.model.save(path) if path.suffix == ".keras" else self.model.save_weights(path)

    def read(self, folder):
        self.model.set_weights(self.base)
        load_weights_from(self.model, folder / self.name)
        return self.model.get_weights()

    def unchanged(self):
        return all(map(np.array_equal, self.model.get_weights(), self.base))

    def damage(self, name, folder, rng, marker):
        file = folder / self.name
        change = self.special.get(name, lambda data, rng, marker: damages.generic(name, data, rng, marker))
        file.write_bytes(change(file.read_bytes(), rng, marker))
        return [file]


class Published(Weights):
    """Files with the names and layouts of timm."""

    def write(self, path):
        arrays = {}
        for name, variable in published_names(self.model).items():
            array = keras.ops.convert_to_numpy(variable)
            if variable.name == "kernel":
                array = np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim == 4 else array.T
            arrays[name] = np.ascontiguousarray(array.reshape(torch_shape(variable)))
        if path.suffix == ".safetensors":
            path.write_bytes(save(arrays))
        else:
            (np.savez_compressed if "deflated" in path.name else np.savez)(path, **arrays)


class Whole(Weights):
    """Models that ``load_model`` makes of a file alone."""

    def read(self, folder):
        return load_model(folder / self.name).get_weights()

    def unchanged(self):
        return True


def transformer():
    return VisionTransformer("Ti/4", input_shape=(8, 8, 1), num_classes=3, width=8, depth=1, num_heads=2)


def _npz(change):
    """Change of one array of an .npz: callable ``(array, rng, marker) → bytes of an .npy``."""

    def damage(data, rng, marker):
        parts = damages.members(data)
        name = str(rng.choice(sorted(parts)))
        return damages.zipped({**parts, name: change(np.load(io.BytesIO(parts[name])), rng, marker)})

    return damage


def _spoiled(array, rng, value):
    array = array.astype("float64" if abs(value) > 1e30 else array.dtype)
    array.reshape(-1)[int(rng.integers(array.size))] = value
    return array


def _numbers(array, rng):
    """The array as numbers that are no floats, or none that NumPy has."""
    kinds = ("int32", "complex64", "bool", "S8", "U3", "V4", ">f4")
    return array.astype(str(rng.choice(kinds)))


def _npz_bomb(data, rng, marker):
    name = str(rng.choice(sorted(damages.members(data))))
    begins = (
        damages.npy_header((damages.BOMB // 4,)),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", damages.BOMB - 64),  # a header of that size
        damages.npy_header((8,)),
    )
    return damages.bomb(name, begins[int(rng.integers(len(begins)))])


def _twice(data, rng, marker):
    parts = damages.members(data)
    name = str(rng.choice(sorted(parts)))
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), parts[name])
    return file.getvalue()


NPZ = {
    "NaN": _npz(lambda array, rng, _: damages.npy(_spoiled(array, rng, np.nan))),
    "1e300": _npz(lambda array, rng, _: damages.npy(_spoiled(array, rng, 1e300))),
    "dtype": _npz(lambda array, rng, _: damages.npy(_numbers(array, rng))),
    "pickle": _npz(lambda array, rng, marker: damages.npy(array, marker)),
    "shape": _npz(lambda array, rng, _: damages.npy(array.reshape(-1, 1, 1))),
    "lie in a header": _npz(
        lambda array, rng, _: damages.npy_header(tuple(np.multiply(array.shape, 2**20).tolist())) + array.tobytes()
    ),
    "lie in directory": lambda data, rng, marker: damages.lying_directory(data, rng),
    "encrypted": lambda data, rng, marker: damages.encrypted(data),
    "twice": _twice,
    "bomb": _npz_bomb,
}


def _header(change):
    """Change of the header of a .safetensors, ``(header, rng) → None``, in place; bytes behind it stay."""

    def damage(data, rng, marker):
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        entry = header[str(rng.choice(sorted(header)))]
        change(entry, rng)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return damage


def _tensors(change):
    def damage(data, rng, marker):
        from safetensors.numpy import load

        arrays = load(data)
        name = str(rng.choice(sorted(arrays)))
        return save({**arrays, name: change(arrays[name], rng)})

    return damage


def _lie(entry, rng):
    which = int(rng.integers(3))
    if which == 0:
        entry["shape"] = [int(2 ** rng.integers(1, 62))] + entry["shape"]
    elif which == 1:
        entry["data_offsets"][int(rng.integers(2))] = int(rng.integers(2**40))
    else:
        entry["dtype"] = str(rng.choice(["F64", "F8_E4M3", "BF16", "X", "I64"]))


def _length(data, rng, marker):
    return struct.pack("<Q", int(2 ** rng.integers(1, 63))) + data[8:]


SAFETENSORS = {
    "NaN": _tensors(lambda array, rng: _spoiled(array, rng, np.nan)),
    "1e300": _tensors(lambda array, rng: _spoiled(array, rng, 1e300)),
    "dtype": _tensors(lambda array, rng: array.astype(str(rng.choice(["int32", "bool", "complex64"])))),
    "shape": _tensors(lambda array, rng: array.reshape(-1, 1, 1)),
    "lie in a header": _header(_lie),
    "length of header": _length,
}


def _h5(change):
    """Change of a dataset of an HDF5 file, ``(group, name, values, rng, marker) → None``."""

    def damage(data, rng, marker):
        file = io.BytesIO(data)
        with h5py.File(file, "r+") as opened:
            names = []
            opened.visititems(lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) else None)
            floats = [name for name in names if opened[name].dtype.kind == "f" and opened[name].size]
            name = str(rng.choice(floats))
            values = opened[name][()]
            del opened[name]
            change(opened, name, values, rng, marker)
        return file.getvalue()

    return damage


def _put(values_of, **settings):
    return _h5(
        lambda file, name, values, rng, marker: file.create_dataset(name, data=values_of(values, rng), **settings)
    )


def _external(file, name, values, rng, marker):
    secret = marker.with_name("secret")
    secret.write_bytes(values.tobytes())
    which = int(rng.integers(4))
    if which == 0:
        file.create_dataset(name, values.shape, "f4", external=[(str(secret), 0, values.nbytes)])
    elif which == 1:
        with h5py.File(marker.with_name("secret.h5"), "w") as secret_file:
            secret_file["values"] = values
        file[name] = h5py.ExternalLink(str(marker.with_name("secret.h5")), "values")
    elif which == 2:
        file[name] = h5py.SoftLink("/elsewhere")
    else:
        layout = h5py.VirtualLayout(values.shape, "f4")
        with h5py.File(marker.with_name("secret.h5"), "w") as secret_file:
            secret_file["values"] = values
        layout[...] = h5py.VirtualSource(str(marker.with_name("secret.h5")), "values", values.shape)
        file.create_virtual_dataset(name, layout)


def _h5_bomb(file, name, values, rng, marker):
    if rng.integers(2):  # a shape that costs nothing to claim
        file.create_dataset(name, (damages.BOMB // 4,), "f4", chunks=(2**20,), compression="gzip", fillvalue=1.0)
    else:  # the right shape, in a piece that is far larger
        piece = (damages.BOMB // 4, *(1 for _ in values.shape[1:]))
        file.create_dataset(
            name, values.shape, "f4", chunks=piece, maxshape=(None,) * values.ndim, compression="gzip", fillvalue=1.0
        )


H5 = {
    "NaN": _put(lambda values, rng: _spoiled(values, rng, np.nan)),
    "1e300": _put(lambda values, rng: _spoiled(values, rng, 1e300)),
    "dtype": _put(lambda values, rng: values.astype(str(rng.choice(["int32", "complex64", "bool", "S8", ">f4"])))),
    "shape": _put(lambda values, rng: values.reshape(-1, 1, 1)),
    "compressed": _put(lambda values, rng: values, compression="gzip"),
    "other files": _h5(_external),
    "bomb": _h5(_h5_bomb),
}


def _inside(change):
    """A change of the HDF5 file inside a .keras archive."""

    def damage(data, rng, marker):
        parts = damages.members(data)
        return damages.zipped({**parts, "model.weights.h5": change(parts["model.weights.h5"], rng, marker)})

    return damage


def _keras_bomb(data, rng, marker):
    return damages.bomb("model.weights.h5", damages.members(data)["model.weights.h5"])


KERAS = {
    **{name: _inside(change) for name, change in H5.items()},
    "lie in directory": lambda data, rng, marker: damages.lying_directory(data, rng),
    "encrypted": lambda data, rng, marker: damages.encrypted(data),
    "deflated bomb": _keras_bomb,
    "without weights": lambda data, rng, marker: damages.zipped(
        {name: part for name, part in damages.members(data).items() if "weights" not in name}
    ),
}


def _config(change):
    def damage(data, rng, marker):
        parts = damages.members(data)
        config = json.loads(parts["config.json"])
        changed = change(config, rng, marker)
        return damages.zipped({**parts, "config.json": json.dumps(changed).encode()})

    return damage


def _large(config, rng, marker):
    config["config"][str(rng.choice(["width", "num_classes"]))] = int(rng.choice([2**20, 2**24, 2**28]))
    return config


def _code(config, rng, marker):
    """A configuration that names code: a lambda, a function of Python, a class that Python would have to import."""
    code = [
        {"class_name": "Lambda", "module": "keras.layers", "config": {"function": _lambda(marker)}},
        {"class_name": "__lambda__", "config": {"value": _lambda(marker)}},
        {"class_name": "function", "module": "os", "config": "system", "registered_name": "function"},
        {"class_name": "Popen", "module": "subprocess", "config": {"args": f"touch {marker}", "shell": True}},
        {"class_name": "Sequential", "module": "keras", "config": {"layers": [{"class_name": "Run", "module": "run"}]}},
    ]
    program = code[int(rng.integers(len(code)))]
    if rng.integers(2):
        return program
    config["config"]["epsilon"] = program
    return config


def _lambda(marker):
    """A lambda as Keras writes it, which would make a file."""
    layer = keras.layers.Lambda(lambda x, file=str(marker): (pathlib.Path(file).touch(), x)[1])
    return keras.saving.serialize_keras_object(layer)["config"]["function"]


CONFIG = {"large": _config(_large), "code": _config(_code)}
KINDS = {
    "npz": Published("weights.npz", NPZ),
    "npz deflated": Published("weights.deflated.npz", NPZ),
    "safetensors": Published("weights.safetensors", SAFETENSORS, UNNOTICED),
    "weights.h5": Weights("model.weights.h5", H5, UNNOTICED),
    "keras": Weights("weights.keras", KERAS),
    "keras model": Whole("model.keras", {**KERAS, **CONFIG}),
}
