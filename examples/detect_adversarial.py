"""Detect adversarial images by their reconstruction, and deceive the detection (thesis 6.5.3, Tables 6.4 and 6.11).

    python examples/detect_adversarial.py                                  # digits: no download, a few minutes
    python examples/detect_adversarial.py --dataset mnist --model saved_models/vote_attack/model.keras --epsilon 0.3
    python examples/detect_adversarial.py --dataset fashion_mnist --network cnn_cr --beta 0.9 --as-published

The last is a row of Table 6.4: a ConvNet with class-conditional reconstruction, attacked with the thesis's settings.

An image is flagged if the winning capsule's reconstruction differs from it by more than the 95th percentile of benign
images, which are test images that are not attacked here. Prints, for detection-agnostic and detection-aware attacks on
the capsules and on the votes, the share of images that fool the model and the share that do so without being flagged.
Interrupted, with --model OUT/model.keras it goes on after the last batch that was measured with it.
Writes OUT/detection.csv and .json, and OUT/detection.png: images of the detection-aware attacks, and what the winning
capsule draws of each.
"""

import dataclasses

import trained_capsnet  # first, because it sets up TensorFlow

# isort: split
import keras
import numpy as np

from keras_capsvit import attacks, data, evaluate, plot

CAPSULES = {"capsules": attacks.capsules, "votes": attacks.votes}
LOGITS = {"logits": attacks.logits}


def the_attacks(args, error):
    """Of either kind, by the name of the columns of Table 6.4. Aware ones take two steps where the others take one."""
    settings = "vote_attack" if args.as_published else "foolbox"
    agnostic = {name.upper(): attacks.preset(f"{settings}_{name}", args.epsilon) for name in ("fgsm", "bim", "pgd")}
    aware = {name: attacks.DetectionAware.of(attack, error=error, beta=args.beta) for name, attack in agnostic.items()}
    return {"agnostic": agnostic, "aware": aware}


def main():
    parser = trained_capsnet.options(__doc__, epochs=10, examples=180, out="detect_adversarial")
    parser.add_argument("--beta", type=float, default=0.5, help="share of a step that goes into fooling (Eq. 6.5)")
    parser.add_argument("--as-published", action="store_true", help="settings of the thesis")
    args = parser.parse_args()
    objectives = CAPSULES if args.network == "capsnet" else LOGITS
    train, test = trained_capsnet.streams(args)
    model = trained_capsnet.trained(args, train, test)
    args.out.mkdir(parents=True, exist_ok=True)
    x, y = data.take(test, 2 * args.examples)
    x, y, benign = x[: args.examples], y[: args.examples], (x[args.examples :], y[args.examples :])
    batches = trained_capsnet.batches(x, y)
    error = attacks.reconstruction_error(model)
    threshold = evaluate.detection_threshold(error, benign)

    rows = []
    for kind, named in the_attacks(args, error).items():
        for target, objective in objectives.items():
            for name, attack in named.items():
                how = {"error": error, "threshold": threshold, "objective": objective}
                how["work"] = trained_capsnet.work(args, kind, target, name)
                detection = evaluate.detection(model, attack, batches, **how)
                rows.append({"detection": kind, "objective": target, "attack": name, **dataclasses.asdict(detection)})
    table = evaluate.Table(rows)
    print(table)
    table.to_csv(args.out / "detection.csv")
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    options = trained_capsnet.settings(args)
    table.to_json(args.out / "detection.json", options=options, benign=len(benign[0]), test_accuracy=accuracy)

    aware = the_attacks(args, error)["aware"]["PGD"]
    shown, names = slice(8), data.info(args.dataset).class_names
    images = {"clean": x[shown]}
    images |= {f"aware, {name}": aware(objective(model), x[shown], y[shown]) for name, objective in objectives.items()}
    rows, titles = {}, {}
    for name, batch in images.items():
        errors = keras.ops.convert_to_numpy(error(batch))
        flags = ["flagged" if value > threshold else "" for value in errors]
        classes = plot.titles_of(model.predict(batch, verbose=0), names)
        rows[name], titles[name] = batch, [f"{a}\n{b}" for a, b in zip(classes, flags, strict=True)]
        rows[f"{name}: decoded"] = np.asarray(model.reconstruct(batch))
    plot.rows(rows, titles=titles).savefig(args.out / "detection.png", dpi=150)
    print(f"Test accuracy {accuracy:.2%}, flagged above {threshold:.2f}. In {args.out}: detection.csv, detection.png")


if __name__ == "__main__":
    main()
