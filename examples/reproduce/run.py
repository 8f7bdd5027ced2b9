"""The thesis, re-run: every table and figure a command.

    python examples/reproduce/run.py --list
    python examples/reproduce/run.py --profile smoke                                   # every path, on digits
    python examples/reproduce/run.py --only 3.T1 3.X --profile cpu --data-dir FOLDER   # honest, scaled down
    python examples/reproduce/run.py --verify 3.T1 --profile cpu --data-dir FOLDER     # again, from nothing
    python examples/reproduce/run.py --page                                            # REPRODUCTION.md and .html

Rows are described in chapters/*.toml. Interrupted, the same command goes on: with the next seed, the next step of a
row, the next epoch of a training. Models are shared by rows. Rows that lack data, weights or a package are skipped, and
what is expected where is printed. Profiles: smoke, seconds for each row; cpu, scaled down as the row says; gpu, what an
accelerator does in minutes; full, the thesis's setting.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import rows


def parse(arguments=None):
    """Options of the command line."""
    folder = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the rows, and what they need")
    parser.add_argument("--only", type=names, metavar="ROW[,ROW...]", nargs="+", help="such as 4.T1,5.T1")
    parser.add_argument("--chapter", type=int, nargs="+")
    parser.add_argument("--profile", choices=rows.PROFILES, default="smoke")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the row")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--weights", type=pathlib.Path, help="folder of weights and pictures")
    parser.add_argument("--work", type=pathlib.Path, default="saved_models/reproduce", help="keeps models and steps")
    parser.add_argument("--results", type=pathlib.Path, default=folder / "results" / "rows", help="of records")
    parser.add_argument(
        "--dtype",
        choices=("float32", "mixed_bfloat16", "auto"),
        default="float32",
        help="of trainings and of long measurements",
    )
    parser.add_argument("--minutes", type=float, help="begin no seed that would end later; for a machine on loan")
    parser.add_argument("--again", action="store_true", help="also rows that have a record of this setting")
    parser.add_argument("--verify", metavar="ROW", help="run a row again from nothing and compare with its records")
    parser.add_argument("--page", action="store_true", help="write REPRODUCTION.md and REPRODUCTION.html, run nothing")
    args = parser.parse_args(arguments)
    args.only = [name for part in args.only or () for name in part] or None
    return args


def names(text):
    return text.split(",")


def main(arguments=None):
    args = parse(arguments)
    try:
        selected = rows.select([args.verify] if args.verify else args.only, args.chapter)
    except ValueError as error:
        sys.exit(str(error))
    if args.list:
        return show(selected)
    if args.page:
        import page

        return page.write(args.results)
    import execution  # which needs TensorFlow

    if args.verify:
        return execution.verify(selected[0], args)
    started = time.perf_counter()
    args.until = None if args.minutes is None else started + 60 * args.minutes
    outcomes = [outcome for row in selected for outcome in execution.run_row(row, args)]
    failed = [outcome for outcome in outcomes if outcome.startswith("failed")]
    kinds = {
        kind: sum(outcome.startswith(kind) for outcome in outcomes)
        for kind in ("measured", "kept", "skipped", "failed")
    }
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(f"{told}; {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


def show(selected):
    """Print the rows."""
    for row in selected:
        minutes = {name: row.minutes(name) for name in rows.PROFILES if row.minutes(name) is not None}
        told = ", ".join(f"{name} {each:g} min" for name, each in minutes.items())
        needs = ", ".join(row.needs("cpu")) or "nothing"
        print(f"{row.name:8} {row.table['title']}\n         needs {needs}; {told or 'minutes not known'} a seed")
    print(f"{len(selected)} rows")


if __name__ == "__main__":
    sys.exit(main())
