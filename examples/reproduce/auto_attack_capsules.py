"""Is the robustness of capsule networks obfuscated? AutoAttack's attacks on class capsules and on votes (chapter 6).

    python examples/vote_attack.py --dataset mnist --epochs 5                        # writes the model
    python examples/reproduce/auto_attack_capsules.py --model saved_models/vote_attack/model.keras --dataset mnist

Attacked are the log lengths of class capsules, and the votes without the routing; the model judges. PGD is the preset
of chapter 6 with its last step; APGD, FAB and Square are those of AutoAttack, but that on the votes they go on for the
highest loss after they fool them, because another model judges. A row for each, for all together on either, and for
all. Writes results/auto_attack_capsules_DATASET.json. Interrupted, it goes on after the last batch.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from provenance import write_json

from keras_capsvit import attacks, data, evaluate, load_model
from keras_capsvit.evaluate.progress import place

OBJECTIVES = {"capsules": attacks.capsules, "votes": attacks.votes}


def the_attacks(args):
    """By name; the table gives each of them every radius in turn."""
    return {
        "PGD": attacks.preset("vote_attack_pgd", args.epsilons[0]),
        "APGD-CE": attacks.APGD(args.epsilons[0], steps=args.steps),
        "APGD-T": attacks.APGD(args.epsilons[0], steps=args.steps, loss="dlr_targeted", targets=args.targets),
        "FAB-T": attacks.FAB(args.epsilons[0], steps=args.steps, targets=args.targets),
        "Square": attacks.Square(args.epsilons[0], queries=args.queries),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a .keras file of a capsule network")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.1, 0.2], help="radii of the L-infinity ball")
    parser.add_argument("--examples", type=int, default=200, help="test images")
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB")
    parser.add_argument("--targets", type=int, default=9, help="classes that the targeted attacks try")
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--work", type=pathlib.Path, default="saved_models/auto_attack", help="keeps measurements")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    args = parser.parse_args()
    out = args.out or pathlib.Path(__file__).parent / "results" / f"auto_attack_capsules_{args.dataset}.json"

    model = load_model(args.model)
    _, test = data.load(args.dataset, batch_size=args.batch_size, data_dir=args.data_dir)
    x, y = data.take(test, args.examples)
    table = evaluate.attack_table(
        model,
        the_attacks(args),
        (x, y),
        objectives=OBJECTIVES,
        epsilons=args.epsilons,
        union=True,
        early=False,
        batch_size=args.batch_size,
        work=place(args.work, args.dataset),
    )
    columns = ("epsilon", "objective", "attack", "robust_accuracy", "success_rate", "linf", "seconds_per_example")
    print(evaluate.Table([{name: row[name] for name in columns} for row in table.rows]))
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    args.model = pathlib.Path(args.model).name
    write_json(out, result=table.rows, options=args, test_accuracy=accuracy, model=model.get_config())
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()
