"""The rows of examples/reproduce: all there, judged as they say, kept, continued, skipped, verified, published.

That every row runs is shown by ``python examples/reproduce/run.py --profile smoke``.
"""

import base64
import io
import json
import pathlib
import re
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples" / "reproduce"))

import earlier
import execution
import inputs
import page
import PIL.Image
import records
import rows
import run as command_line
import running
import verdicts

from keras_capsvit import GraCapsNet, data, training

FOLDER = pathlib.Path(rows.__file__).parent
REQUIRED = [
    *("2.F1", "2.F3", "2.F4", "2.T1", "2.F5", "2.S"),
    *("3.T1", "3.T2", "3.F2", "3.F3", "3.F4", "3.F5", "3.F6", "3.F7", "3.X"),
    *("4.T1", "4.F1", "4.F2", "4.F4", "4.F5", "4.MM", "4.T2", "4.F6"),
    *("5.T1", "5.T2", "5.T3", "5.T4", "5.F3", "5.F4", "5.T5", "5.S1"),
    *("6.T1", "6.T2", "6.T3", "6.T4", "6.T5", "6.T7", "6.T8", "6.T9", "6.T10", "6.T11", "6.A", "6.F2"),
    *("7.T2", "7.F2", "7.T3", "7.F3", "7.F4", "7.F5", "7.F6", "7.T4", "7.T7", "7.T8", "7.T9", "7.F8", "7.F9"),
    *("7.IP", "7.TG", "7.IT", "7.A", "7.F13"),
]


@pytest.fixture
def options(tmp_path):
    """Options of a run that keeps everything in a folder of the test."""

    def parse(*more):
        places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results" / "rows")]
        return command_line.parse([*places, *map(str, more)])

    return parse


def fake(function, name="T.1", **table):
    """A row of a function, with all profiles and no settings."""
    rows._FUNCTIONS[name] = function
    profiles = {profile: {"size": 3} for profile in rows.PROFILES}
    table = {
        "title": "A test",
        "lines": "1",
        "claim": "It runs.",
        "published": {"a": 1.0},
        "profiles": profiles,
        **table,
    }
    return rows.Row(name, 3, table)


@pytest.mark.parametrize("name", REQUIRED)
def test_rows_of_the_thesis_are_there(name):
    row = rows.registry()[name]
    assert row.chapter == int(name[0])
    assert callable(row.function)
    assert row.table["title"] and row.table["claim"].endswith(".")
    for profile in rows.PROFILES:
        assert row.setting(profile).title == row.table["title"]
    assert row.minutes("cpu") is not None
    assert all(isinstance(value, int | float) for value in row.table["published"].values())


def test_every_row_can_get_a_verdict():
    for name, row in rows.registry().items():
        table = row.table
        compared = [*table.get("order", ()), *(names[:2] for names in table.get("equal", ()))]
        bounds = {**table.get("above", {}), **table.get("below", {})}
        assert compared or bounds or (table["published"] and "tolerance" in table), name
        assert table["profiles"]["cpu"]["scaled"].endswith("."), name


def test_select_names_what_there_is():
    assert [row.name for row in rows.select(["3.X", "3.T1"])] == ["3.X", "3.T1"]
    assert {row.chapter for row in rows.select(chapters=[3])} == {3}
    with pytest.raises(ValueError, match=r"Unknown: 3\.T9\. Rows are .*3\.T1"):
        rows.select(["3.T9"])


def test_a_row_that_lacks_something_is_named(tmp_path):
    (tmp_path / "chapter_3.toml").write_text(
        '["3.T1"]\ntitle = "a"\nlines = "1"\npublished = {}\n[ "3.T1".profiles.cpu ]\n'
    )
    with pytest.raises(ValueError, match=r"row 3\.T1 has no claim, profiles\.smoke, profiles\.gpu"):
        rows.registry(tmp_path)


def test_settings_of_the_profile_come_over_those_of_the_row():
    row = fake(None, size=1, depth=2)
    assert (row.setting("cpu").size, row.setting("cpu").depth) == (3, 2)
    with pytest.raises(ValueError, match="profiles smoke, cpu, gpu, full; received fast"):
        row.setting("fast")


