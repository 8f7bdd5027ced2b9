"""What explains a graph capsule network best, by every measure (thesis Fig. 3.5, and past it): models of several seeds.

    python examples/reproduce/gracapsnet.py --dataset fashion_mnist --epochs 10 --seed 0      # and with --seed 1
    python examples/reproduce/explanations.py --models saved_models/gracapsnet_fashion_mnist_*/model.keras

Explained are the predicted classes of test images. Measured are AOPC with random values, of regions of a grid (Samek
et al. 2017), of which 36 fit an image of 28x28 pixels ("grid L", the mean drop over the first L perturbations and the
clean image), and of regions around single pixels as in the thesis ("pixels L"); "deletion" and "insertion" (areas under
the probability, low and high ones are good), both with black, the background; and the share of the map on pixels that
are not black ("object"). Writes results/explanations_DATASET.json: for each model a row for each explainer, with 95 %
intervals, and paired t-tests of all pairs. Interrupted, it goes on after the last batch.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from provenance import write_json

from keras_capsvit import data, evaluate, explain, load_model
from keras_capsvit.evaluate.progress import place

LENGTHS = {"grid": (4, 8, 12, 18, 24, 30, 36), "pixels": (10, 20, 40, 70, 100)}
TESTED = ("grid 36", "pixels 100", "deletion", "insertion")


def explainers(model, args):
    """By name, the thesis's and contributions."""
    gradient, integrated = explain.Saliency(model), explain.IntegratedGradients(model, steps=args.steps)
    return {
        "contributions": explain.GraphContribution(model),
        "Graph-Att": explain.GraphAttention(model),
        "Grad": gradient,
        "IG": integrated,
        "Grad-SG": explain.SmoothGrad(gradient, args.samples, seed=args.seed),
        "Random": explain.RandomMap(args.seed),
    }


class Perturbed:
    """AOPC of one kind of regions after several numbers of perturbations, from one curve of the same maps."""

    def __init__(self, regions, seed):
        self.how = {"regions": regions, "steps": LENGTHS[regions][-1], "seed": seed}
        self.maps = self.curve = None

    def after(self, length):
        """The metric AOPC over the first perturbations."""

        def aopc(model, x, classes, maps):
            if self.maps is not maps:
                self.maps, self.curve = maps, evaluate.aopc(model, x, maps, target=classes, **self.how).curve
            return self.curve[:, : length + 1].mean(axis=1)

        return aopc


def metrics(args):
    """By the names of columns."""
    measures = {}
    for regions in args.regions:
        perturbed = Perturbed(regions, args.seed)
        measures |= {f"{regions} {length}": perturbed.after(length) for length in LENGTHS[regions]}
    changes = {"deletion": evaluate.deletion, "insertion": evaluate.insertion}
    for name, change in changes.items():
        measures[name] = lambda model, x, classes, maps, change=change: (
            change(model, x, maps, fill="black", steps=args.changes, target=classes).area
        )
    measures["object"] = lambda model, x, classes, maps: evaluate.energy_inside(maps, x.max(axis=-1) > 0)
    return measures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, nargs="+", required=True, help=".keras files")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--examples", type=int, default=1000, help="test images")
    parser.add_argument("--regions", nargs="+", default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--changes", type=int, default=14, help="steps of deletion and insertion")
    parser.add_argument("--steps", type=int, default=25, help="of integrated gradients")
    parser.add_argument("--samples", type=int, default=10, help="of SmoothGrad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, default="saved_models/explanations", help="keeps measurements")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    args = parser.parse_args()
    out = args.out or pathlib.Path(__file__).parent / "results" / f"explanations_{args.dataset}.json"

    _, test = data.load(args.dataset, batch_size=100, data_dir=args.data_dir)
    x, y = data.take(test, args.examples)
    models = []
    for number, path in enumerate(args.models):
        model = load_model(path)
        accuracy = {"accuracy": float((model.predict(x, verbose=0).argmax(axis=1) == y).mean())}
        accuracy |= {"test accuracy": model.evaluate(test, verbose=0, return_dict=True)["accuracy"]}
        print(f"{path}: {accuracy}")
        work = place(args.work, args.dataset, str(number))
        table, values = evaluate.compare(
            model, explainers(model, args), (x, y), metrics(args), batch_size=250, per_image=True, work=work
        )
        print(
            evaluate.Table([{n: v for n, v in row.items() if " std" not in n and " 95" not in n} for row in table.rows])
        )
        tested = {name: {metric: each[metric] for metric in TESTED if metric in each} for name, each in values.items()}
        tests = evaluate.paired_tests(tested)
        print(tests)
        models.append({**accuracy, "model": model.get_config(), "explainers": table.rows, "tests": tests.rows})
    args.models = [path.parent.name for path in args.models]
    write_json(out, result=models, options=args)
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()
