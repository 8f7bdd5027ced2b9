"""The examples run as a newcomer runs them; the README shows what they print and no more."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_capsvit import CapsNet, MarginLoss, serving

ROOT = pathlib.Path(__file__).parent.parent


def run(script, *args):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.tensorflow
def test_quickstart_writes_what_it_says(tmp_path):
    printed = run("quickstart.py", "--epochs", 1, "--image-size", 12, "--out", tmp_path).strip().splitlines()
    assert printed[0].startswith("float32: ")
    assert "mixed_bfloat16: " in printed[0]
    assert "gracapsnet: 658,346 parameters, 4x4 = 16 nodes" in printed[1]
    assert printed[-3].startswith("Robust accuracy ")
    assert printed[-2].startswith("Test accuracy ")
    assert printed[-1].startswith(f"In {tmp_path}: ")
    assert f"--model_base_path={tmp_path}" in printed[-1]
    assert (tmp_path / "explanations.png").stat().st_size > 20_000
    assert keras.saving.load_model(tmp_path / "model.keras").count_params() == 658_346
    assert serving.load(tmp_path).input_shape == (None, 12, 12, 1)


@pytest.mark.long
@pytest.mark.tensorflow
def test_train_step_benchmark_compares_the_two(tmp_path):
    printed = run("benchmarks/train_step.py", "--batch-size", 2, "--size", 9, "--rounds", 2).splitlines()
    assert [line.split()[0] for line in printed] == ["median", "convolutions", "gracapsnet", "batch"]
    ratio, pairwise, megabytes = map(float, printed[2].split()[-3:])
    assert min(ratio, pairwise) > 0.5
    assert 100 < megabytes < 10_000


@pytest.mark.long
@pytest.mark.tensorflow
def test_attack_benchmark_compares_with_what_is_installed():
    printed = run("benchmarks/attacks.py", "--steps", 4, "--batch-size", 2, "--rounds", 1).splitlines()
    names = [line[2:20].strip() for line in printed[1:]]
    assert names[:2] == ["gradients alone", "keras_capsvit"]
    assert float(printed[2].split()[-1]) > 0.05
    last = next(n for n, line in enumerate(printed) if line.startswith("  robust accuracy "))
    assert names[last - 3 : last - 1] == ["to the end", "fooled ones leave"]
    assert names[last + 1 : last + 5] == ["gradients alone", "APGD linf", "APGD l2", "APGD l1"]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_autoattack_writes_a_record(tmp_path):
    layers = [keras.layers.Rescaling(1.0), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    model.save(tmp_path / "linear.keras")
    command = ["autoattack.py", tmp_path / "linear.keras", "--dataset", "digits", "--epsilon", 0.2, "--examples", 30]
    command += ["--precision", "bfloat16", "--range", 0, 1, "--out", tmp_path / "out"]
    printed = run(*command)
    text = (tmp_path / "out" / "linear.json").read_text()
    assert printed.endswith(text)
    record = json.loads(text)
    assert (record["n"], record["eps"], record["threat"], record["precision"]) == (30, 0.2, "Linf", "bfloat16")
    assert record["autoattack_acc"] < record["clean_acc"] == record["after"]["clean"]
    run(*command, "--reported", 0.5)  # which reads what was measured
    assert json.loads((tmp_path / "out" / "linear.json").read_text()) == {**record, "reported": 50.0}


SMALL = ("--epochs", 1, "--image-size", 12, "--filters", 8, "--num-types", 2, "--examples", 8)


@pytest.mark.long
@pytest.mark.tensorflow
def test_vote_attack_and_detection_write_what_they_say(tmp_path):
    out = tmp_path / "votes"
    options = ("--attacks", "FGSM", "C&W L2", "--cw-steps", 2)
    printed = run("vote_attack.py", *SMALL, *options, "--out", out).splitlines()
    start = next(i for i, line in enumerate(printed) if line.startswith("objective"))
    rows = [line.split()[:2] for line in printed[start + 1 : -1]]
    goals = ["capsules", "capsules", "votes", "votes", "squash_then_average", "average_loss"]
    assert rows == [[goal, name] for goal, name in zip(goals, ["FGSM", "C&W"] * 2 + ["PGD"] * 2, strict=True)]
    assert printed[-1].startswith("Test accuracy ")
    for name in ("adversarial.png", "votes.png"):
        assert (out / name).stat().st_size > 20_000
    assert len((out / "robustness.csv").read_text().splitlines()) == 7
    assert json.loads((out / "robustness.json").read_text())["examples"] == 8

    model = out / "model.keras"
    printed = run("detect_adversarial.py", *SMALL, "--model", model, "--out", tmp_path / "detection").splitlines()
    assert sum(line.startswith("aware") for line in printed) == 6
    assert sum(line.startswith("agnostic") for line in printed) == 6
    assert (tmp_path / "detection" / "detection.png").stat().st_size > 20_000
    assert json.loads((tmp_path / "detection" / "detection.json").read_text())["benign"] == 8


@pytest.mark.long
@pytest.mark.tensorflow
def test_adversarial_training_compares_three_and_reuses_them(tmp_path):
    keras.utils.set_random_seed(0)
    capsnet = CapsNet((12, 12, 1), 10, kernel_size=5, filters=8, num_types=2, reconstruction="conditional")
    capsnet.compile("adam", MarginLoss(), metrics=["accuracy"])
    for name in ("natural", "AT"):
        (tmp_path / name).mkdir()
        capsnet.save(tmp_path / name / "model.keras")
    printed = run("adversarial_training.py", *SMALL, "--out", tmp_path).splitlines()
    assert [line.split("  ")[0] for line in printed[-3:]] == ["natural", "AT", "AT + votes"]
    assert sum("val_accuracy" in line for line in printed) == 1
    assert (tmp_path / "AT+votes" / "model.keras").exists()
    accuracies = [float(line.split()[-3]) for line in printed[-3:]]
    assert accuracies[0] == accuracies[1] < accuracies[2]
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 4


def squeezenet_arrays(random):
    """Random kernels, and biases of 0, by their names in the file."""
    shapes, channels = {"conv1": (7, 7, 3, 96), "conv_final": (1, 1, 512, 1000)}, 96
    fires = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    for number, (squeezed, expanded) in enumerate(fires, 2):
        shapes[f"fire{number}/conv1x1_1"] = (1, 1, channels, squeezed)
        shapes[f"fire{number}/conv1x1_2"] = (1, 1, squeezed, expanded)
        shapes[f"fire{number}/conv3x3_2"] = (3, 3, squeezed, expanded)
        channels = 2 * expanded
    kernels = {f"{name}/kernel": (0.1 * random.normal(size=shape)).astype("float32") for name, shape in shapes.items()}
    return kernels | {f"{name}/bias": np.zeros(shape[-1]) for name, shape in shapes.items()}


@pytest.mark.tensorflow
def test_squeezenet_reads_its_weights(tmp_path, monkeypatch):
    kernels = squeezenet_arrays(np.random.default_rng(0))
    np.savez(tmp_path / "weights.npz", **kernels)
    monkeypatch.syspath_prepend(ROOT / "examples")
    importer = importlib.import_module("squeezenet")
    network = importer.squeezenet(tmp_path / "weights.npz")
    assert network.count_params() == 1_248_424
    np.testing.assert_array_equal(network.get_layer("fire9.conv3x3_2").kernel, kernels["fire9/conv3x3_2/kernel"])
    low, high = importer.input_range()
    np.testing.assert_allclose(importer.preprocess(np.ones((1, 1, 1, 3)))[0, 0, 0], high)
    np.testing.assert_allclose(importer.preprocess(np.zeros((1, 1, 1, 3)))[0, 0, 0], low)
    np.savez(tmp_path / "less.npz", **{name: kernels[name] for name in ("conv1/kernel",)})
    with pytest.raises(ValueError, match=r"Expected arrays conv1/bias of shape \(96,\) in .*less.npz"):
        importer.squeezenet(tmp_path / "less.npz")


@pytest.mark.long
@pytest.mark.tensorflow
def test_explain_cnn_draws_saved_models(tmp_path):
    keras.utils.save_img(tmp_path / "one.png", np.random.default_rng(0).uniform(size=(40, 50, 3)))
    layers = keras.layers
    kinds = [layers.Conv2D(4, 5, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    keras.Sequential([keras.Input((24, 24, 3)), *kinds]).export(tmp_path / "model", verbose=False)
    printed = run(
        *("explain_cnn.py", tmp_path / "one.png", "--model", tmp_path / "model"),
        *("--classes", 0, 1, 2, "--out", tmp_path / "maps.png"),
    )
    assert printed.startswith("3 explanations each of LRP, CLRP1, CLRP2 in ")
    assert (tmp_path / "maps.png").stat().st_size > 20_000


@pytest.mark.long
@pytest.mark.tensorflow
def test_compare_explanations_on_a_capsule_network(tmp_path, small_model):
    small_model().save(tmp_path / "model.keras")
    options = ("--image-size", 12, "--examples", 4, "--shown", 2, "--steps", 2, "--samples", 2, "--perturbations", 3)
    printed = run(
        "compare_explanations.py", "--model", tmp_path / "model.keras", *options, "--out", tmp_path
    ).splitlines()
    names = [line.split()[0] for line in printed[-7:-1]]
    assert names == ["Graph-Att", "Grad", "IG", "Grad-SG", "IG-SG", "Random"]
    assert (tmp_path / "comparison.png").stat().st_size > 20_000
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["options"]["examples"] == 4
    assert all(0 <= row["deletion"] <= 1 and 0 <= row["insertion"] <= 1 for row in written["result"])


@pytest.fixture
def squeezenet_weights(tmp_path):
    """File of random weights; and a folder of a picture with a mask."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "weights.npz", **squeezenet_arrays(random))
    keras.utils.save_img(tmp_path / "one.png", random.uniform(size=(40, 50, 3)))
    mask = np.zeros((40, 50, 1))
    mask[10:30, 10:40] = 255
    keras.utils.save_img(tmp_path / "one_mask.png", mask, scale=False)
    return tmp_path / "weights.npz"