@pytest.mark.parametrize(
    ("table", "measured", "word", "why"),
    [
        ({}, [], "not run", "not measured yet"),
        ({"tolerance": 0.1}, [{"a": 1.0, "b": 2.0}], "reproduced", "2 of 2 published numbers within 0.1"),
        (
            {"tolerance": 0.1},
            [{"a": 0.9, "b": 2.1}, {"a": 1.1, "b": 1.9}],
            "reproduced",
            "2 of 2 published numbers within 0.1",
        ),
        ({"tolerance": 0.1}, [{"a": 1.0, "b": 2.5}], "does not hold", "b: 2.5 measured, 2 published"),
        ({"tolerance": 0.1}, [{"c": 1.0}], "not run", "cannot be compared"),
        ({"tolerance": 0.1, "published": {"a": 1.0, "b": 2.0, "c": 3.0}}, [{"a": 1.0}], "not run", "the others not"),
        ({"order": [["b", "a"]]}, [{"a": 5.0, "b": 6.0}], "trend holds", "the comparison holds"),
        ({"order": [["b", "a"]], "tolerance": 0.1}, [{"a": 1.0}], "trend holds", "1 of 2 published numbers within 0.1"),
        ({"order": [["b", "a"]], "tolerance": 0.1}, [{"a": 1.5}], "does not hold", "a: 1.5 measured, 1 published"),
        ({"order": [["b", "a"]], "tolerance": 0.1}, [{"a": 1.0, "b": 2.0}], "reproduced", "; the comparison holds"),
        ({"order": [["b", "a"]]}, [{"a": 6.0, "b": 6.0}], "does not hold", r"b \(6\) > a \(6\)"),
        ({"order": [["b", "a"]]}, [{"a": 5.0, "b": 6.0}, {"a": 5.0, "b": 1.0}], "does not hold", "b"),
        (
            {"order": [["b", "a"]]},
            [{"a": 5, "b": 4}, {"a": 9, "b": 9}],
            "does not hold",
            "differ by less than their seeds",
        ),
        ({"order": [["b", "a"]]}, [{"a": 5, "b": 4}, {"a": 5, "b": 3}], "does not hold", r"a \(5\)$"),
        ({"equal": [["a", "b", 0.5]]}, [{"a": 1.0, "b": 1.4}], "trend holds", "the comparison holds"),
        ({"equal": [["a", "b", 0.3]]}, [{"a": 1.0, "b": 1.4}], "does not hold", "within 0.3"),
        ({"above": {"a": 0.5}, "below": {"b": 2.0}}, [{"a": 1.0, "b": 1.4}], "trend holds", "all 2 comparisons hold"),
        ({"above": {"a": 0.5}, "below": {"b": 1.0}}, [{"a": 1.0, "b": 1.4}], "does not hold", "1 of 2"),
        ({"order": [["b", "a"]]}, [{"a": float("nan"), "b": 1.0}], "does not hold", "a is not a number"),
    ],
)
def test_verdicts(table, measured, word, why):
    verdict = verdicts.verdict({"published": {"a": 1.0, "b": 2.0}, **table}, measured)
    assert verdict.word == word
    assert re.search(why, verdict.why)


def test_summary_is_over_the_seeds_that_have_a_number():
    summary = verdicts.summary([{"a": 1.0}, {"a": 3.0, "b": 5.0}])
    assert summary["a"] == (2.0, pytest.approx(2**0.5), 2)
    assert summary["b"] == (5.0, None, 1)


def test_a_record_says_how_and_is_kept(options):
    calls = []

    def function(setting, run):
        calls.append(run.seed)
        x, y = run.data("mnist", "test", 5)
        assert x.shape == (5, 28, 28, 1) and y.shape == (5,)
        return {"measured": {"a": np.float32(setting.size + run.seed)}, "curves": {"c": np.arange(3.0)}, "notes": "n"}

    args = options("--profile", "smoke", "--seeds", 0, 1)
    assert execution.run_row(fake(function), args) == ["measured", "measured"]
    (path,) = [each for each in (args.work / "records").iterdir() if "seed_1" in each.name]
    record = records.read(path)
    assert record["measured"] == {"a": 4.0} and record["curves"] == {"c": [0.0, 1.0, 2.0]}
    assert record["setting"] == {"size": 3}
    assert record["data"] == {"mnist": {"test": "digits, at most 300"}}
    assert record["command"] == "python examples/reproduce/run.py --only T.1 --profile smoke --seeds 1"
    assert {"processor", "cores", "accelerator"} == set(record["hardware"])
    assert re.fullmatch(r"[0-9a-f]{12}\+?|None", str(record["commit"]))
    assert record["versions"]["keras"] and record["seconds"] >= 0

    args = options("--profile", "cpu", "--seeds", 0)
    row = fake(lambda setting, run: calls.append("cpu") or {"measured": {"a": 1.0}})
    assert execution.run_row(row, args) == ["measured"]
    assert execution.run_row(row, args) == ["kept"]
    assert execution.run_row(row, options("--profile", "cpu", "--seeds", 0, "--again")) == ["measured"]
    changed = fake(row.function, size=4, profiles={each: {} for each in rows.PROFILES})
    assert execution.run_row(changed, args) == ["measured"]
    assert calls == [0, 1, "cpu", "cpu", "cpu"]


