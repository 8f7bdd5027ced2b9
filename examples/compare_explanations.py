"""Explainers side by side, measured: AOPC on a graph capsule network, or ablation and pointing game on a CNN.

    python examples/compare_explanations.py                               # digits: no download, a few minutes
    python examples/compare_explanations.py --dataset fashion_mnist --model model.keras --examples 1000
    python examples/compare_explanations.py --squeezenet squeezenet.npz --images pictures --boxes boxes.json

The first form compares the methods of thesis Fig. 3.5. The last compares those of Table 2.1 and Fig. 2.4 on the
pictures that the JSON names, with boxes or masks of their objects, in pixels of the file, and a class, or none for the
predicted one:

    {"bird.jpg": {"boxes": [[75, 37, 315, 485]], "class": 19},            top, left, bottom, right
     "dog.png": {"mask": "dog_mask.png", "values": [1]}}                  pixels of the mask that are the object

Writes OUT/comparison.png, OUT/comparison.csv and .json (the table that it prints, with standard deviations).
"""

import argparse
import functools
import json
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import squeezenet
from PIL import Image

from keras_capsvit import GraCapsNet, MarginLoss, data, evaluate, explain, plot

METHODS = ("Graph-Att", "Grad", "IG", "Grad-SG", "IG-SG", "Random")
KEPT = (10, 25, 50)  # percent of the energy of a map


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, mnist, fashion_mnist, ...")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--image-size", type=int, help="side to resize images to")
    parser.add_argument(
        "--model", type=pathlib.Path, help=".keras file of a graph capsule network; trained if not given"
    )
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--examples", type=int, default=32, help="test images")
    parser.add_argument("--patch", type=int, default=5, help="side of a perturbed region in pixels")
    parser.add_argument(
        "--regions",
        default="pixels",
        choices=["pixels", "grid"],
        help="around single pixels as in the thesis, or a grid",
    )
    parser.add_argument("--perturbations", type=int, help="regions perturbed; all if not given")
    parser.add_argument("--steps", type=int, default=50, help="of integrated gradients")
    parser.add_argument("--samples", type=int, default=10, help="of SmoothGrad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--squeezenet", type=pathlib.Path, metavar="NPZ", help="compare on SqueezeNet instead")
    parser.add_argument("--images", type=pathlib.Path, help="folder of the pictures and masks")
    parser.add_argument("--boxes", type=pathlib.Path, help="JSON file, see above")
    parser.add_argument("--names", type=pathlib.Path, help="JSON list of class names, or of [synset, name]")
    parser.add_argument("--shown", type=int, default=6, help="images in the figure")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models") / "explanations")
    args = parser.parse_args()
    if args.squeezenet and not (args.images and args.boxes):
        parser.error("--squeezenet needs --images and --boxes")
    return args


def capsule_explainers(model, args):
    """Those of thesis Fig. 3.5."""
    grad, ig = explain.Saliency(model), explain.IntegratedGradients(model, steps=args.steps)
    smooth = functools.partial(explain.SmoothGrad, samples=args.samples, seed=args.seed)
    explainers = (explain.GraphAttention(model), grad, ig, smooth(grad), smooth(ig), explain.RandomMap(args.seed))
    return {name: one for name, one in zip(METHODS, explainers, strict=True) if name in args.methods}


def on_capsules(args):
    """Table, printed columns, images, maps and titles, on a graph capsule network."""
    keras.utils.set_random_seed(args.seed)
    batch_size = 32 if args.dataset == "digits" else 128
    where = {"data_dir": args.data_dir, "image_size": args.image_size, "seed": args.seed}
    train, test = data.load(args.dataset, batch_size=batch_size, **where)
    model = keras.saving.load_model(args.model) if args.model else trained(args, train)
    x, y = data.take(test, args.examples)
    explainers = capsule_explainers(model, args)

    def aopc(model, x, classes, maps):
        settings = {"patch": args.patch, "regions": args.regions, "steps": args.perturbations, "seed": args.seed}
        return evaluate.aopc(model, x, maps, target=classes, **settings).area

    names, shown = data.info(args.dataset).class_names, x[: args.shown]
    titles = plot.titles_of(model.predict(shown, verbose=0), names)
    maps = {name: explainer(shown) for name, explainer in explainers.items()}
    batches = [(x[i : i + 100], y[i : i + 100]) for i in range(0, len(x), 100)]
    table = evaluate.compare(model, explainers, batches, {"aopc": aopc})
    accuracy = float((model.predict(x, verbose=0).argmax(-1) == y).mean())
    print(f"Accuracy on the {len(x)} images: {accuracy:.2%}")
    return table, ("aopc", "aopc std"), shown, maps, titles, {"accuracy": accuracy}