@pytest.mark.long
@pytest.mark.tensorflow
def test_compare_explanations_on_squeezenet(tmp_path, squeezenet_weights):
    entries = {"one.png": {"mask": "one_mask.png"}}
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    options = ("--squeezenet", squeezenet_weights, "--pictures", tmp_path, "--boxes", tmp_path / "boxes.json")
    only = ["random", "gradient", "Grad-CAM", "LRP", "CLRP1"]
    printed = run("compare_explanations.py", *options, "--only", *only, "--out", tmp_path).splitlines()
    assert [line.split("  ")[0] for line in printed[-6:-1]] == only
    assert printed[-7].startswith("explainer") and "energy in box se" in printed[-7]
    assert (tmp_path / "comparison.png").stat().st_size > 20_000
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 6


@pytest.mark.long
@pytest.mark.tensorflow
def test_compare_explanations_on_a_model_of_ones_own(tmp_path, squeezenet_weights):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 20, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1001, activation="softmax"),
        ]
    )
    model.save(tmp_path / "model.keras")
    objects = [
        {"imagenet_class": 7, "boxes_xywh": [[10, 5, 20, 10]]},
        {"imagenet_class": 3, "boxes_xywh": [[0, 0, 1, 1]]},
    ]
    entries = {"one.png": {"width": 100, "height": 80, "scale": 0.5, "objects": objects}}
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    options = ("--model", tmp_path / "model.keras", "--pictures", tmp_path, "--boxes", tmp_path / "boxes.json")
    options += ("--changes", 0)
    printed = run("compare_explanations.py", *options, "--only", "random", "LRP", "--out", tmp_path).splitlines()
    assert [line.split("  ")[0] for line in printed[-3:-1]] == ["random", "LRP"]
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert not {"insertion", "deletion"} & set(result["result"][0])
    assert result["objects"] == 2 and result["options"]["model"] == "model.keras"


