"""The audit page: what it says is what the JSON says and what a call by hand gives; hostile names and data."""

import dataclasses
import html.parser
import json
import re
import sys
import warnings

import keras
import numpy as np
import pytest

from keras_capsvit import attacks, evaluate, explain, report, taps
from keras_capsvit.report import selection, trust
from keras_capsvit.report.sections import Section, written
from keras_capsvit.report.subject import Predictions

pytest.importorskip("jinja2")
pytestmark = pytest.mark.tensorflow
rng = np.random.default_rng(0)

NAMES = ["<b>zero</b>", "<script>alert(1)</script>", "drei & vier", '"quoted"', "猫", "$5^2$", "é", "7", "8", "9"]
TINY = report.Effort(
    name="tiny",
    images=60,
    explained=6,
    judged=6,
    samples=2,
    steps=4,
    attacked=6,
    iterations=2,
    autoattack="gradients",
    radii=(0.5, 1.0),
    corrupted=2,
    severities=(5,),
    patched=3,
    positions=2,
    repetitions=2,
)
CHEAP = ("card", "accuracy")


@pytest.fixture(scope="module")
def model():
    """A small ConvNet that was trained for a moment."""
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(6, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers], name="small")
    digits = load_digits()
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(digits.images[200:, ..., None] / 16, digits.target[200:], epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module")
def arrays():
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[:60, ..., None] / 16).astype("float32"), digits.target[:60]


@pytest.fixture(scope="module")
def whole(model, arrays):
    """An audit of all parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return report.audit(model, arrays, class_names=NAMES, epsilon=0.1, effort=TINY)


class Page(html.parser.HTMLParser):
    """Values, ids, links, pictures and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.values, self.ids, self.links, self.pictures, self.addresses, self.tags = {}, [], [], [], [], []
        self.shown, self._open = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        by_name = dict(attributes)
        self.tags.append(tag)
        if "id" in by_name:
            self.ids.append(by_name["id"])
        if tag == "data" and "id" in by_name:
            self.values[by_name["id"]], self._open = by_name["value"], by_name["id"]
        if tag == "a":
            self.links.append(by_name["href"])
        if tag == "img":
            self.pictures.append((by_name["src"], by_name.get("alt")))
        self.addresses += [by_name[name] for name in ("src", "href", "action", "srcset") if name in by_name]

    def handle_data(self, text):
        if self._open:
            self.shown[self._open], self._open = text, None


def flat(results):
    for part in results["parts"]:
        for step in part["steps"]:
            for figure in step["figures"]:
                yield f"{step['name']}.{figure['name']}", figure


@pytest.mark.slow
def test_every_number_on_the_page_is_that_of_the_json(whole, tmp_path):
    page = Page(whole.write(tmp_path).read_text())
    results = json.loads((tmp_path / "audit.json").read_text())
    figures = dict(flat(results))
    assert set(page.values) == set(figures)
    for name, figure in figures.items():
        value = figure["value"]
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(page.values[name]) == value, name
        assert page.shown[name] == written(value, figure["unit"]), name
    assert whole.figures() == {name: figure["value"] for name, figure in figures.items()}
    tables = list((tmp_path / "tables").glob("*.csv"))
    assert len(tables) == sum(bool(t["rows"]) for part in results["parts"] for s in part["steps"] for t in s["tables"])


@pytest.mark.slow
def test_figures_are_those_of_calls_by_hand(whole, model, arrays):
    x, y = arrays
    steps = {step["name"]: step for part in whole.results["parts"] for step in part["steps"]}
    predicted = taps.predictions(model, x)
    assert whole["accuracy.accuracy.accuracy"] == np.mean(predicted == y)
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(model(x)))
    calibrated = report.calibration(probabilities.max(axis=1), predicted == y)
    assert whole["accuracy.calibration.ece"] == pytest.approx(calibrated.error, abs=1e-6)
    assert whole["card.model.parameters"] == model.count_params()

    measured = steps["quality.measures"]
    rows = {row["explainer"]: row for row in measured["tables"][0]["rows"]}
    images, classes = x[measured["numbers"]], predicted[measured["numbers"]]
    maps = explain.GradCAM(model)(images, classes)
    settings = {"target": classes, "seed": 0}
    assert rows["GradCAM"]["AOPC"] == pytest.approx(
        evaluate.aopc(model, images, maps, patch=1, steps=TINY.steps, **settings).area.mean(), rel=1e-5
    )
    deleted = evaluate.deletion(model, images, maps, steps=TINY.steps, **settings).area
    assert rows["GradCAM"]["deletion"] == pytest.approx(deleted.mean(), rel=1e-5)
    low, high = (rows["GradCAM"][f"deletion, {end}"] for end in ("low", "high"))
    assert low < deleted.mean() < high
    squares = {"perturbations": "square", "size": 1, "normalize": True, "samples": TINY.samples}
    infidelity = evaluate.infidelity(model, images, maps, **squares, **settings)
    assert rows["GradCAM"]["infidelity"] == pytest.approx(infidelity.mean(), rel=1e-4)

    randomised = steps["quality.randomisation"]
    rows = {row["explainer"]: row for row in randomised["tables"][0]["rows"]}
    images, classes = x[randomised["numbers"]], predicted[randomised["numbers"]]
    outer = keras.Sequential([keras.Input((8, 8, 1)), model])
    for explainer in (explain.GradCAM, explain.LRP):
        result = evaluate.parameter_randomization(explainer, outer, images, target=classes, absolute=True, seed=0)
        assert rows[explainer.__name__]["rank correlation"] == pytest.approx(result["small"].mean(), abs=1e-4)

    curve = steps["robustness.curve"]
    row = curve["tables"][0]["rows"][1]
    attack = attacks.APGD(row["epsilon"], steps=TINY.iterations)
    numbers = curve["numbers"]
    assert row["robust accuracy"] == evaluate.robust_accuracy(model, attack, (x[numbers], y[numbers]))


