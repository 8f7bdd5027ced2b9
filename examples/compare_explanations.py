"""Explainers side by side, measured: AOPC on a graph capsule network, or localisation and ablation on any classifier.

Both also by insertion and deletion.

    python examples/compare_explanations.py                               # digits: no download, a few minutes
    python examples/compare_explanations.py --dataset fashion_mnist --model model.keras --examples 1000
    python examples/compare_explanations.py --pictures FOLDER --boxes boxes.json --model model.keras --range -1 1
    python examples/compare_explanations.py --pictures FOLDER --boxes boxes.json --squeezenet squeezenet.npz

The first form compares the methods of thesis Fig. 3.5. The last two compare explainers as in Table 2.1 and Fig. 2.4 on
the objects that the JSON names, in boxes or masks in pixels of the file, of a class, or of none for the predicted one:

    {"bird.jpg": {"boxes": [[75, 37, 315, 485]], "class": 19},            top, left, bottom, right
     "dog.png": {"mask": "dog_mask.png", "values": [1]}}                  pixels of the mask that are the object

or, of several objects in a picture, as pictures.objects says. Writes OUT/comparison.png, OUT/comparison.csv and .json
(the table that it prints, with standard deviations and errors).
"""

import argparse
import functools
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pictures

from keras_capsvit import GraCapsNet, MarginLoss, data, evaluate, explain, load_model, plot, taps

