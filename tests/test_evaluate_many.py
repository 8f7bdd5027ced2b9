"""examples/evaluate_many.py: the records are those of the package's functions, whoever measures them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_capsvit import attacks, data, evaluate, explain, serving

pytestmark = pytest.mark.tensorflow
ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "evaluate_many.py"
MODEL = ROOT / "saved_models" / "digits_gracapsnet"
OPTIONS = ("digits", "--model", MODEL, "--attack", "FGSM", "--epsilon", 0.1, "--explain", "GraphContribution")
OPTIONS += ("--metrics", "aopc", "sparseness", "--batch-size", 10, "--block", 20)


@pytest.fixture
def evaluate_many(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import evaluate_many

    return evaluate_many


@pytest.fixture
def run(evaluate_many, monkeypatch, capsys):
    """Run the script in this process; returns its records and its summary."""

    def run(out, *options):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, options), "--out", str(out)])
        evaluate_many.main()
        capsys.readouterr()
        return records(out), json.loads((out / "summary.json").read_text())

    return run


def records(out):
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def test_records_are_what_the_functions_say(run, tmp_path):
    rows, summary = run(tmp_path, *OPTIONS, "--examples", 30)
    x, y = (np.asarray(each) for each in data.take(data.load("digits", split="test", batch_size=30), 30))
    model, attack = serving.load(MODEL), attacks.FGSM(0.1)
    scores = np.asarray(model(x))
    assert [row["number"] for row in rows] == list(range(30))
    assert [row["label"] for row in rows] == y.tolist()
    assert [row["predicted"] for row in rows] == scores.argmax(-1).tolist()
    assert summary["images"] == 30
    assert summary["accuracy"] == np.mean([row["correct"] for row in rows])
    assert summary["robust_accuracy"] == evaluate.robust_accuracy(model, attack, (x, y))
    assert max(row["linf"] for row in rows) == pytest.approx(0.1)
    predicted = scores.argmax(-1)
    maps = explain.GraphContribution(model)(x, predicted)
    np.testing.assert_allclose([row["sparseness"] for row in rows], evaluate.sparseness(maps), rtol=1e-5)
    for start in (0, 10, 20):
        part = slice(start, start + 10)
        expected = evaluate.aopc(model, x[part], maps[part], target=predicted[part]).area
        np.testing.assert_allclose([row["aopc"] for row in rows[part]], expected, rtol=1e-4, atol=1e-6)


def test_an_interrupted_run_goes_on_and_another_is_refused(run, evaluate_many, tmp_path, monkeypatch):
    options = ("digits", "--model", MODEL, "--attack", "FGSM", "--epsilon", 0.05, "--batch-size", 10, "--block", 10)
    options += ("--examples", 40)
    expected, _ = run(tmp_path / "whole", *options)
    block, seen = evaluate_many.Measure.block, []

    def interrupted(self, start):
        seen.append(start)
        if start == 20:
            raise KeyboardInterrupt
        return block(self, start)

    monkeypatch.setattr(evaluate_many.Measure, "block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", *options)
    monkeypatch.setattr(evaluate_many.Measure, "block", lambda self, start: seen.append(start) or block(self, start))
    with pytest.raises(SystemExit, match=r"has other seed\. Give another --out"):
        run(tmp_path / "parts", *options, "--seed", 1)
    assert run(tmp_path / "parts", *options)[0] == expected
    assert seen == [0, 10, 20, 20, 30]


def test_a_folder_of_pictures(run, tmp_path):
    digits = data.take(data.load("digits", split="test", batch_size=12), 12)
    for number, (image, label) in enumerate(zip(*map(np.asarray, digits), strict=True)):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(tmp_path / "pictures" / str(label) / f"{number:02d}.png", image * 255, scale=False)
    options = (tmp_path / "pictures", "--model", MODEL, "--explain", "GraphContribution", "--metrics", "complexity")
    rows, summary = run(tmp_path / "out", *options)
    assert sorted(row["label"] for row in rows) == sorted(np.asarray(digits[1]).tolist())
    assert summary["accuracy"] == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit, match="Expected a folder of pictures for each class"):
        run(tmp_path / "other", tmp_path / "none", *options[1:])


def test_another_model_in_the_same_place_is_another_run(evaluate_many, tmp_path):
    path, network = tmp_path / "model.keras", keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    network.save(path)
    args = evaluate_many.parse(["digits", "--model", str(path), "--explain", "Saliency"])
    evaluate_many.begin(args, tmp_path / "blocks")
    evaluate_many.begin(args, tmp_path / "blocks")  # nothing changed: it goes on
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.ReLU()]).save(path)
    with pytest.raises(SystemExit, match="has other model_sha256"):
        evaluate_many.begin(args, tmp_path / "blocks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attack", "PGD"), "give both --attack and --epsilon"),
        ((), "give --attack or --explain"),
        (("--explain", "Heat"), "Heat is no explainer; there are "),
        (("--explain", "Saliency", "--block", 15, "--batch-size", 10), "a --block of whole batches"),
    ],
)
def test_what_does_not_go_together_is_said(evaluate_many, capsys, options, message):
    with pytest.raises(SystemExit):
        evaluate_many.parse(["digits", "--model", "m.keras", *map(str, options)])
    assert message in capsys.readouterr().err


def command(out, *options):
    return [sys.executable, *map(str, (SCRIPT, *OPTIONS, *options, "--out", out))]


@pytest.mark.slow
def test_workers_of_ray_make_the_same_records(tmp_path):
    pytest.importorskip("ray")
    for workers in (0, 2):
        subprocess.run(
            command(tmp_path / str(workers), "--examples", 60, "--workers", workers), check=True, timeout=600
        )
    assert records(tmp_path / "2") == records(tmp_path / "0")


@pytest.mark.long
def test_a_worker_that_is_killed_loses_nothing(tmp_path):
    pytest.importorskip("ray")
    many = ("--examples", 360)
    subprocess.run(command(tmp_path / "whole", *many), check=True, timeout=900)
    out = tmp_path / "killed"
    with subprocess.Popen(command(out, *many, "--workers", 2)) as process:
        until = time.monotonic() + 600
        while len(list(out.glob("blocks/*.jsonl"))) < 3:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        os.kill(a_worker(), signal.SIGKILL)
        process.wait(timeout=900)
    assert process.returncode == 0
    assert records(out) == records(tmp_path / "whole")


def a_worker():
    """Process id of an actor that measures."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_bytes().replace(b"\0", b" ")
        except OSError:  # it is gone
            continue
        if said.startswith(b"ray::") and b"Worker" in said:
            return int(path.parent.name)
    raise AssertionError("there is no worker")
