"""What rows of chapters 4 and 5 compute themselves, and that their settings fit their code."""

import importlib
import pathlib
import types

import numpy as np
import pytest

from keras_capsvit import data
from keras_capsvit.models import CapsNet, ConvNetFC

pytestmark = pytest.mark.tensorflow
REPRODUCE = pathlib.Path(__file__).parent.parent / "examples" / "reproduce"
CHAPTERS = (4, 5)
SIZES = {"capsnet": {"filters": 8, "num_types": 1, "reconstruction_units": [8, 8]}}


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(REPRODUCE))


def module(name):
    return importlib.import_module(f"chapters.{name}")


def rows_of(number):
    return [each for each in importlib.import_module("rows").registry().values() if each.chapter == number]


@pytest.mark.parametrize("number", CHAPTERS)
def test_every_row_has_a_function_lines_and_minutes(number):
    assert len(rows_of(number)) == {4: 9, 5: 8}[number]
    for row in rows_of(number):
        assert callable(row.function)
        start, end = map(int, row.table["lines"].split("-"))
        assert 1318 < start < end < 2095
        assert row.minutes("cpu") <= 20
        assert row.table["profiles"]["cpu"]["scaled"]


@pytest.mark.parametrize("number", CHAPTERS)
def test_no_comparison_contradicts_published_numbers_or_another(number):
    for row in rows_of(number):
        published, pairs = row.table["published"], [tuple(pair) for pair in row.table.get("order", ())]
        assert len(set(pairs)) == len(pairs)
        for larger, smaller in pairs:
            assert (smaller, larger) not in pairs
            if larger in published and smaller in published:
                assert published[larger] > published[smaller], (row.name, larger, smaller)
        for first, second, apart in row.table.get("equal", ()):
            if first in published and second in published:
                assert abs(published[first] - published[second]) <= apart


def test_rows_that_share_models_have_the_same_sizes():
    registry = importlib.import_module("rows").registry()
    groups = (("4.T1", "4.F1", "4.F2", "4.F4", "4.F5", "5.F4", "5.T5"), ("4.MM", "5.T4", "5.F3"))
    groups += (("4.T2", "4.F6", "5.T1", "5.T2", "5.T3", "5.S1"),)
    for names in groups:
        for profile in ("smoke", "cpu", "gpu"):
            shared = [
                {key: getattr(registry[name].setting(profile), key) for key in ("train", "validation", "recipes")}
                for name in names
            ]
            assert all(each == shared[0] for each in shared), (names, profile)


def test_published_names_are_those_the_code_measures():
    of = {row.name: row for number in CHAPTERS for row in rows_of(number)}
    four, five, overlaps = module("chapter_4"), module("chapter_5"), module("chapter_5_overlaps")
    representations, titles = module("chapter_5_representations"), module("shared").TITLES.values()
    assert set(of["4.T1"].table["published"]) == {f"{name} on {title}" for name in four.ROUTINGS for title in titles}
    assert set(of["5.T4"].table["published"]) == set(overlaps.ABLATION)
    suffixes = ("", ", not deformed")
    assert set(of["5.T2"].table["published"]) == {name + end for name in five.AFFINE_ABLATION for end in suffixes}
    groups = [five.group_title(*each) for each in of["5.S1"].setting("full").groups]
    assert set(of["5.S1"].table["published"]) == {name + end for name in groups for end in suffixes}
    kernels = of["5.T3"].setting("full").kernels
    named = {five.kernel_title(name, k) for name in ("CapsNet", "ConvNet-FC", "ConvNet-Avg") for k in kernels}
    assert {name for name in of["5.T3"].table["published"] if "," not in name} <= named
    assert set(of["5.T5"].table["published"]) == {
        f"{name} on {title}, {factor}"
        for name in representations.MODELS
        for title in ("MNIST", "Fashion-MNIST")
        for factor in representations.FACTORS.values()
    }


def test_sizes_of_the_models_are_the_published_ones():
    five = module("chapter_5")
    row = next(row for row in rows_of(5) if row.name == "5.T1")
    for name, size in five.sizes(["Aff-CapsNet", "ConvNet-Avg"]).items():
        assert size == pytest.approx(row.table["published"][name], abs=0.1)


def test_build_makes_the_named_model():
    capsules = module("capsules")
    info = data.Info((20, 20, 1), tuple("abc"))
    model = capsules.build("Aff-CapsNet-DR", SIZES, squash=False)(info)
    assert type(model) is CapsNet
    config = model.get_config()
    assert (config["routing"], config["shared_transform"], config["squash"]) == ("dynamic", True, False)
    assert (config["filters"], config["reconstruction"]) == (8, "conditional")
    fully = capsules.build("ConvNet-FC", {"convnet_fc": {"filters": [4, 4, 4], "units": [4, 4]}})(info)
    assert type(fully) is ConvNetFC
    assert fully.output_shape == (None, 3)