METHODS = ("Graph-Att", "Grad", "IG", "Grad-SG", "IG-SG", "Random")
KEPT = (10, 25, 50)  # percent of the energy of a map


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, mnist, fashion_mnist, ...")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--image-size", type=int, help="side to resize images to")
    pictures.add_model(parser)  # without pictures --model is a .keras file of a graph capsule network, else trained
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
    parser.add_argument("--changes", type=int, default=10, help="steps of insertion and deletion; 0 leaves them out")
    parser.add_argument("--steps", type=int, default=50, help="of integrated gradients")
    parser.add_argument("--samples", type=int, default=10, help="of SmoothGrad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=pathlib.Path, help="folder of pictures and masks: compare on these instead")
    parser.add_argument("--boxes", type=pathlib.Path, help="JSON file, see above")
    parser.add_argument("--rules", default="z_plus", help="of LRP and CLRP, see explain.LRP")
    parser.add_argument("--fallback", choices=["flat", "w_square"], help="of z_plus, where nothing is positive")
    parser.add_argument("--only", nargs="+", help="explainers on pictures; all if not given")
    parser.add_argument("--class-offset", type=int, help="added to classes of the JSON; 1 for 1,001 scores")
    parser.add_argument("--names", type=pathlib.Path, help="JSON list of class names, or of [synset, name]")
    parser.add_argument("--shown", type=int, default=6, help="images in the figure")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models") / "explanations")
    args = parser.parse_args()
    if args.pictures and not (args.boxes and (args.model or args.squeezenet)):
        parser.error("--pictures needs --boxes, and --model or --squeezenet")
    return args


def capsule_explainers(model, args):
    """Those of thesis Fig. 3.5."""
    grad, ig = explain.Saliency(model), explain.IntegratedGradients(model, steps=args.steps)
    smooth = functools.partial(explain.SmoothGrad, samples=args.samples, seed=args.seed)
    explainers = (explain.GraphAttention(model), grad, ig, smooth(grad), smooth(ig), explain.RandomMap(args.seed))
    return {name: explainer for name, explainer in zip(METHODS, explainers, strict=True) if name in args.methods}


def changes(args, bounds):
    """Metrics of insertion and deletion, of pixels within bounds."""

    def area(model, x, classes, maps, change):
        return change(model, x, maps, steps=args.changes, target=classes, bounds=bounds).area

    kinds = {"insertion": evaluate.insertion, "deletion": evaluate.deletion} if args.changes else {}
    return {name: functools.partial(area, change=change) for name, change in kinds.items()}


def on_capsules(args):
    """Table, printed columns, images, maps and titles, on a graph capsule network."""
    keras.utils.set_random_seed(args.seed)
    batch_size = 32 if args.dataset == "digits" else 128
    where = {"data_dir": args.data_dir, "image_size": args.image_size, "seed": args.seed}
    train, test = data.load(args.dataset, batch_size=batch_size, **where)
    model = load_model(args.model) if args.model else trained(args, train)
    x, y = data.take(test, args.examples)
    explainers = capsule_explainers(model, args)

    def aopc(model, x, classes, maps):
        settings = {"patch": args.patch, "regions": args.regions, "steps": args.perturbations, "seed": args.seed}
        return evaluate.aopc(model, x, maps, target=classes, **settings).area

    names, shown = data.info(args.dataset).class_names, x[: args.shown]
    titles = plot.titles_of(model.predict(shown, verbose=0), names)
    maps = {name: explainer(shown) for name, explainer in explainers.items()}
    batches = [(x[i : i + 100], y[i : i + 100]) for i in range(0, len(x), 100)]
    metrics = {"aopc": aopc, **changes(args, (0, 1))}
    table = evaluate.compare(model, explainers, batches, metrics)
    accuracy = float((model.predict(x, verbose=0).argmax(-1) == y).mean())
    print(f"Accuracy on the {len(x)} images: {accuracy:.2%}")
    columns = [name for metric in metrics for name in (metric, f"{metric} std")]
    return table, columns, shown, maps, titles, {"accuracy": accuracy}


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
    """Table, printed columns, images, maps and titles, of the objects in pictures."""
    classifier = pictures.classifier(args)
    model, pixels = classifier.model, classifier.range
    objects = pictures.objects(args.pictures, args.boxes, classifier.size)
    images = np.stack([pictures.read(args.pictures / name, classifier.size) for name, _, _ in objects])
    masks = np.stack([mask for _, _, mask in objects])
    x = np.asarray(classifier.preprocess(images), "float32")
    scorer = taps.scores(model)
    scores = np.concatenate([keras.ops.convert_to_numpy(scorer(x[i : i + 32])) for i in range(0, len(x), 32)])
    offset = scores.shape[1] - 1000 if args.class_offset is None and scores.shape[1] == 1001 else args.class_offset or 0
    y = np.array([scores[i].argmax() if label is None else label + offset for i, (_, label, _) in enumerate(objects)])
    explainers = picture_explainers(model, pixels, args)

    def drop(model, x, classes, maps):
        return evaluate.ablation_drop(model, x, maps, mean=x.mean(axis=(0, 1, 2)), target=classes)

    def hits(model, x, classes, maps, threshold=None):
        return evaluate.pointing_game(maps, masks, threshold=threshold)

    metrics = {
        "energy in box": lambda model, x, classes, maps: evaluate.energy_inside(maps, masks),
        "drop": drop,
        "maximum hits": hits,
        **{f"{kept} % hit": functools.partial(hits, threshold=kept) for kept in KEPT},
        **changes(args, pixels),
    }
    maps = {name: explainer(x[: args.shown], y[: args.shown]) for name, explainer in explainers.items()}
    table = evaluate.compare(model, explainers, (x, y), metrics, target="label", batch_size=len(x))
    name_of = pictures.names_of(args.names)
    titles = [f"{name_of(label - offset)} {scores[i, label]:.1f}" for i, label in enumerate(y)]
    how = {
        "objects": len(y),
        "share of the boxes": float(masks.mean()),
        "top 1": float((scores.argmax(1) == y).mean()),
        "top 5": float((np.argsort(-scores, axis=1)[:, :5] == y[:, None]).any(1).mean()),
    }
    columns = [name for metric in metrics for name in (metric, f"{metric} se")]
    return table, columns, images[: args.shown], maps, titles[: args.shown], how


def picture_explainers(model, pixels, args):
    """All that fit any classifier, by name."""
    gradient = explain.Saliency(model)
    rules = [("*", "z_plus", {"fallback": args.fallback}), "z_plus"] if args.fallback else args.rules
    settings = {"input_range": pixels, "rules": rules}
    explainers = {
        "random": explain.RandomMap(args.seed),
        "gradient": gradient,
        "gradient x input": explain.InputXGradient(model),
        "IG": explain.IntegratedGradients(model, steps=args.steps),
        "SmoothGrad": explain.SmoothGrad(gradient, args.samples, seed=args.seed),
        "guided backprop": explain.GuidedBackprop(model),
        "Grad-CAM": explain.GradCAM(model),
        "Grad-CAM++": explain.GradCAMPlusPlus(model),
        "Layer-CAM": explain.LayerCAM(model),
        "HiRes-CAM": explain.HiResCAM(model),
        "Eigen-CAM": explain.EigenCAM(model),
        "LRP": explain.LRP(model, **settings),
        "CLRP1": explain.CLRP(model, "others", **settings),
        "CLRP2": explain.CLRP(model, "negated", **settings),
    }
    return {name: explainer for name, explainer in explainers.items() if args.only is None or name in args.only}


def main():
    args = parse()
    table, columns, images, maps, titles, how = (on_pictures if args.pictures else on_capsules)(args)
    print(
        evaluate.Table(
            [{name: row[name] for name in ("explainer", *columns, "seconds_per_image")} for row in table.rows]
        )
    )
    table.to_csv(args.out / "comparison.csv")
    options = {name: value for name, value in vars(args).items() if not isinstance(value, pathlib.Path)}
    options["model"] = args.model and pathlib.Path(args.model).name
    table.to_json(args.out / "comparison.json", options=options, **how)
    plot.comparison(images, maps, titles=titles).savefig(args.out / "comparison.png", dpi=150)
    print(f"In {args.out}: comparison.png, comparison.csv, comparison.json")


if __name__ == "__main__":
    main()
