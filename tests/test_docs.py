"""The pages: their code runs, their links lead somewhere, and the reference has everything public."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import shutil
import subprocess

import keras
import pytest
from sklearn.ensemble import RandomForestClassifier

import keras_capsvit

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "serve" / "README.md",
    ROOT / "examples" / "reproduce" / "REPRODUCTION.md",
    ROOT / "saved_models" / "README.md",
]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    return [code for language, code in FENCE.findall(path.read_text()) if language in languages]


def anchors(path):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    broken = []
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_code_compiles(path):
    for code in blocks(path, "python", "py"):
        ast.parse(code)
    for code in blocks(path, "sh"):
        bash = shutil.which("bash") or pytest.skip("no bash")
        done = subprocess.run([bash, "-n"], input=code, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr


def test_the_readme_is_for_people_in_a_hurry():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    for number in ("1,182,634", "99.17", "92.08", ".531", "9.1"):  # of its table; their records stand there
        assert any(number in page.read_text() for page in PAGES if page.parent.name == "docs"), number


# Code of the guides, as it stands there, on small models of real digits.

GUIDES = [page for page in PAGES if page.parent.name == "docs" and blocks(page, "python")]
SHORTER = [
    ("(28, 28, 1)", "(12, 12, 1)"),
    ('load("digits")', 'load("digits", image_size=12)'),
    ('load("digits", batch_size=32)', 'load("digits", image_size=12, batch_size=32)'),
    ("epochs=10", "epochs=1"),
    ("epochs=3", "epochs=1"),
    ("queries=1000", "queries=20"),
    ("audit.show()", ""),  # in a notebook
    ("steps=500", "steps=3"),
    ("PatchAttack(32, transforms", "PatchAttack(4, transforms"),
    ("translation=8", "translation=2"),
    ("keras.Input((32, 32, 3))", "keras.Input((12, 12, 1))"),
    ('"resnet20_cifar10.npz"', "None"),
]


@pytest.fixture
def prepared(digits, resized, tmp_path, monkeypatch):
    """What the guides take for granted: a model, images and labels, a stream, and what else they name."""
    from keras_capsvit import GraCapsNet, VisionTransformer, attacks, data, evaluate, explain, layers

    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models" / "digits_gracapsnet").symlink_to(ROOT / "saved_models" / "digits_gracapsnet")
    keras.utils.set_random_seed(0)
    images, labels = resized(160, 12), digits[1][:160]
    model = GraCapsNet((12, 12, 1), 10, num_heads=4, primary_dim=4, capsule_dim=6, filters=16)
    model.compile("adam", "sparse_categorical_crossentropy")
    streams = (data.from_arrays(images, labels, batch_size=40), data.from_arrays(images[:32], labels[:32]))
    return {
        **{"model": model, "x": images[:16], "y": labels[:16], "train": streams[0], "test": streams[1]},
        **{"attacks": attacks, "data": data, "evaluate": evaluate, "explain": explain, "layers": layers},
        "vit": VisionTransformer("Ti/4", input_shape=(12, 12, 1), num_classes=10, width=16, depth=6, num_heads=2),
        "backbone": keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]),
        "pgd": attacks.PGD(0.1, steps=2),
        "forest": RandomForestClassifier(5, random_state=0).fit(images.reshape(160, -1), labels),
    }


@pytest.mark.long
@pytest.mark.tensorflow
@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_python_in_the_guides_runs(path, prepared):
    code = "\n".join(blocks(path, "python"))
    for long, short in SHORTER:
        code = code.replace(long, short)
    exec(compile(code, name_of(path), "exec"), prepared)


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("reference")


def everything_public():
    """Full names of all that the package and its rooms promise, found by walking through the package."""
    submodules = {name for _, name, _ in pkgutil.iter_modules(keras_capsvit.__path__)}
    for room in sorted(submodules & set(keras_capsvit.__all__)):
        module = importlib.import_module(f"keras_capsvit.{room}")
        own = [name for name, member in vars(module).items() if getattr(member, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", own):
            if not name.startswith("_") and not inspect.ismodule(getattr(module, name)):
                yield f"{module.__name__}.{name}"


@pytest.mark.tensorflow
def test_the_reference_has_everything_public(reference, tmp_path):
    (tmp_path / "attacks.Gone.rst").write_text("a page of a name that is gone")
    reference.write(tmp_path)
    written = {path.stem for path in tmp_path.iterdir()}
    assert "attacks.Gone" not in written
    names = list(everything_public())
    assert len(names) > 150
    for name in names:
        _, room, item = name.split(".")
        page = (tmp_path / f"{room}.rst").read_text()
        assert (f":py:obj:`{item}`" in page and f"{room}.{item}" in written) or f".. py:data:: {item}\n" in page, name
    index = (tmp_path / "index.rst").read_text()
    for name in keras_capsvit.__all__:
        assert f":py:obj:`{name} <" in index or f"\n   {name}\n" in index, name


@pytest.mark.skipif(not (ROOT / "build" / "docs" / "objects.inv").is_file(), reason="the site is not built")
def test_the_built_site_has_everything_public():
    inventory = pytest.importorskip("sphinx.util.inventory")
    with (ROOT / "build" / "docs" / "objects.inv").open("rb") as file:
        listed = inventory.InventoryFile.load(file, "", lambda _, path: path)
    there = {name for kind, names in listed.items() if kind.startswith("py:") for name in names}
    assert not [name for name in everything_public() if name not in there]
    scripts = {path.stem for path in (ROOT / "docs" / "gallery").glob("*.py")}
    assert scripts and scripts <= {path.stem for path in (ROOT / "build" / "docs" / "gallery_pages").glob("*.html")}
