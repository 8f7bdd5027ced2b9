"""Smoothed Attention: accuracy and robustness of a vision transformer by the temperature of its softmax (Fig. 7.8).

    python examples/smoothed_attention.py --models saved_models/patch_models/vit.keras
    python examples/smoothed_attention.py --dataset digits --epochs 10 --steps 200      # trains; no download

At each temperature: accuracy on the test images, and the fooling rate of one aligned adversarial patch, made at that
temperature on images that are classified correctly at all of them. Writes OUT/temperature.csv and .json.
"""

import patch_models  # first, because it sets up TensorFlow

# isort: split
import time

import numpy as np

from keras_capsvit import attacks, evaluate
from keras_capsvit.patches import PatchGrid


def correct_at_all(args, model, test):
    """Images and labels that the model classifies correctly at every temperature."""
    batches = test
    for model.temperature in args.temperatures:
        batches = evaluate.classified_correctly({"vit": model}, batches)
    if not batches:
        raise SystemExit("No test image is classified correctly at all temperatures; train longer.")
    return tuple(np.concatenate(arrays)[: args.examples] for arrays in zip(*batches, strict=True))


def main():
    parser = patch_models.options(__doc__, out="smoothed_attention")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
    args = parser.parse_args()
    train, test = patch_models.streams(args)
    model = next(iter(patch_models.models(args, train, test).values()))
    x, y = correct_at_all(args, model, test)
    attack = attacks.PatchAttack(
        args.patch_size, positions=PatchGrid(x.shape[1:], args.patch_size), steps=args.steps, seed=args.seed
    )
    rows, started = [], time.perf_counter()
    for temperature in args.temperatures:
        model.temperature = temperature
        accuracy = patch_models.clean({"vit": model}, test)["test_accuracy"][0]
        found = evaluate.fooling_rate({"vit": model}, attack, (x, y)).rows[0]
        kept = ("examples", "fooling_rate", "mean_iterations", "median_iterations")
        rows.append({"temperature": temperature, "test_accuracy": accuracy} | {key: found[key] for key in kept})
        print(rows[-1], flush=True)
    table = evaluate.Table(rows)
    print(table)
    table.to_csv(args.out / "temperature.csv")
    seconds = round(time.perf_counter() - started)
    table.to_json(args.out / "temperature.json", options=patch_models.settings(args), seconds=seconds)


if __name__ == "__main__":
    main()