def trained(args, train):
    """A graph capsule network for the data set."""
    model = GraCapsNet(train.element_spec[0].shape[1:], data.info(args.dataset).num_classes)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, args.epochs * len(train))
    model.compile(keras.optimizers.Adam(schedule), MarginLoss(), metrics=["accuracy"])
    model.fit(train, epochs=args.epochs, verbose=2, shuffle=False)  # the stream shuffles itself
    args.out.mkdir(parents=True, exist_ok=True)
    model.save(args.out / "model.keras")
    return model


def on_pictures(args):
    """Table, printed columns, images, maps and titles, on SqueezeNet."""
    model, size = squeezenet.squeezenet(args.squeezenet), squeezenet.SIZE
    entries = json.loads(args.boxes.read_text())
    images = np.stack([read(args.images / name, size) for name in entries])
    masks = np.stack([object_in(args.images, name, entry, size) for name, entry in entries.items()])
    x = squeezenet.preprocess(images)
    scores = model.predict(x, verbose=0)
    y = np.array([entry.get("class", scores[i].argmax()) for i, entry in enumerate(entries.values())])
    settings = {"input_range": squeezenet.input_range()}
    explainers = {
        "random": explain.RandomMap(args.seed),
        "gradient": explain.Saliency(model),
        "guided backprop": explain.GuidedBackprop(model),
        "LRP": explain.LRP(model, "thesis", **settings),
        "CLRP1": explain.CLRP(model, "others", rules="thesis", **settings),
        "CLRP2": explain.CLRP(model, "negated", rules="thesis", **settings),
    }

    def drop(model, x, classes, maps):
        return evaluate.ablation_drop(model, x, maps, mean=0, target=classes)  # 0 is the data set's mean colour

    def hits(model, x, classes, maps, threshold=None):
        return evaluate.pointing_game(maps, masks, threshold=threshold)

    metrics = {"drop": drop, "maximum hits": hits}
    metrics |= {f"{kept} % hit": functools.partial(hits, threshold=kept) for kept in KEPT}
    maps = {name: explainer(x[: args.shown], y[: args.shown]) for name, explainer in explainers.items()}
    table = evaluate.compare(model, explainers, (x, y), metrics, target="label")
    name_of = named(args.names)
    titles = [f"{name_of(one)} {scores[i, one]:.1f}" for i, one in enumerate(y)]
    return table, ("drop", *list(metrics)[1:]), images[: args.shown], maps, titles[: args.shown], {}


def read(path, size):
    """Pixels ``(size, size, 3)`` in [0, 1]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), "float32") / 255


def object_in(folder, name, entry, size):
    """Mask ``(size, size)`` of the object in a picture, of an entry of the JSON file."""
    if "mask" in entry:
        with Image.open(folder / entry["mask"]) as image:
            mask = np.isin(np.asarray(image.convert("L")), entry.get("values", list(range(1, 256))))
    else:
        with Image.open(folder / name) as image:
            mask = np.zeros(image.size[::-1], bool)
        for top, left, bottom, right in entry["boxes"]:
            mask[top:bottom, left:right] = True
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def named(path):
    if path is None:
        return lambda number: f"class {number}"
    names = json.loads(path.read_text())
    return lambda number: (names[number] if isinstance(names[number], str) else names[number][-1]).replace("_", " ")


def main():
    args = parse()
    table, columns, images, maps, titles, how = (on_pictures if args.squeezenet else on_capsules)(args)
    print(
        evaluate.Table(
            [{name: row[name] for name in ("explainer", *columns, "seconds_per_image")} for row in table.rows]
        )
    )
    table.to_csv(args.out / "comparison.csv")
    options = {name: value for name, value in vars(args).items() if not isinstance(value, pathlib.Path)}
    table.to_json(args.out / "comparison.json", options=options, **how)
    plot.comparison(images, maps, titles=titles).savefig(args.out / "comparison.png", dpi=150)
    print(f"In {args.out}: comparison.png, comparison.csv, comparison.json")


if __name__ == "__main__":
    main()
