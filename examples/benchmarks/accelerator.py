"""What an accelerator does with this package, on JAX: steps, attacks and whole trainings, in minutes and one JSON file.

    python examples/benchmarks/accelerator.py prepare carried --data-dir TFDS     # wheels and data, under 64 MiB
    sh carried/install.sh && KERAS_BACKEND=jax python examples/benchmarks/accelerator.py run carried --minutes 8
    KERAS_BACKEND=jax python examples/benchmarks/accelerator.py rehearse          # tiny sizes, on any processor

The second line is for a machine that has JAX and NumPy and no network: all else is in the folder. Measured are

- training steps of CapsNet, GraCapsNet, CapsNet on ResNet18 and DeiT-Ti in float32 and bfloat16, and of the floor of
  each: a network of its convolutions, or of its matrix products, alone;
- a step of a transformer of DeiT-Ti's size in PyTorch, where that is installed;
- images per second under PGD with 40 steps and APGD with as many, on ResNet20;
- a GraCapsNet trained on MNIST, and one on CIFAR-10, with their accuracies, by as many images as the folder holds.

Parts run in this order while there is time, and the JSON is written after each, with the device's name.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

WHEELS = ("keras", "namex", "optree", "absl-py", "h5py", "safetensors", "ml-dtypes", "packaging", "rich")
MOST = 64 * 2**20  # bytes that may be carried
DTYPES = ("float32", "mixed_bfloat16")


# What is carried.


def prepare(args):
    """Fill the folder with wheels, data and a script that installs."""
    folder, root = args.folder, pathlib.Path(__file__).parent.parent.parent
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "download", "-q", "--no-deps", "-d", str(wheels), *WHEELS], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(wheels), str(root)], check=True)
    (folder / "install.sh").write_text(
        '#!/bin/sh\npython -m pip install -q --no-index --no-deps "$(dirname "$0")"/wheels/*.whl\n'
    )
    from keras_capsvit import data

    for name, count in (("mnist", 60_000), ("cifar10", args.cifar_images)):
        parts = {}
        for split, images in (("train", count), ("test", 10_000 if name == "mnist" else 2_000)):
            stream = data.load(name, split=f"{split}[:{images}]", batch_size=1000, data_dir=args.data_dir)
            batches = list(stream.as_numpy_iterator())
            x = np.concatenate([np.rint(x * 255).astype("uint8") for x, _ in batches])
            parts |= {f"{split}_x": x, f"{split}_y": np.concatenate([y for _, y in batches]).astype("uint8")}
        np.savez_compressed(folder / f"{name}.npz", **parts)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB of at most {MOST / 2**20:.0f}")
    if size > MOST:
        raise SystemExit("That is too much; take fewer --cifar-images.")


# What is measured.


def networks(tiny):
    """Builders by name, the shape of their images, and how many are in a batch."""
    from keras_capsvit import CapsNet, DeiT, GraCapsNet, ResNet18

    if tiny:
        small = {"filters": 4, "primary_dim": 4, "capsule_dim": 4}
        grey, colour = (12, 12, 1), (16, 16, 3)
        backbone = {"backbone": ResNet18(colour, 10, filters=4), "kernel_size": None, "num_types": 4}
        return {
            "CapsNet": (lambda: CapsNet(grey, 10, kernel_size=3, num_types=2, **small), grey, 4),
            "GraCapsNet": (lambda: GraCapsNet(grey, 10, num_heads=2, **small), grey, 4),
            "CapsNet on ResNet18": (lambda: CapsNet(colour, 10, primary_dim=8, **backbone), colour, 4),
            "DeiT-Ti": (lambda: DeiT("Ti/8", input_shape=colour, num_classes=10, depth=1), colour, 4),
        }
    grey, colour = (28, 28, 1), (32, 32, 3)
    return {
        "CapsNet": (lambda: CapsNet(grey, 10), grey, 128),
        "GraCapsNet": (lambda: GraCapsNet(grey, 10), grey, 128),
        "CapsNet on ResNet18": (
            lambda: CapsNet(colour, 10, backbone=ResNet18(colour, 10), kernel_size=None, num_types=64, batch_norm=True),
            colour,
            256,
        ),
        "DeiT-Ti": (
            lambda: DeiT("Ti/16", input_shape=(224, 224, 3), num_classes=1000),
            (224, 224, 3),
            256,
        ),
    }


def convolutions_of(model):
    """The model's convolutions in their order, with a pooled linear head: the floor of a capsule network."""
    import keras

    x = images = keras.Input(model.input_shape[1:])
    backbone = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
    if backbone is not None:
        x = backbone(images)
    else:
        for name, layer in (("first", model.get_layer("conv")), ("second", model.get_layer("primary_capsules").conv)):
            x = keras.layers.Conv2D.from_config({**layer.get_config(), "name": name})(x)
    if len(x.shape) == 4:
        x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(model.output_shape[-1])(x))


