"""Vote-Attack: attack the votes of a capsule network rather than its class capsules (thesis chapter 6).

    python examples/vote_attack.py                                  # digits: no download, a few minutes
    python examples/vote_attack.py --dataset mnist --epochs 5 --epsilon 0.3
    python examples/vote_attack.py --dataset mnist --model saved_models/vote_attack/model.keras --epsilon 0.1
    python examples/vote_attack.py --dataset mnist --as-published ...   # the thesis's settings, judged as it judges

Attacks have Foolbox settings, and an image counts that fools the model at any look; as published, BIM, MIM and PGD take
steps of .01, Carlini and Wagner ask for a confidence of .5, and what counts is the last step.
Interrupted, with --model OUT/model.keras it goes on after the last batch that was measured with it.
Writes OUT/model.keras, OUT/robustness.csv and .json (the table that it prints), OUT/adversarial.png (clean images, what
the two attacks made of them, and the change) and OUT/votes.png (thesis Fig. 6.2).
"""

import dataclasses

import trained_capsnet  # first, because it sets up TensorFlow

# isort: split
from keras_capsvit import attacks, data, evaluate, plot, taps

NAMES = ("FGSM", "BIM", "MIM", "PGD", "DeepFool L2", "C&W L2")
OBJECTIVES = {"capsules": attacks.capsules, "votes": attacks.votes}


def the_attacks(args):
    """Those of Table 6.1, with fewer steps of Carlini and Wagner's."""
    settings = "vote_attack" if args.as_published else "foolbox"
    table = {name.upper(): attacks.preset(f"{settings}_{name}", args.epsilon) for name in ("fgsm", "bim", "mim", "pgd")}
    deepfool = attacks.preset("foolbox_deepfool_l2", args.epsilon_l2)
    table["DeepFool L2"] = dataclasses.replace(deepfool, overshoot=args.overshoot)
    c_and_w = attacks.preset(f"{settings}_carlini_wagner_l2", args.epsilon_l2)
    table["C&W L2"] = dataclasses.replace(c_and_w, steps=args.cw_steps)
    return {name: table[name] for name in args.attacks}


def vote_statistics(model, x, y):
    """What thesis Fig. 6.2 shows, of some images."""
    votes, capsules, coupling = taps.tap(model, ["votes", "capsules", "coupling"])(x)
    return evaluate.vote_statistics(votes, capsules, coupling, y)


def main():
    parser = trained_capsnet.options(__doc__, epochs=10, examples=256, out="vote_attack")
    parser.add_argument("--attacks", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--epsilon-l2", type=float, default=1.0, help="radius of the L2 ball")
    parser.add_argument("--overshoot", type=float, default=0.02, help="of DeepFool, share beyond the border")
    parser.add_argument("--as-published", action="store_true", help="settings and judgement of the thesis")
    parser.add_argument("--cw-steps", type=int, default=200, help="of each search of Carlini and Wagner's attack")
    args = parser.parse_args()
    train, test = trained_capsnet.streams(args)
    model = trained_capsnet.trained(args, train, test)
    args.out.mkdir(parents=True, exist_ok=True)
    x, y = data.take(test, args.examples)
    batches = trained_capsnet.batches(x, y)

    how = {"early": not args.as_published, "norms": "common" if args.as_published else "own"}
    # Once beforehand, so that times are of attacks alone, not of compiling them.
    evaluate.attack_table(model, the_attacks(args), batches[:1], objectives=OBJECTIVES, **how)
    work = trained_capsnet.work(args, "table"), trained_capsnet.work(args, "orders")
    table = evaluate.attack_table(model, the_attacks(args), batches, objectives=OBJECTIVES, work=work[0], **how)
    pgd = attacks.preset(f"{'vote_attack' if args.as_published else 'foolbox'}_pgd", args.epsilon)
    orders = {order: lambda model, order=order: attacks.votes(model, order) for order in attacks.ORDERS[1:]}
    further = evaluate.attack_table(model, {"PGD": pgd}, batches, objectives=orders, work=work[1], **how)
    table = evaluate.Table(table.rows + further.rows)
    columns = ("objective", "attack", "judged", "robust_accuracy", "seconds_per_example", "l1", "l2", "linf")
    print(evaluate.Table([{name: row[name] for name in columns} for row in table.rows]))
    table.to_csv(args.out / "robustness.csv")
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    options = trained_capsnet.settings(args)
    table.to_json(args.out / "robustness.json", options=options, examples=len(x), test_accuracy=accuracy)

    shown, names = slice(8), data.info(args.dataset).class_names
    adversarial = {name: pgd(objective(model), x, y) for name, objective in OBJECTIVES.items()}
    scores = {name: model.predict(batch[shown], verbose=0) for name, batch in {"clean": x, **adversarial}.items()}
    titles = {name: plot.titles_of(batch, names) for name, batch in scores.items()}
    figure = plot.adversarial(x[shown], {name: batch[shown] for name, batch in adversarial.items()}, titles=titles)
    figure.savefig(args.out / "adversarial.png", dpi=150)
    few = slice(128)
    statistics = {"clean": vote_statistics(model, x[few], y[few])}
    statistics |= {f"PGD on {name}": vote_statistics(model, batch[few], y[few]) for name, batch in adversarial.items()}
    plot.vote_histograms(statistics).savefig(args.out / "votes.png", dpi=150)
    print(f"Test accuracy {accuracy:.2%}. In {args.out}: model.keras, robustness.csv, adversarial.png, votes.png")


if __name__ == "__main__":
    main()
