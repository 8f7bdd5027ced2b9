"""The main job: train a graph capsule network, explain it, save it, export it, and check what was written.

    python examples/quickstart.py                                  # digits: no download, one to three minutes
    python examples/quickstart.py --dataset mnist --epochs 5       # or fashion_mnist, cifar10, svhn_cropped

Writes OUT/explanations.png, OUT/model.keras and OUT/1/ (a SavedModel for TF Serving).
"""

import argparse
import os
import pathlib
import time

# TensorFlow turns oneDNN's kernels on by itself only on some processors; capsule layers run 2x faster with them.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from keras_capsvit import GraCapsNet, MarginLoss, attacks, data, evaluate, explain, load_model, plot, serving

DTYPES = ("float32", "mixed_bfloat16")
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "svhn_cropped")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--epochs", type=int, help="default: 8 for digits, else 5")
    parser.add_argument("--batch-size", type=int, help="default: 32 for digits, else 128")
    parser.add_argument("--image-size", type=int, help="side to resize images to")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="first learning rate of the cosine decay")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: whichever trains faster here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="default: saved_models/gracapsnet_DATASET")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--download", action="store_true", help="let TFDS fetch the data set if it is missing")
    args = parser.parse_args()
    small = args.dataset == "digits"
    args.epochs = args.epochs or (8 if small else 5)
    args.batch_size = args.batch_size or (32 if small else 128)
    args.out = args.out or pathlib.Path("saved_models") / f"gracapsnet_{args.dataset}"
    return args


def faster_dtype(image_shape, num_classes, batch_size):
    """The policy in which a training step of the network takes less time; some processors have units for bfloat16."""
    x, y = np.zeros((batch_size, *image_shape), "float32"), np.zeros(batch_size, "int32")
    seconds = {}
    for policy in DTYPES:
        keras.config.set_dtype_policy(policy)
        model = GraCapsNet(image_shape, num_classes)
        model.compile("adam", MarginLoss(), run_eagerly=True)  # there is nothing to trace for two steps
        for _ in range(2):
            started = time.perf_counter()
            model.train_on_batch(x, y)
            seconds[policy] = time.perf_counter() - started
    print(", ".join(f"{policy}: {each:.3f} s a step" for policy, each in seconds.items()))
    return min(seconds, key=seconds.get)


def main():
    args = parse()
    started = time.perf_counter()
    about = data.info(args.dataset)
    train, test = data.load(
        args.dataset,
        batch_size=args.batch_size,
        image_size=args.image_size,
        data_dir=args.data_dir,
        download=args.download,
        seed=args.seed,
    )

    shape = train.element_spec[0].shape[1:]
    dtype = faster_dtype(shape, about.num_classes, args.batch_size) if args.dtype == "auto" else args.dtype
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(args.seed)
    model = GraCapsNet(shape, about.num_classes)
    nodes = model.taps["contributions"].shape[1:3]
    print(f"{model.name}: {model.count_params():,} parameters, {nodes[0]}x{nodes[1]} = {nodes[0] * nodes[1]} nodes")
    schedule = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.epochs * len(train))
    model.compile(keras.optimizers.Adam(schedule), MarginLoss(), metrics=["accuracy"])
    model.fit(train, validation_data=test, epochs=args.epochs, shuffle=False)  # the stream shuffles itself
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]

    args.out.mkdir(parents=True, exist_ok=True)
    x, y = data.take(test, 64)
    lengths = model.predict(x, batch_size=64, verbose=0)
    maps = explain.GraphContribution(model)(x[:16])
    figure = plot.grid(x[:16], maps, titles=plot.titles_of(lengths[:16], about.class_names), label="contribution")
    figure.savefig(args.out / "explanations.png", dpi=150)

    model.save(args.out / "model.keras")
    version = serving.export(model, args.out)
    reloaded = load_model(args.out / "model.keras")
    served = serving.load(args.out)
    np.testing.assert_array_equal(reloaded.predict(x, batch_size=64, verbose=0), lengths)
    np.testing.assert_array_equal(served.predict(x, batch_size=64), lengths)
    np.testing.assert_allclose(explain.GraphContribution(served)(x[:16]), maps, atol=1e-6)

    pgd = attacks.PGD(0.1, step_size=0.02, steps=10)
    robust = evaluate.robust_accuracy(model, pgd, (x, y))
    print(f"Robust accuracy {robust:.2%} on {len(x)} test images whose pixels PGD moves by up to {pgd.epsilon}.")
    print(f"Test accuracy {accuracy:.2%} after {time.perf_counter() - started:.0f} s.")
    print(
        f"In {args.out}: explanations.png, model.keras and the SavedModel {version.name}/, both reloaded with the same "
        f"predictions. Serve it: tensorflow_model_server --rest_api_port=8501 --model_name=gracapsnet "
        f"--model_base_path={args.out.resolve()}"
    )


if __name__ == "__main__":
    main()