@pytest.mark.slow
def test_the_page_stands_alone_and_has_all_parts(whole):
    text = whole.page()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(report.PARTS) <= set(page.ids) and set(report.STEPS) <= set(page.ids)
    assert all(link[1:] in page.ids for link in page.links)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags and "b" not in [tag for tag in page.tags if "<b>zero" in tag]
    assert all(alt for _, alt in page.pictures)
    assert len(page.pictures) > 50
    for name in NAMES[:2]:
        assert name not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "http://" not in re.sub(r"data:[^\"]*", "", text) and "https://" not in re.sub(r"data:[^\"]*", "", text)


@pytest.mark.slow
def test_what_is_left_out_says_why(whole):
    limits = whole.results["parts"][-1]["steps"][0]
    reasons = [row["what was not run, and why"] for row in limits["tables"][0]["rows"]]
    assert any(reason.startswith("GraphContribution: ") for reason in reasons)
    assert any("self-attention" in reason for reason in reasons)
    assert any(reason.startswith("FAB and Square") for reason in reasons)


def test_parts_can_be_left_out_by_name(model, arrays):
    result = report.audit(model, arrays, effort=TINY, only="accuracy", skip="accuracy.mistakes")
    names = [step["name"] for part in result.results["parts"] for step in part["steps"]]
    assert names == ["accuracy.accuracy", "accuracy.calibration", "limits.limits"]
    with pytest.raises(ValueError, match=r"Expected skip to name parts.*received \['robust'\]"):
        report.audit(model, arrays, skip=["robust"])


def test_a_step_that_is_done_is_not_done_again(model, arrays, tmp_path, monkeypatch):
    calls = []
    settings = {"effort": TINY, "only": CHEAP, "out": tmp_path}

    def interrupted(name, number, count):
        calls.append(name)
        if name == "accuracy.calibration":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.audit(model, arrays, on_step=interrupted, **settings)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "steps").glob("*.json")}
    assert "accuracy.accuracy.json" in kept and "accuracy.calibration.json" not in kept
    result = report.audit(model, arrays, **settings)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "steps").glob("*.json")}
    assert {name: after[name] for name in kept} == kept
    assert result["accuracy.calibration.ece"] is not None
    again = report.audit(model, arrays, **settings)
    assert again.page() == result.page()
    with pytest.raises(ValueError, match="holds an audit of other seed"):
        report.audit(model, arrays, seed=1, **settings)
    with pytest.raises(ValueError, match="holds an audit of other images"):
        report.audit(model, (arrays[0][:50], arrays[1][:50]), **settings)


def test_what_cannot_be_audited_is_refused_before_anything_runs(model, arrays, monkeypatch):
    x, y = arrays
    began = []
    settings = {"effort": TINY, "on_step": lambda *step: began.append(step)}
    with pytest.raises(ValueError, match="at least one image"):
        report.audit(model, (x[:0], y[:0]), **settings)
    with pytest.raises(ValueError, match="Expected class ids between 0 and 9"):
        report.audit(model, (x, y + 90), **settings)
    with pytest.raises(ValueError, match="a name for each of the 10 classes of the model; received 2"):
        report.audit(model, arrays, class_names=["a", "b"], **settings)
    with pytest.raises(ValueError, match="within the bounds"):
        report.audit(model, (255 * x, y), **settings)
    with pytest.raises(ValueError, match=r"Expected images of shape \(None, 8, 8, 1\)"):
        report.audit(model, (np.zeros((4, 9, 9, 1), "float32"), y[:4]), **settings)
    with pytest.raises(ValueError, match="effort must be one of"):
        report.audit(model, arrays, effort="swift")
    with pytest.raises(ValueError, match="which gives its images once"):
        report.audit(model, iter([arrays]), **settings)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"keras-capsvit\[report\]"):
        report.audit(model, arrays, **settings)
    assert not began


def test_images_that_change_from_time_to_time_are_refused(model, arrays):
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices(arrays)
    effort = dataclasses.replace(TINY, images=None)
    for changed in (stream.shuffle(64, seed=0).batch(16), stream.shuffle(64, seed=0)):
        with pytest.raises(ValueError, match="the same images in the same order every time"):
            report.audit(model, changed, effort=effort)