def test_at_accuracy():
    at_accuracy = module("capsules").at_accuracy
    assert at_accuracy([0.5, 0.95, 0.9, 0.99], 0.9) == 1
    assert at_accuracy([0.5, 0.9], 0.9) == 1
    assert at_accuracy([0.5, 0.8, 0.7], 0.9) == 2


def test_response_is_the_range_of_pixels_in_percent():
    decoded = np.zeros((2, 3, 5, 4, 4, 1))
    decoded[1, 2, 0, :2] = 0.5  # half of the pixels, in one of the offsets
    decoded[0, 1, :, 0, 0] = 1.0  # does not change
    changes = module("capsules").response(decoded)
    assert changes.shape == (2, 3)
    assert changes[1, 2] == pytest.approx(25)
    assert np.count_nonzero(changes) == 1


def test_joined_keeps_all_numbers_in_order():
    parts = [{"measured": {name: k}, "curves": {name: [k]}, "notes": "same"} for k, name in enumerate("ab")]
    assert module("capsules").joined(iter(parts)) == {
        "measured": {"a": 0, "b": 1},
        "curves": {"a": [0], "b": [1]},
        "notes": "same",
    }


def test_cosines_leave_out_rows_of_zeros():
    first = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    second = np.array([[-2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert module("chapter_4").cosines(first, second) == pytest.approx([-1, 0.5**0.5])


def test_agreement_is_the_mean_over_images_of_all_batches(monkeypatch):
    four, capsules = module("chapter_4"), module("capsules")
    rng = np.random.default_rng(0)
    images, labels = rng.random((5, 20, 20, 1), "float32"), rng.integers(0, 3, 5)
    model = capsules.build("Dynamic-R", SIZES)(data.Info((20, 20, 1), tuple("abc")))
    together = four.agreement(model, images, labels)
    monkeypatch.setattr(four, "AT_ONCE", 2)
    assert four.agreement(model, images, labels) == pytest.approx(together, rel=1e-5)
    assert together["target"] > 0


def test_sweeps_move_the_true_class_only():
    capsules = module("capsules")
    rng = np.random.default_rng(1)
    images, labels = rng.random((2, 20, 20, 1), "float32"), np.array([2, 0])
    info = data.Info((20, 20, 1), tuple("abc"))
    for name in ("conditional", "unconditional"):
        model = capsules.build("No-R", SIZES, reconstruction=name)(info)
        decoded = capsules.sweeps(model, images, labels, (-0.5, 0.0, 0.5))
        assert decoded.shape == (2, 16, 3, 20, 20, 1)
        still = model.reconstruct(images, labels if name == "conditional" else None)
        np.testing.assert_allclose(decoded[:, 3, 1], still, atol=1e-5)
        assert (capsules.response(decoded) > 0).any()


def test_pooled_compactness_asks_for_the_same_dimension_in_all_images():
    representations = module("chapter_5_representations")
    images = np.random.default_rng(2).random((3, 12, 12, 1), "float32")
    labels = np.array([0, 1, 1])

    def represent(same):
        def of(x):
            x, capsules = np.asarray(x), np.zeros((len(x), 2, 4))
            for k, image in enumerate(x):  # 11 degrees of each image follow one another
                capsules[k, :, 1 if same else k // 11 % 3] = image[:6].sum()
            return capsules

        return of

    together = representations.pooled_compactness(represent(True), images, labels)
    apart = representations.pooled_compactness(represent(False), images, labels)
    assert set(together) == set(representations.FACTORS)
    assert together["rotation"] == pytest.approx(np.log(4))
    assert 0 <= apart["rotation"] < np.log(4) - 0.3


def test_deformed_images_say_what_they_are():
    capsules = module("capsules")

    class Without:
        def data(self, name, split, take, **options):
            if name == "affnist":
                raise FileNotFoundError
            return name, options

    class With(Without):
        def data(self, name, split, take, **options):
            return name, options

    setting = types.SimpleNamespace(validation=3)
    sets, what = capsules.deformed(setting, Without())
    assert sets["deformed"][0] == "affine_mnist"
    assert "not AffNIST" in what
    sets, what = capsules.deformed(setting, With())
    assert sets["deformed"][0] == "affnist"
    assert sets["slopes within 0.2"] == ("affine_mnist", {"shear": capsules.MILD_SHEAR})
    assert "are AffNIST's" in what