def test_what_is_not_finite_is_refused(options):
    row = fake(lambda setting, run: {"measured": {"a": float("nan")}})
    (outcome,) = execution.run_row(row, options("--profile", "cpu"))
    assert outcome.startswith("failed: T.1 seed 0") and "not finite ['a']" in outcome


def test_steps_are_not_measured_again_after_a_kill(options):
    measured, broken = [], [True]

    def function(setting, run):
        first_step = run.step("first", lambda: measured.append("first") or {"value": np.float64(2.0)})
        if broken:
            broken.clear()
            raise KeyboardInterrupt
        second_step = run.step("second", lambda: measured.append("second") or [3.0])
        return {"measured": {"a": first_step["value"] + second_step[0]}}

    row, args = fake(function), options("--profile", "cpu")
    with pytest.raises(KeyboardInterrupt):
        execution.run_row(row, args)
    assert execution.run_row(row, args) == ["measured"]
    assert measured == ["first", "second"]
    assert records.of_row(args.results, "T.1", "cpu")[0][1]["measured"] == {"a": 5.0}
    assert not list((args.work / "steps").iterdir())


def test_models_are_shared_by_rows_and_seeds_are_not(options):
    recipe = training.Recipe(1, batch_size=32)

    def build(info):
        return GraCapsNet(info.image_shape, info.num_classes, filters=4, num_heads=2)

    places = execution.places(options())
    examined = []

    def trained(row, seed, **more):
        run = running.Run(row, "smoke", seed, rows.registry()["3.T1"].setting("smoke"), places, verbose=0)
        model = run.trained("a model", build, "mnist", recipe, train=32, test=16, **more)
        return run, model

    def examine(model):
        examined.append(1)
        return {"parameters": model.count_params()}

    first_run, model = trained("3.T1", 0, examine=examine)
    second_run, reloaded = trained("3.X", 0, examine=examine)
    assert first_run.models["a model"]["trained_here"] and not second_run.models["a model"]["trained_here"]
    for here, there in zip(model.get_weights(), reloaded.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    assert second_run.epochs("a model")["val_accuracy"] == first_run.epochs("a model")["val_accuracy"]
    assert second_run.examined("a model") == [{"epoch": 0, "parameters": model.count_params()}]
    assert examined == [1]
    seeded, _ = trained("3.T1", 1)
    assert seeded.models["a model"]["key"] != first_run.models["a model"]["key"]


@pytest.mark.parametrize("name", ["mnist", "cifar10", "affine_mnist", "expanded_mnist", "affine_cifar10", "affnist"])
def test_smoke_has_digits_in_the_shape_of_the_data(name):
    images, labels = next(inputs.load(name, "test", 6, smoke=True).as_numpy_iterator())
    assert images.shape == (6, *data.info(name).image_shape)
    assert labels.shape == (6,) and images.min() >= 0 and images.max() <= 1 and images.std() > 0.1


def test_missing_data_are_named(tmp_path, options, capsys):
    row = fake(None, needs=["mnist"])
    (outcome,) = execution.run_row(row, options("--profile", "cpu", "--data-dir", tmp_path))
    assert outcome.startswith("skipped: Data set 'mnist' was expected in the prepared TFDS folder")
    assert str(tmp_path) in capsys.readouterr().out
    (outcome,) = execution.run_row(fake(None, needs=["net.npz"]), options("--profile", "cpu"))
    assert outcome == "skipped: net.npz, expected in a folder of weights and pictures: name it with --weights"
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "net.npz").touch()
    assert inputs.named(tmp_path, "net.npz") == tmp_path / "below" / "net.npz"
    with pytest.raises(inputs.Missing, match=r"other\.npz, expected in "):
        inputs.named(tmp_path, "other.npz")


def test_verify_runs_again_and_compares(options, capsys):
    numbers = iter([1.0, 1.2, 1.05, 1.3, 9.0, 1.2])
    row = fake(lambda setting, run: {"measured": {"a": next(numbers)}})
    args = options("--profile", "cpu", "--seeds", 0, 1)
    with pytest.raises(SystemExit, match=r"No record of T\.1 in profile cpu"):
        execution.verify(row, args)
    execution.run_row(row, args)
    before = [record for _, record in records.of_row(args.results, "T.1")]
    assert execution.verify(row, args) == 0
    assert execution.verify(row, args) == 1
    assert "seed 0 a: 1 in T.1_cpu_seed_0.json, 9 now" in capsys.readouterr().out
    assert [record for _, record in records.of_row(args.results, "T.1")] == before


def test_spread_is_three_deviations_or_a_hundredth():
    spread = execution.spread([{"a": 1.0, "b": 50.0}, {"a": 3.0, "b": 50.0}])
    assert spread["a"] == pytest.approx(3 * 2**0.5) and spread["b"] == pytest.approx(0.5)


