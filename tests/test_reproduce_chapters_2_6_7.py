"""What rows of chapters 2, 6 and 7 compute themselves, and that all have code, settings and numbers that fit."""

import importlib
import math
import pathlib
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

pytestmark = pytest.mark.tensorflow
REPRODUCE = pathlib.Path(__file__).parent.parent / "examples" / "reproduce"
CHAPTERS = (2, 6, 7)


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(REPRODUCE))


def chapter(name):
    return importlib.import_module(f"chapters.{name}")


def rows_of(number):
    rows = importlib.import_module("rows")
    return [each for each in rows.registry().values() if each.chapter == number]


@pytest.mark.parametrize("number", CHAPTERS)
def test_every_row_has_a_function_and_lines_of_the_thesis(number):
    assert rows_of(number)
    for row in rows_of(number):
        assert callable(row.function)
        start, end = map(int, row.table["lines"].split("-"))
        assert start < end
        assert row.minutes("cpu") > 0


@pytest.mark.parametrize("number", CHAPTERS)
def test_comparisons_name_each_number_as_often_as_they_should(number):
    """No pair is there twice or both ways round, and what is published of a name is in the range of its unit."""
    for row in rows_of(number):
        pairs = [tuple(pair) for pair in row.table.get("order", ())]
        assert len(set(pairs)) == len(pairs)
        assert not {(b, a) for a, b in pairs} & set(pairs)
        if row.table["unit"] == "%":
            assert all(0 <= value <= 100 for value in row.table["published"].values())


def test_published_numbers_have_the_trend_that_the_rows_claim():
    """Of the pairs whose numbers are both published, the thesis itself has the larger first, or both the same."""
    compared = 0
    for number in CHAPTERS:
        for row in rows_of(number):
            published = row.table["published"]
            for larger, smaller in row.table.get("order", ()):
                if larger in published and smaller in published:
                    assert published[larger] >= published[smaller], (row.name, larger, smaller)
                    compared += 1
    assert compared > 100


def test_cosine_of_maps_is_that_of_their_pixels_and_zero_of_an_empty_one():
    cosine = chapter("chapter_2").cosine
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, 4, 5))
    second[1] = -2 * first[1]
    second[2] = 0
    expected = (first[0] * second[0]).sum() / np.sqrt((first[0] ** 2).sum() * (second[0] ** 2).sum())
    assert cosine(first, second) == pytest.approx([expected, -1, 0])


def test_boxes_are_around_what_is_not_black():
    images = np.zeros((2, 6, 7, 1), "float32")
    images[0, 2, 3] = images[0, 4, 5] = 1
    images[1, 0, 0] = 0.5
    masks = chapter("chapter_2_subjects").boxes_around(images)
    assert masks.sum(axis=(1, 2)).tolist() == [9, 1]
    assert masks[0, 2:5, 3:6].all()


def test_numbers_that_are_none_are_left_out_and_nan_becomes_none():
    plain = chapter("plain")
    assert plain.without_nan({"a": math.nan, "b": [1.0, (math.nan, 2)]}) == {"a": None, "b": [1.0, [None, 2]]}
    assert plain.known({"a": 0.0, "b": None}) == {"a": 0.0}
    assert plain.in_percent(0.25) == 25
    assert plain.in_percent(None) is None


def test_summary_counts_invalid_and_negative_votes_of_the_true_class_and_positive_ones_of_the_other():
    statistics = {
        "cosine": np.array([[[0.05, -0.5, 0.9, -0.05]], [[0.5, -0.5, 0.05, 0.9]]]),
        "length": np.array([[[9.0, 9, 9, 9]], [[1.0, 9, 9, 3]]]),
        "coupling": np.array([[[0.9, 0.9, 0.9, 0.9]], [[0.1, 0.9, 0.9, 0.3]]]),
    }
    assert chapter("chapter_6").summary(statistics) == pytest.approx(
        {
            "invalid votes": 50,
            "negative votes": 25,
            "length for another class": 2,
            "coupling to another class": 0.2,
        }
    )


def test_middle_and_border_of_a_map():
    rates = np.full((4, 5), 10.0)
    rates[1:3, 1:4] = 40
    result = chapter("chapter_7_positions").middle_and_border(rates)
    assert result == {"middle": 40, "border": 10, "middle less border": 30, "all positions": 19}


@pytest.mark.parametrize(
    ("label", "expected"), [("(0, 1 px)", (0, 1)), ("(2, 0)", (8, 0)), ("(1 px, 1 px)", (1, 1)), ("(1, 1)", (4, 4))]
)
def test_shifts_are_in_cells_unless_in_pixels(label, expected):
    assert chapter("chapter_7_positions").pixels_of(label, 4) == expected


def test_attacks_have_the_settings_of_the_authors_code_and_at_most_so_many_steps():
    setting = types.SimpleNamespace(
        attacks=["FGSM", "PGD", "C&W", "DeepFool"],
        epsilon=0.031,
        epsilon_l2=1.0,
        most_steps=7,
        cw_steps=5,
        step_size=0.01,
    )
    table = chapter("chapter_6_networks").named_attacks(setting)
    assert {name: attack.steps for name, attack in table.items()} == {"FGSM": 1, "PGD": 7, "C&W": 5, "DeepFool": 7}
    assert (table["PGD"].step_size, table["PGD"].keep, table["PGD"].epsilon) == (0.01, "last", 0.031)
    assert (table["C&W"].confidence, table["C&W"].epsilon, table["DeepFool"].epsilon) == (0.5, 1.0, 1.0)
    assert list(chapter("chapter_6_networks").named_attacks(setting, ["PGD"])) == ["PGD"]


def test_figures_are_small_files_of_few_colours(tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.subplots().imshow(np.random.default_rng(0).random((40, 40, 3)))
    chapter("figures").save(figure, tmp_path / "figure.png", dpi=80)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (160, 80)
        assert 2 < len(image.convert("RGB").getcolors(2**16)) <= 128