def products_of(model):
    """The matrix products of a transformer's blocks, on its patches, with sums and a ReLU between: its floor."""
    import keras

    config = model.get_config()
    width, heads, side = config["width"], config["num_heads"], int(config["variant"].split("/")[1])
    x = images = keras.Input(model.input_shape[1:])
    x = keras.layers.Conv2D(width, side, strides=side)(x)
    tokens = x.shape[1] * x.shape[2]
    x = keras.layers.Reshape((tokens, width))(x)
    for _ in range(config["depth"]):
        by_head = keras.layers.Reshape((tokens, 3, heads, width // heads))(keras.layers.Dense(3 * width)(x))
        query, key, value = keras.ops.unstack(by_head, axis=2)
        attention = keras.ops.einsum("bqhd,bkhd->bhqk", query, key) / tokens  # of the size of what a softmax returns
        attended = keras.ops.einsum("bhqk,bkhd->bqhd", attention, value)
        x = x + keras.layers.Dense(width)(keras.layers.Reshape((tokens, width))(attended))
        x = x + keras.layers.Dense(width)(keras.layers.Dense(config["mlp_units"], activation="relu")(x))
    return keras.Model(images, keras.layers.Dense(model.output_shape[-1])(keras.layers.GlobalAveragePooling1D()(x)))


def loss_of(model):
    """The loss that belongs to a model's scores."""
    import keras

    from keras_capsvit import MarginLoss

    of_lengths = "lengths" in getattr(model, "taps", {})
    return MarginLoss() if of_lengths else keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def seconds_of(run, rounds):
    """Median seconds of a call after two that warm up."""
    times = []
    for turn in range(rounds + 2):
        started = time.perf_counter()
        run()
        if turn >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def step_seconds(model, x, y, rounds):
    """Seconds of a training step on a batch that is on the device: Keras's own compiled step, a few in one call."""
    model.compile("adam", loss_of(model))
    many = 10
    xs, ys = np.concatenate([x] * many), np.concatenate([y] * many)
    fit = {"batch_size": len(x), "epochs": 1, "shuffle": False, "verbose": 0}
    return seconds_of(lambda: model.fit(xs, ys, **fit), rounds) / many


def steps(tiny):
    """Rows of every network's step, its floor's, and their ratio."""
    import keras

    rows = []
    for name, (build, shape, batch) in networks(tiny).items():
        x = np.random.default_rng(0).uniform(size=(batch, *shape)).astype("float32")
        for dtype in DTYPES:
            keras.config.set_dtype_policy(dtype)
            try:
                model = build()
                y = np.arange(batch) % model.output_shape[-1]
                floor = products_of(model) if name.startswith("DeiT") else convolutions_of(model)
                rounds = 1 if tiny else 5
                seconds, floor_time = (step_seconds(each, x, y, rounds) for each in (model, floor))
            finally:
                keras.config.set_dtype_policy("float32")
            row = {"network": name, "dtype": dtype, "batch": batch, "ms": 1e3 * seconds, "floor_ms": 1e3 * floor_time}
            rows.append({**row, "ratio": seconds / floor_time, "parameters": model.count_params()})
            print(rows[-1], flush=True)
    return rows


def torch_step(tiny):
    """Rows of a step of a transformer of DeiT-Ti's size in PyTorch, or why there is none."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, depth, heads, tokens, batch = (16, 1, 2, 5, 4) if tiny else (192, 12, 3, 198, 256)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        network = torch.nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).to(device)
        optimizer = torch.optim.Adam(network.parameters())
        x = torch.rand(batch, tokens, width, device=device)

        def step(network=network, optimizer=optimizer, x=x, dtype=dtype):
            with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
                loss = network(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        seconds = seconds_of(step, 1 if tiny else 10)
        rows.append(
            {"network": "transformer of DeiT-Ti's size", "dtype": str(dtype), "batch": batch, "ms": 1e3 * seconds}
        )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "rows": rows,
    }


def attack_throughput(tiny):
    """Images per second of PGD and APGD on ResNet20, whose batch stays whole."""
    from keras_capsvit import ResNet20, attacks

    count, num_steps = (4, 2) if tiny else (512, 40)
    model = ResNet20((32, 32, 3), 10)
    x = np.random.default_rng(0).uniform(size=(count, 32, 32, 3)).astype("float32")
    y = np.arange(count) % 10
    rows = []
    for precision in ("float32", "bfloat16"):
        objective = attacks.in_precision(model, precision)
        for attack in (attacks.PGD(8 / 255, steps=num_steps), attacks.APGD(8 / 255, steps=num_steps)):
            seconds = seconds_of(lambda attack=attack, objective=objective: attack(objective, x, y), 1 if tiny else 3)
            rows.append(
                {
                    "attack": type(attack).__name__,
                    "precision": precision,
                    "steps": num_steps,
                    "images": count,
                    "images_per_second": count / seconds,
                }
            )
    return rows


def training(folder, name, tiny, epochs):
    """Accuracy by epoch and seconds of a GraCapsNet on a data set of the folder; on noise to rehearse."""
    import keras

    from keras_capsvit import GraCapsNet, MarginLoss

    keras.utils.set_random_seed(0)
    if tiny:
        random, shape = np.random.default_rng(0), (12, 12, 1) if name == "mnist" else (12, 12, 3)
        x, y = random.uniform(size=(32, *shape)).astype("float32"), np.arange(32) % 10
        train, test, settings = (x, y), (x, y), {"num_heads": 2, "filters": 4, "primary_dim": 4, "capsule_dim": 4}
    else:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            parts = {key: file[key] for key in file.files}
        train, test = (
            (parts[f"{split}_x"].astype("float32") / 255, parts[f"{split}_y"].astype("int64"))
            for split in ("train", "test")
        )
        settings = {"num_heads": 64} if name == "cifar10" else {}
    model = GraCapsNet(train[0].shape[1:], 10, **settings)
    batch = 8 if tiny else 128
    rate = keras.optimizers.schedules.CosineDecay(0.003, epochs * -(-len(train[0]) // batch))
    model.compile(keras.optimizers.Adam(rate), MarginLoss(), metrics=["accuracy"])
    started = time.perf_counter()
    history = model.fit(*train, validation_data=test, epochs=epochs, batch_size=batch, verbose=0).history
    return {
        "data": name,
        "images": len(train[0]),
        "test_images": len(test[0]),
        "epochs": epochs,
        "val_accuracy": history["val_accuracy"],
        "seconds": time.perf_counter() - started,
    }


def run(args):
    """All parts, while there is time."""
    import jax
    import keras

    from keras_capsvit.evaluate.table import versions

    if keras.backend.backend() != "jax":
        raise SystemExit("Set KERAS_BACKEND=jax.")
    tiny = args.action == "rehearse"
    (device, *_) = jax.devices()
    report = {"device": device.device_kind, "platform": device.platform, "versions": versions(), "rehearsal": tiny}
    parts = {
        "steps": lambda: steps(tiny),
        "torch": lambda: torch_step(tiny),
        "attacks": lambda: attack_throughput(tiny),
        "mnist": lambda: training(args.folder, "mnist", tiny, 1 if tiny else 10),
        "cifar10": lambda: training(args.folder, "cifar10", tiny, 1 if tiny else 30),
    }
    started = time.monotonic()
    for name, part in parts.items():
        if time.monotonic() - started > 60 * args.minutes:
            report[name] = "there was no time left"
            continue
        try:
            report[name] = part()
        except Exception as error:  # the other parts are worth their minutes
            report[name] = f"{type(error).__name__}: {error}"
        report["seconds"] = round(time.monotonic() - started, 1)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(name, "done after", report["seconds"], "s", flush=True)
    print(json.dumps(report, indent=1))
    failed = [name for name in parts if isinstance(report[name], str) and "Error" in report[name]]
    if failed:
        raise SystemExit(f"These parts failed: {', '.join(failed)}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("prepare", "run", "rehearse"))
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=pathlib.Path("carried"))
    parser.add_argument("--data-dir", help="where the TFDS folders are, to prepare")
    parser.add_argument("--cifar-images", type=int, default=12_000, help="training images of CIFAR-10 that are carried")
    parser.add_argument("--minutes", type=float, default=8, help="after which no further part begins")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("accelerator.json"))
    args = parser.parse_args()
    prepare(args) if args.action == "prepare" else run(args)


if __name__ == "__main__":
    main()