@pytest.mark.long
@pytest.mark.tensorflow
def test_neurons_are_drawn(tmp_path, squeezenet_weights):
    options = ("--squeezenet", squeezenet_weights, "--layer", "fire2.conv1x1_1", "--neurons", 3)
    printed = run("neurons.py", tmp_path / "one.png", *options, "--out", tmp_path / "neurons.png").splitlines()
    assert printed[-2].startswith("3 neurons of fire2.conv1x1_1: ")
    assert printed[-1].endswith("neurons.png: maps and drops")
    assert (tmp_path / "neurons.png").stat().st_size > 20_000


@pytest.mark.long
@pytest.mark.tensorflow
def test_relevance_benchmark_compares_with_the_gradient():
    options = ("--size", 32, "--batches", 1, "--rounds", 1)
    printed = run("benchmarks/relevance.py", *options).splitlines()
    names = [line[2:20].strip() for line in printed if " s (" in line]
    assert names[:4] == ["forward", "gradient", "LRP", "CLRP1"]
    assert float(printed[-2].split()[-1]) > 0.5
    assert printed[-1].startswith("  peak memory ")


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.tensorflow
def test_patch_examples_compare_two_models_and_temperatures(tmp_path):
    pytest.importorskip("imagecorruptions")
    out, work = tmp_path / "out", tmp_path / "models"
    small = ("--dataset", "digits", "--image-size", 16, "--examples", 4, "--steps", 2)
    size = ("--epochs", 1, "--shift", 1, "--vit-width", 16, "--vit-depth", 1, "--resnet-filters", 4, "--work", work)
    parts = ("--parts", "natural", "adversarial", "targeted", "positions", "shift", "transfer", "attention")
    few = (*parts, "--shares", 0.25, 1, "--corruptions", "contrast", "fog", "--num-patches", 2, "--map-examples", 2)
    printed = run("patch_robustness.py", *small, *size, *few, "--out", out).splitlines()
    assert sum("val_accuracy" in line for line in printed) == 2
    rows = {path.stem: json.loads(path.read_text())["result"] for path in out.glob("*.json")}
    kinds = ["1 aligned", "2 aligned", "1 anywhere", "1 within 8/255", "1 of 8x8"]
    assert [row["patches"] for row in rows["adversarial"][::2]] == kinds
    assert [row["patches"] for row in rows["natural"]] == [4] * 4 + [16] * 4
    assert len(rows["positions"]) == 2 * 16
    assert {row["model"] for row in rows["shift"]} == {"vit", "resnet"}
    assert [row["made_on"] for row in rows["transfer"]] == ["vit", "resnet"]
    assert all(0 <= row["fooling_rate"] <= 1 for row in rows["adversarial"] + rows["positions"])
    assert [row["model"] for row in rows["targeted"]] == ["vit", "resnet"]
    assert {row["images"] for row in rows["attention"]} == {"clean", "corrupted", "attacked"}
    maps = {"attention", "gradient of the true class", "gradient of the predicted class"}
    assert {(row["map"], row["patch_size"]) for row in rows["attention"]} == {
        (heatmap, size) for heatmap in maps for size in (4, 8)
    }
    assert (out / "attention.png").stat().st_size > 10_000
    written = json.loads((out / "shift.json").read_text())
    assert written["options"]["vit_width"] == 16
    assert "work" not in written["options"]
    assert [set(row) for row in written["models"]] == [{"model", "parameters", "test_accuracy"}] * 2

    temperatures = ("--models", work / "vit.keras", "--temperatures", 1, 2, "--patch-fool-steps", 2)
    run("smoothed_attention.py", *small, *temperatures, "--out", out)
    written = json.loads((out / "temperature.json").read_text())
    assert [row["temperature"] for row in written["result"]] == [1, 2]
    assert written["result"][0]["transferred"] == written["result"][0]["patch_fool"]
    for row in written["result"]:
        assert row["any"] >= max(row[name] for name in ("patch", "patch_fool", "transferred"))
    assert "vit_width" not in written["options"]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_certified_patches_are_below_what_attacks_leave(tmp_path):
    out, work = tmp_path / "out", tmp_path / "models"
    small = ("--dataset", "digits", "--image-size", 16, "--examples", 24, "--steps", 3, "--epochs", 1, "--size", 4)
    run("certified_patches.py", *small, "--vit-width", 16, "--vit-depth", 1, "--work", work, "--out", out)
    plain, smoothed = json.loads((out / "certified.json").read_text())["result"]
    assert (plain["model"], plain["certified"]) == ("plain", 0)
    assert plain["attacked"] <= plain["accuracy"]
    assert smoothed["certified"] <= smoothed["attacked"] <= 1


