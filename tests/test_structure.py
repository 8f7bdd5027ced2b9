"""The architecture of the README: who imports whom, and what the package promises about itself."""

import ast
import importlib
import pathlib

import keras
import pytest

import keras_capsvit

PACKAGE = pathlib.Path(keras_capsvit.__file__).parent
ALLOWED = {
    "private": set(),
    "ops": {"checks"},
    "caches": set(),
    "batches": set(),
    "files": {"files"},
    "checks": {"checks"},
    "autodiff": {"private", "autodiff"},
    "taps": {"private", "autodiff", "caches", "checks", "taps"},
    "patches": {"checks"},
    "data": {"files", "checks", "patches", "versions", "data"},
    "plot": {"checks", "plot"},
    "serving": {"files", "ops", "taps", "autodiff", "checks", "versions", "serving"},
    "losses": {"ops", "checks"},
    "metrics": {"ops", "checks"},
    "schedules": {"checks"},
    "training": {"losses", "metrics", "schedules", "taps", "autodiff", "checks", "files", "private", "training"},
    "layers": {"ops", "autodiff", "checks", "layers"},
    "models": {"files", "ops", "taps", "autodiff", "checks", "private", "layers", "models"},
    "evaluate": {"files", "ops", "taps", "autodiff", "batches", "caches", "checks", "patches", "evaluate"},
    "attacks": {"ops", "taps", "autodiff", "batches", "caches", "checks", "patches", "attacks"},
    "explain": {"private", "ops", "taps", "autodiff", "caches", "checks", "explain"},
    "report": {
        *("files", "taps", "checks", "patches", "data", "models", "attacks", "explain", "evaluate", "report"),
    },
    "versions": set(),
    "__init__": {"layers", "losses", "metrics", "models", "schedules", "versions"},
}
BASES = {
    "CapsuleModel",
    "ConfiguredModel",
    "Routing",
    "TemperedAttention",
    "InChunks",
}  # of registered classes, not made themselves, or part of models that make it anew from their own arguments
KNOWS_TENSORFLOW = {
    *("private", "autodiff", "taps/graphs", "data", "serving", "explain/relevance"),
    *("training/streams", "training/randomness", "training/processes"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    names = list(imports(path))
    inside = {name.split(".")[1] for name in names if name.startswith("keras_capsvit.")}
    assert inside <= ALLOWED[part(path)]
    if not path.relative_to(PACKAGE).with_suffix("").as_posix().startswith(tuple(KNOWS_TENSORFLOW)):
        assert not [name for name in names if name.split(".")[0] in ("tensorflow", "jax", "torch")]


def test_one_file_knows_the_inside_of_keras_and_tensorflow():
    inside = ("tensorflow.python", "keras.src")
    knowing = [path for path in FILES if any(name in path.read_text() for name in inside)]
    assert knowing == [PACKAGE / "private.py"]


def test_no_other_file_reads_private_attributes_of_keras_and_tensorflow():
    """Attributes with one underscore belong to ``self``, or to an object of the same file."""
    for path in FILES:
        if path.name == "private.py":
            continue
        tree = ast.parse(path.read_text())
        own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _stored_by_self(node)}
        own |= {"_replace", "_asdict", "_fields"}  # public, of named tuples
        own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        foreign = [
            f"{path.name}:{node.lineno} {node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            and node.attr not in own
        ]
        assert not foreign


def _stored_by_self(node):
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def test_every_part_has_its_arrows_listed():
    assert {part(path) for path in FILES} == set(ALLOWED)


@pytest.mark.slow
def test_import_needs_neither_tensorflow_nor_matplotlib(fresh_process):
    code = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
for name in ("tensorflow", "matplotlib", "tensorflow_datasets"):
    sys.modules[name] = None  # as if it were not installed
try:
    import jax
except ImportError:
    print("no jax")
else:
    import keras_capsvit
    model = keras_capsvit.GraCapsNet((9, 9, 1), 3, filters=8, num_heads=2)
    keras_capsvit.explain.GraphAttention(model)
    for explainer in (keras_capsvit.explain.LRP, keras_capsvit.explain.CLRP):
        try:
            explainer(model)
        except ValueError as error:
            assert "needs the tensorflow backend; received 'jax'" in str(error)
    print(model.count_params() > 0)
"""
    assert fresh_process(code).split()[-1] in ("True", "jax")


def test_everything_public_has_a_docstring():
    for name in keras_capsvit.__all__:
        assert getattr(keras_capsvit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'resnets'"):
        _ = keras_capsvit.resnets


def test_every_keras_object_of_the_package_is_registered():
    kinds = (keras.Layer, keras.losses.Loss, keras.metrics.Metric, keras.initializers.Initializer)
    count = 0
    for path in FILES:
        module = importlib.import_module(".".join(("keras_capsvit", *path.relative_to(PACKAGE).with_suffix("").parts)))
        own = [member for member in vars(module).values() if getattr(member, "__module__", "") == module.__name__]
        for member in own:
            is_keras_object = isinstance(member, type) and issubclass(member, kinds)
            if is_keras_object and member.__name__ not in BASES and not member.__name__.startswith("_"):
                assert keras.saving.get_registered_name(member) == f"keras_capsvit>{member.__name__}"
                count += 1
    assert count >= 20
