"""Adversarial training of a capsule network: on its capsules (AT), and on capsules and votes (AT + Votes; Table 6.2).

    python examples/adversarial_training.py                                  # digits: no download, some minutes
    python examples/adversarial_training.py --dataset mnist --epochs 5 --epsilon 0.3

Trains the same network three times, by the same recipe: on clean images, on examples of PGD with 8 steps on its
capsules, and on such on capsules and votes; then attacks each by PGD with 40 steps. Interrupted, the same command goes
on after the last finished epoch. Prints Table 6.2 and writes OUT/training.csv, .json and OUT/*.keras.
"""

import trained_capsnet  # first, because it sets up TensorFlow

# isort: split
from keras_capsvit import attacks, data, evaluate, load_model, training


def capsules_and_votes(model):
    """The sum of the two losses."""
    return attacks.combined(attacks.capsules(model), attacks.votes(model))


TRAININGS = {"natural": None, "AT": attacks.capsules, "AT + votes": capsules_and_votes}


def trained(name, args, train, test):
    """The network trained by one of TRAININGS, or read from OUT if it is there."""
    folder = args.out / name.replace(" ", "")
    if (folder / "model.keras").exists():
        return load_model(folder / "model.keras")
    model = trained_capsnet.new(args, train.element_spec[0].shape[1:])
    if name == "natural":
        training.fit(model, train, test, trained_capsnet.recipe(args), work=folder)
    else:
        pgd = attacks.PGD(args.epsilon, steps=8)
        how = {"objective": TRAININGS[name], "work": folder}
        training.adversarial_fit(model, train, test, trained_capsnet.recipe(args), pgd, **how)
    model.save(folder / "model.keras")
    return model


def main():
    args = trained_capsnet.options(__doc__, epochs=10, examples=256, out="adversarial_training").parse_args()
    train, test = trained_capsnet.streams(args)
    x, y = data.take(test, args.examples)
    batches = trained_capsnet.batches(x, y)
    pgd = attacks.PGD(args.epsilon, step_size=args.epsilon / 10, steps=40)
    rows = []
    for name in TRAININGS:
        print(f"{name}:")
        model = trained(name, args, train, test)
        accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
        robust = {
            goal: evaluate.robust_accuracy(model, pgd, batches, objective=getattr(attacks, goal))
            for goal in ("capsules", "votes")
        }
        rows.append({"training": name, "test_accuracy": accuracy, **robust})
    table = evaluate.Table(rows)
    print(f"Accuracy on the test images, and on {len(x)} of them under PGD on the capsules or the votes:\n{table}")
    table.to_csv(args.out / "training.csv")
    options = trained_capsnet.settings(args)
    table.to_json(args.out / "training.json", options=options, examples=len(x))


if __name__ == "__main__":
    main()