def test_one_class_alone(model, arrays):
    x, y = arrays
    result = report.audit(model, (x[y == 3], y[y == 3]), effort=TINY, only=CHEAP)
    assert result["accuracy.accuracy.images"] == (y == 3).sum()
    reasons = result.results["parts"][1]["steps"][0]["left_out"]
    assert "Recall of 9 of 10 classes: there are no images of them." in reasons


def test_pixels_of_another_range_are_noticed(model, arrays):
    x, y = arrays
    scaled = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), model])
    checked = report.audit(scaled, (x, y), effort=TINY, only="card.checks")
    rows = {row["check"]: row for row in checked.results["parts"][0]["steps"][0]["tables"][0]["rows"]}
    assert rows["Range that the model tells"]["result"] == "look at this"
    assert rows["Scaling of pixels"]["result"] == "look at this"
    assert "[0, 255]: pass that range" in rows["Scaling of pixels"]["seen"]
    right = report.audit(scaled, (255 * x, y), bounds=(0, 255), effort=TINY, only="card.checks")
    assert right["card.checks.to_look_at"] == 0


def test_models_that_draw_random_numbers_and_dead_gradients_are_noticed(arrays):
    generator = np.random.default_rng(0)

    def noisy(x):
        x = keras.ops.convert_to_tensor(x)
        return keras.ops.reshape(x, (-1, 64))[:, :10] + generator.normal(size=(1, 10)).astype("float32")

    result = report.audit(noisy, arrays, effort=TINY, only="card.checks")
    rows = {row["check"]: row["result"] for row in result.results["parts"][0]["steps"][0]["tables"][0]["rows"]}
    assert rows["Same images, same scores"] == "look at this"


def test_calibration_of_known_confidences():
    confidence = np.array([0.05, 0.1, 0.95, 0.95, 0.95, 1.0])
    result = report.calibration(confidence, [False, True, True, True, False, True])
    assert result.images.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert result.accuracy[[0, 9]].tolist() == [0.5, 0.75]
    assert result.error == pytest.approx((2 * abs(0.5 - 0.075) + 4 * abs(0.75 - 0.9625)) / 6)
    assert np.isnan(result.accuracy[1])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        report.calibration([1.2], [True])
    with pytest.raises(ValueError, match="a bool for each image"):
        report.calibration([0.2], [True, False])


def test_images_are_chosen_by_rule():
    label = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    predicted = np.array([0, 0, 1, 0, 2, 1, 0, 1])
    confidence = np.array([0.9, 0.8, 0.7, 0.95, 0.6, 0.5, 0.4, 0.3])
    margin = np.array([0.8, 0.7, 0.6, 0.9, 0.5, 0.2, 0.01, 0.02])
    predictions = Predictions(label, predicted, label, confidence, margin, label)
    result = selection.by_rule(predictions, 6)
    assert result == [(0, "right"), (2, "right"), (3, "wrong"), (5, "wrong"), (6, "uncertain"), (7, "uncertain")]
    assert len(selection.by_rule(predictions, 20)) == 8
    assert selection.by_rule(predictions, 3) == [(0, "right"), (3, "wrong"), (6, "uncertain")]


def test_trust_goes_to_what_beats_chance_and_depends_on_the_weights():
    def row(name, aopc, alike=0.2):
        each = {"AOPC": aopc, "insertion": aopc, "deletion": -aopc, "infidelity": -aopc}
        return {"explainer": name, "second class alike": alike, **each}

    measured = [row("good", 2), row("edges", 3), row("blind", 4), row("same", 5, alike=0.99), row("RandomMap", 0)]
    against = [
        {"measure": measure, "explainer": name, "better by": 1.0, "p by Holm": p}
        for measure in ("AOPC", "deletion")
        for name, p in (("good", 0.01), ("edges", 0.2), ("blind", 0.01), ("same", 0.01))
    ]
    assert [each["explainer"] for each in trust.ranking(measured, against, {"blind"})] == [
        "good",
        "edges",
        "same",
        "blind",
    ]
    unchecked = trust.ranking(measured, against, None)
    assert [each["explainer"] for each in unchecked] == ["blind", "good", "edges", "same"]
    assert {each["depends on the weights"] for each in unchecked} == {"not checked"}


def test_numbers_as_the_page_writes_them():
    assert written(None) == "\N{EM DASH}"
    assert (written(0.12345, "share"), written(12345, "count"), written(0.00123, "ms")) == (
        "12.3 %",
        "12,345",
        "1.23 ms",
    )
    assert written(1.5, "ms") == "1.50 s"
    assert (written(True), written(1.5, "seconds"), written(0.123456), written("a")) == ("yes", "1.5 s", "0.1235", "a")
    section = Section()
    section.figure("nan", "A figure", float("nan"))
    assert section["nan"] is None
    assert json.dumps(section.as_json(), allow_nan=False)


def test_a_notebook_shows_the_page_in_a_frame(model, arrays):
    result = report.audit(model, arrays, effort=TINY, only="card.model")
    frame = Page(result._repr_html_())
    assert frame.tags == ["iframe"]
