"""Smoothed Attention: accuracy and robustness of a vision transformer by the temperature of its softmax (Fig. 7.8).

    python examples/smoothed_attention.py --models saved_models/patch_models/vit.keras
    python examples/smoothed_attention.py --dataset digits --epochs 10 --steps 200      # trains; no download

At each temperature: accuracy on the test images, and fooling rates of one aligned adversarial patch on images that are
classified correctly at all temperatures. ``patch`` is PatchAttack's, at random cells; ``patch_fool`` Patch-Fool's, on
the token that gets most attention; both are made at that temperature. ``transferred`` is Patch-Fool's of temperature 1
(or the nearest): if these fooled more, higher temperatures would hide gradients instead of protecting. ``any`` counts
images that any of the three fools. Writes OUT/temperature.csv and .json.
"""

import patch_models  # first, because it sets up TensorFlow

# isort: split
import time

import numpy as np

from keras_capsvit import attacks, evaluate, taps
from keras_capsvit.patches import PatchGrid


def correct_at_all(args, model, test):
    """Images and labels that the model classifies correctly at every temperature."""
    batches = test
    for model.temperature in args.temperatures:
        batches = evaluate.classified_correctly({"vit": model}, batches)
    if not batches:
        raise SystemExit("No test image is classified correctly at all temperatures; train longer.")
    return tuple(np.concatenate(arrays)[: args.examples] for arrays in zip(*batches, strict=True))


def patch_attacks(args, shape):
    """The attacks that are made anew at every temperature, by name."""
    grid = PatchGrid(shape, args.patch_size)
    return {
        "patch": attacks.PatchAttack(args.patch_size, positions=grid, steps=args.steps, seed=args.seed),
        "patch_fool": attacks.PatchFool(steps=args.patch_fool_steps, seed=args.seed),
    }


def main():
    parser = patch_models.options(__doc__, out="smoothed_attention")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--patch-fool-steps", type=int, default=250, help="of Patch-Fool")
    args = parser.parse_args()
    train, test = patch_models.streams(args)
    model = next(iter(patch_models.models(args, train, test).values()))
    x, y = correct_at_all(args, model, test)
    perturbations = patch_attacks(args, x.shape[1:])
    model.temperature = min(args.temperatures, key=lambda temperature: abs(temperature - 1))
    transferred = patch_models.attacked(model, perturbations["patch_fool"], x, y, args.batch_size)
    rows, started = [], time.perf_counter()
    for temperature in args.temperatures:
        model.temperature = temperature
        images = {
            name: patch_models.attacked(model, attack, x, y, args.batch_size) for name, attack in perturbations.items()
        }
        fooled = {
            name: taps.predictions(model, perturbed) != y
            for name, perturbed in {**images, "transferred": transferred}.items()
        }
        fooled["any"] = np.any(list(fooled.values()), axis=0)
        accuracy = patch_models.clean({"vit": model}, test)["test_accuracy"][0]
        rates = {name: float(each.mean()) for name, each in fooled.items()}
        rows.append({"temperature": temperature, "test_accuracy": accuracy, "examples": len(x), **rates})
        print(rows[-1], flush=True)
    table = evaluate.Table(rows)
    print(table)
    table.to_csv(args.out / "temperature.csv")
    seconds = round(time.perf_counter() - started)
    table.to_json(args.out / "temperature.json", options=patch_models.settings(args), seconds=seconds)


if __name__ == "__main__":
    main()
