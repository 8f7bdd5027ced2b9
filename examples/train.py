"""Trains any model of the package by any recipe, on one device, on several, or on several machines, by one script.

    python examples/train.py GraCapsNet --dataset digits --recipe gracapsnet
    python examples/train.py CapsNet --settings '{"reconstruction": "conditional"}' --dataset mnist --epochs 5
    python examples/train.py ResNet20 --dataset cifar10 --recipe resnet18 --adversarial 0.031 --attack-steps 8
    python examples/train.py GraCapsNet --dataset digits --devices 2 --logical-cpus 2                 # TensorFlow
    KERAS_BACKEND=jax python examples/train.py GraCapsNet --dataset digits --here 2                   # two processes
    KERAS_BACKEND=jax python examples/train.py GraCapsNet --dataset digits \
        --processes 2 --process 0 --coordinator 10.0.0.1:7000                                         # a machine each

The batch of the recipe (or --batch-size) is that of all devices together, and the learning rate belongs to it: more
devices train the same network the same way, faster. On TensorFlow the devices of one machine train together
(MirroredStrategy); Keras 3 does not work with its strategies of several machines. On JAX all devices of all processes
do (DataParallel), and each process reads the same stream and takes its rows. Checkpoints are written by the first
process, in WORK, which all must see. If a process dies, all end; start them again, and they go on after the last
finished epoch. ``--here N`` starts N processes on this machine, and starts them again, at most RESTARTS times.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import keras_capsvit
from keras_capsvit import attacks, data, training

RECIPE = ("epochs", "batch_size", "learning_rate", "loss")


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="class of this package")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON of other settings of its constructor")
    parser.add_argument("--dataset", default="digits", help="digits, mnist, fashion_mnist, cifar10, ...")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--recipe", default="gracapsnet", choices=list(training.RECIPES))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's, as of the next three")
    parser.add_argument("--batch-size", type=int, help="of all devices together")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--loss", choices=training.LOSSES)
    parser.add_argument("--adversarial", type=float, metavar="EPSILON", help="train on examples of PGD within this")
    parser.add_argument("--attack-steps", type=int, default=8)
    parser.add_argument("--dtype-policy", default="float32", help="such as mixed_bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deterministic", action="store_true", help="the same bits in every run; slower")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("saved_models") / "train")
    parser.add_argument("--devices", type=int, help="of this machine, on TensorFlow; all if not given")
    parser.add_argument("--logical-cpus", type=int, help="make so many devices of the processor, for a try")
    parser.add_argument("--processes", type=int, default=1, help="that train together, on JAX")
    parser.add_argument("--process", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--coordinator", help="HOST:PORT of the first one")
    parser.add_argument("--here", type=int, metavar="N", help="start N processes on this machine")
    parser.add_argument("--restarts", type=int, default=3, help="of all of --here, when one dies")
    args = parser.parse_args(arguments)
    jax = keras.backend.backend() == "jax"
    if not isinstance(getattr(keras_capsvit, args.model, None), type):
        parser.error(f"{args.model} is no class of keras_capsvit")
    if (args.processes > 1 or args.here) and not jax:
        parser.error("several processes train together on JAX: set KERAS_BACKEND=jax")
    if (args.devices or args.logical_cpus) and jax:
        parser.error("--devices and --logical-cpus are TensorFlow's; JAX takes all devices that it sees")
    if args.processes > 1 and not args.coordinator:
        parser.error("several processes need a --coordinator")
    return args


def together(count, restarts):
    """Run this command in so many processes on this machine, again if one dies; the exit status of the last try."""
    arguments = list(sys.argv[1:])
    position = next(k for k, text in enumerate(arguments) if text.split("=")[0] == "--here")
    del arguments[position : position + (1 if "=" in arguments[position] else 2)]
    for attempt in range(restarts + 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        shared = [sys.executable, __file__, *arguments, "--processes", str(count), "--coordinator", address]
        processes = [subprocess.Popen([*shared, "--process", str(number)]) for number in range(count)]
        while all(process.poll() is None for process in processes):
            time.sleep(0.2)
        failed = any(process.poll() for process in processes)
        for process in processes:
            if failed:
                process.kill()  # it waits for the one that died
            process.wait()
        failed = any(process.returncode for process in processes)
        if not failed:
            return 0
        print(f"A process ended with {[process.returncode for process in processes]}; try {attempt + 1}.", flush=True)
    return 1


def strategy_of(args):
    """What makes several devices train together: a scope to build and train in."""
    if keras.backend.backend() == "jax":
        devices = keras.distribution.list_devices()
        if len(devices) > 1:
            distribution = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
            keras.distribution.set_distribution(distribution)
        return len(devices), None
    import tensorflow as tf

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if args.logical_cpus:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * args.logical_cpus)
        kind = "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    count = args.devices or len(names)
    if count > len(names):
        raise SystemExit(f"Expected at most {len(names)} --devices, {', '.join(names)}; received {count}.")
    return count, tf.distribute.MirroredStrategy(names[:count]) if count > 1 else None


def streams(args, recipe, devices):
    """Training and validation stream of this process.

    Batches are those that all devices share evenly: an epoch is of whole batches, and leaves the rest of the images,
    others in every epoch, out; of the validation images fewer than there are devices are left out.
    """
    import tensorflow as tf

    size = recipe.batch_size
    if size % devices:
        raise SystemExit(f"Expected a batch that {devices} devices share evenly; received {size}.")
    load = {"batch_size": size, "data_dir": args.data_dir, "seed": args.seed}
    # Counted in streams of their own, because reading one changes the order in which it comes next.
    counts = [sum(len(y) for _, y in stream.as_numpy_iterator()) for stream in data.load(args.dataset, **load)]
    train, test = data.load(args.dataset, **load)
    train = train.take(counts[0] // size)
    train = data.augment(train, shift=recipe.shift, flip=recipe.flip, seed=args.seed)
    if recipe.mixes:
        classes = data.info(args.dataset).num_classes
        train = data.mix(train, classes, mixup=recipe.mixup, cutmix=recipe.cutmix, seed=args.seed)
    if counts[1] % devices:
        images = counts[1] - counts[1] % devices
        test = test.unbatch().take(images).batch(size)
        test = test.apply(tf.data.experimental.assert_cardinality(-(-images // size)))
    return training.share(train), training.share(test)


def main():
    args = parse()
    if args.here:
        raise SystemExit(together(args.here, args.restarts))
    if args.processes > 1:
        keras.distribution.initialize(args.coordinator, args.processes, args.process)
    devices, strategy = strategy_of(args)
    (training.set_deterministic if args.deterministic else keras.utils.set_random_seed)(args.seed)
    keras.config.set_dtype_policy(args.dtype_policy)
    settings = {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    recipe = dataclasses.replace(training.RECIPES[args.recipe], **settings)
    is_chief = args.process == 0
    if is_chief:
        print(
            f"A batch of {recipe.batch_size} on {devices} device(s), {recipe.batch_size // devices} on each; learning "
            f"rate {recipe.learning_rate}, {recipe.schedule}.",
            flush=True,
        )
    train, test = streams(args, recipe, devices)
    about = data.info(args.dataset)

    def run():
        model = getattr(keras_capsvit, args.model)(
            input_shape=about.image_shape, num_classes=about.num_classes, **args.settings
        )
        common = {"work": args.work, "verbose": "auto" if is_chief else 0}
        if args.adversarial is None:
            training.fit(model, train, test, recipe, **common)
        else:
            pgd = attacks.PGD(args.adversarial, steps=args.attack_steps, seed=args.seed)
            training.adversarial_fit(model, train, test, recipe, pgd, **common)
        return model

    if strategy is None:
        model = run()
    else:
        with strategy.scope():
            model = run()
    if is_chief:
        if args.processes > 1:  # Keras makes a variable while it saves, which all would have to do together
            keras.distribution.set_distribution(None)
        model.save(args.work / "model.keras")
        print(f"Wrote {args.work / 'model.keras'} and epochs.csv")


if __name__ == "__main__":
    main()