def test_numbers_of_earlier_scripts(tmp_path):
    result = [{"model": "m", "seed": seed, "value": seed / 10} for seed in (1, 2)] + [{"model": "n", "value": 5}]
    (tmp_path / "old.json").write_text(json.dumps({"result": result}))
    entry = {"file": "old.json", "values": {"a": "result[model=m].value", "b": "result[model=n].value"}, "scale": 100}
    assert earlier.read(entry, tmp_path) == [{"a": 10.0, "b": 500.0}, {"a": 20.0}]
    with pytest.raises(ValueError, match=r"numbers at result\[model=x\]\.value in old\.json"):
        earlier.read({**entry, "values": {"a": "result[model=x].value"}}, tmp_path)


def test_what_earlier_scripts_measured_can_be_read():
    for name, row in rows.registry().items():
        for entry in row.table.get("earlier", ()):
            assert all(np.isfinite(list(each.values())).all() for each in earlier.read(entry)), name


def test_pages_show_published_beside_measured(tmp_path, capsys):
    results = tmp_path / "results" / "rows"
    table = rows.registry()["3.T1"].table
    for seed, change in enumerate((-0.01, 0.01)):
        measured = {name: value + change for name, value in table["published"].items()}
        record = {
            "row": "3.T1",
            "profile": "cpu",
            "seed": seed,
            "measured": measured,
            "setting": {},
            "notes": "A note <b>.",
        }
        record |= {"curves": {"a": [1.0, 2.0 + seed]}, "figures": [], "command": "python run.py", "commit": "abc"}
        record |= {"hardware": {"processor": "p", "cores": 2, "accelerator": None}, "dtype": "float32", "seconds": 60}
        records.write(results, record)
    assert page.write(results, tmp_path) == 0
    markdown, html = ((tmp_path / f"REPRODUCTION.{kind}").read_text() for kind in ("md", "html"))
    assert "| GraCapsNet on MNIST | 99.5 | 99.5 ± 0.01414 | 2 |" in markdown
    assert "| 3.T1 | Accuracy and size of CapsNet and GraCapsNet (Table 3.1) | **reproduced** |" in markdown
    assert "(results/rows/3.T1_cpu_seed_1.json)" in markdown and "(results/figures/3.T1_cpu_curves.png)" in markdown
    assert (tmp_path / "results" / "figures" / "3.T1_cpu_curves.png").stat().st_size > 1000
    assert 'class="n">99.5 ± 0.01414</td>' in html and "A note &lt;b&gt;." in html
    assert html.count("data:image/png;base64,") >= 1 and "http" not in re.sub(r"<code>.*?</code>", "", html)
    for name in rows.registry():
        assert f"| {name} |" in markdown and name in html


def test_large_pictures_are_embedded_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 2200, 3), "uint8")
    for name, pixels in {"large": noise, "small": noise[:4, :4]}.items():
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    large, small = (page.embedded(tmp_path / f"{name}.png") for name in ("large", "small"))
    assert small.startswith("data:image/png;base64,") and large.startswith("data:image/webp;base64,")
    with PIL.Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))) as picture:
        assert picture.size == (1100, 20)


def test_the_published_page_says_what_the_records_say():
    text = (FOLDER / "REPRODUCTION.md").read_text()
    results = records.RESULTS / "rows"
    for name, row in rows.registry().items():
        each = page.entry(row, results, records.RESULTS / "figures")
        assert f"| {name} | {row.table['title']} | **{each['verdict'].word}** | {each['brief']} |" in text
    assert (FOLDER / "REPRODUCTION.html").stat().st_size < page.LARGEST


def test_no_seed_is_begun_that_would_end_too_late(options, capsys):
    row = fake(lambda setting, run: {"measured": {"a": 1.0}}, minutes={"gpu": 5})
    args = options("--profile", "gpu", "--seeds", 0)
    hardware = records.hardware()
    records.write(args.results, {"row": "T.1", "profile": "gpu", "seed": 7, "measured": {}, "setting": {}})
    path, record = records.of_row(args.results, "T.1")[0]
    record |= {"hardware": hardware, "seconds": 300}
    records.write(args.results, record)
    args.minutes, args.until = 4, time.perf_counter() + 240
    assert execution.run_row(row, args) == ["skipped: no time"]
    assert "as before 5.0 minutes" in capsys.readouterr().out
    args.until = time.perf_counter() + 360
    assert execution.run_row(row, args) == ["measured"]
    path.unlink()


def test_list_and_unknown_rows(capsys):
    command_line.main(["--list", "--only", "3.T1,3.X"])
    printed = capsys.readouterr().out
    assert (
        "3.T1     Accuracy and size" in printed and "needs mnist, fashion_mnist; cpu" in printed and "2 rows" in printed
    )
    with pytest.raises(SystemExit, match=r"Unknown: 9\.T1"):
        command_line.main(["--only", "9.T1"])
