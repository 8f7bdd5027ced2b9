"""Damaged files of every kind that is read: each is read right, or refused in our words.

    python tests/damage.py --files 2000

Makes whole files, damages copies of them, and reads these in a process of its own, which is watched: it may neither
end, nor hang, nor run code, nor take more memory than --megabytes for a file. Prints a table of kinds and damages, the
undocumented ones one by one, and the most memory; the exit status is 1 if there are any.

``right``: the values are those of the whole file. ``alike``: other finite values of the right shape, from a kind
without checksums, of which bits or bytes were changed: nobody could tell. ``documented``: a ValueError or
FileNotFoundError that names the file, and nothing was changed. All else is undocumented.
"""

import argparse
import collections
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

SECONDS = 60  # for a file
BAD = ("UNDOCUMENTED", "WRONG", "CODE RAN", "MEMORY", "HANG", "ENDED")


def trials(files, seed, kinds):
    """Kind, damage and seed of each file: all pairs in turn, in a drawn order, each as often as any other."""
    from damaged.kinds import KINDS

    pairs = [(kind, damage) for kind in kinds or KINDS for damage in KINDS[kind].damages]
    random.Random(seed).shuffle(pairs)
    return [(*pairs[number % len(pairs)], seed + number) for number in range(files)]


def watched(planned, megabytes):
    """Outcomes of trials, each in the process of a worker that is started anew when it ends or hangs."""
    context, worker, link = multiprocessing.get_context("spawn"), None, None
    try:
        for kind, damage, seed in planned:
            if worker is None:
                link, worker_end = context.Pipe()
                worker = context.Process(target=_work, args=(worker_end,), daemon=True)
                worker.start()
                worker_end.close()
                assert link.recv() == "ready"
            link.send((kind, damage, seed))
            try:
                if link.poll(SECONDS):
                    outcome, text, memory = link.recv()
                    outcome = "MEMORY" if memory > megabytes and outcome not in BAD else outcome
                else:
                    outcome, text, memory = "HANG", f"more than {SECONDS} s", 0.0
            except EOFError:
                worker.join()
                outcome, text, memory = "ENDED", f"exit status {worker.exitcode}", 0.0
            if outcome in ("HANG", "ENDED"):
                worker.kill()
                worker.join()
                worker = None
            yield kind, damage, seed, outcome, text, memory
    finally:
        if worker is not None:
            worker.kill()
            worker.join()


def _work(link):
    from damaged.trial import Trials

    # What is read may show progress bars.
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        trials = Trials(folder)
        link.send("ready")
        while True:
            link.send(trials.run(*link.recv()))


def table(results):
    """Lines of the table: a row for each kind and damage, a column for each outcome, and the most megabytes."""
    counts, most = collections.defaultdict(collections.Counter), collections.Counter()
    for kind, damage, _, outcome, _, memory in results:
        counts[kind, damage][outcome] += 1
        most[kind, damage] = max(most[kind, damage], memory)
    columns = ["right", "alike", "documented", *(bad for bad in BAD if any(row[bad] for row in counts.values()))]
    lines = [f"{'kind':14}{'damage':22}" + "".join(f"{column:>13}" for column in (*columns, "MB"))]
    for (kind, damage), row in sorted(counts.items()):
        cells = "".join(f"{row[column] or '':>13}" for column in columns)
        lines.append(f"{kind:14}{damage:22}{cells}{most[kind, damage]:13.0f}")
    total = collections.Counter(outcome for *_, outcome, _, _ in results)
    cells = "".join(f"{total[column] or '':>13}" for column in columns)
    return [*lines, f"{'all':14}{len(results):<22}{cells}{max(most.values()):13.0f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="all if not given")
    parser.add_argument("--megabytes", type=float, default=256, help="most memory that reading a file may take")
    args = parser.parse_args()
    started, results, errors = time.monotonic(), [], 0
    for result in watched(trials(args.files, args.seed, args.kinds), args.megabytes):
        results.append(result)
        kind, damage, seed, outcome, text, memory = result
        if outcome in BAD:
            errors += 1
            print(f"{outcome}: {kind}, {damage}, seed {seed}, {memory:.0f} MB: {text}", flush=True)
        if len(results) % 100 == 0:
            print(f"{len(results)} files, {time.monotonic() - started:.0f} s, {errors} not documented", flush=True)
    print("\n".join(table(results)))
    print(f"{len(results)} files in {time.monotonic() - started:.0f} s, {errors} not documented.")
    sys.exit(errors > 0)


if __name__ == "__main__":
    main()