@pytest.mark.long
@pytest.mark.tensorflow
def test_patch_attack_benchmark_compares_with_the_gradients():
    printed = run("benchmarks/patch_attack.py", "--steps", 3, "--batch-size", 4, "--rounds", 1).splitlines()
    assert printed[0].startswith("vit, batch 4, up to 3 steps: ")
    assert [line[2:20].strip() for line in printed[1:]] == ["gradients alone", "attack"]
    assert float(printed[2].split()[-1]) > 0.5


@pytest.mark.long
@pytest.mark.tensorflow
def test_metrics_benchmark_compares_with_the_forward_passes():
    options = ("--images", 4, "--batch-size", 4, "--rounds", 1, "--metrics", "insertion", "ROAD", "sparseness")
    printed = run("benchmarks/metrics.py", *options).splitlines()
    timed = [line.split()[:2] for line in printed if " s (" in line]
    names = [" ".join(words) if words[0] == "forward" else words[0] for words in timed if words[0] != "Quantus"]
    assert names == ["forward passes", "evaluate.insertion", "forward passes", "evaluate.road", "evaluate.sparseness"]
    assert float(printed[2].split()[-1]) > 0.3


@pytest.mark.slow
@pytest.mark.tensorflow
def test_python_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = "\n".join(blocks).replace("epochs=10", "epochs=1").replace('load("digits")', 'load("digits", image_size=12)')
    names = {}
    exec(code.replace("(28, 28, 1)", "(12, 12, 1)"), names)
    assert len(blocks) >= 4
    assert (tmp_path / "maps.png").exists()
    assert (tmp_path / "saved_models" / "gracapsnet" / "1" / "saved_model.pb").exists()


def test_ci_finds_the_test_command_in_the_readme():
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv ")]
    assert len(commands) == 2
    assert commands[0].endswith(".venv/bin/python examples/quickstart.py")
    assert commands[1].endswith(".venv/bin/python -m pytest")


@pytest.mark.long
@pytest.mark.tensorflow
def test_the_accelerator_benchmark_rehearses_on_jax(tmp_path, monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    run("benchmarks/accelerator.py", "rehearse", "--out", tmp_path / "accelerator.json")
    report = json.loads((tmp_path / "accelerator.json").read_text())
    assert report["platform"] and report["rehearsal"]
    networks = {"CapsNet", "GraCapsNet", "CapsNet on ResNet18", "DeiT-Ti"}
    assert {row["network"] for row in report["steps"]} == networks
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 for row in report["steps"])
    assert {row["attack"] for row in report["attacks"]} == {"PGD", "APGD"}
    assert [len(report[name]["val_accuracy"]) for name in ("mnist", "cifar10")] == [1, 1]
