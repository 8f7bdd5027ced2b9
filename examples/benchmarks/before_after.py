"""Is the package slower than it was? Attacks and explanations of this tree and of an earlier commit, in turns.

    python examples/benchmarks/before_after.py 2d957e1
    python examples/benchmarks/before_after.py HEAD~5 --rounds 5 --only saliency lrp --processor

Both run at the same time, each in a process of its own that waits while the other one works; the earlier commit is
checked out into a temporary folder. Models are small and not trained; medians, and the median ratio of the pairs.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from timing import add_clock, noise

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = pathlib.Path(__file__).parent.parent.parent


def runs(batch):
    """Functions to time, by name; imported late, because the parent process needs nothing of it."""
    import keras

    from keras_capsvit import ConvNetAvg, GraCapsNet, attacks, explain

    keras.utils.set_random_seed(0)
    convnet = ConvNetAvg((32, 32, 3), 10, kernel_size=3, filters=64)
    capsnet = GraCapsNet((28, 28, 1), 10)
    x, x1 = noise(batch, 32, 32, 3), noise(batch, 28, 28, 1)
    y = noise(batch).argsort() % 10
    pgd = attacks.PGD(0.03, step_size=0.003, steps=40)
    saliency, lrp = explain.Saliency(convnet), explain.LRP(convnet, "z_plus")
    attention = explain.GraphAttention(capsnet)
    return {
        "pgd": lambda: pgd(convnet, x, y),
        "saliency": lambda: [saliency(x, 3) for _ in range(10)],
        "lrp": lambda: [lrp(x, 3) for _ in range(5)],
        "graph_attention": lambda: [attention(x1, 3) for _ in range(3)],
    }


def serve(args):
    """Time what the parent names, line by line."""
    functions = runs(args.batch_size)
    for line in sys.stdin:
        started = args.clock()
        functions[line.strip()]()
        print(args.clock() - started, flush=True)


def start(folder, args):
    command = [sys.executable, __file__, "--serve", "--batch-size", str(args.batch_size)]
    command += ["--processor"] if args.clock.__name__ == "process_time" else []
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process, name):
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"A process ended at {name!r}; see its error above.")
    return float(answer)


def compare(args, folder):
    """Print a row per function."""
    before, after = start(folder, args), start(ROOT, args)
    try:
        print(f"{'':18} {'before':>8} {'after':>8}  after / before")
        for name in args.only:
            pairs = []
            for turn in range(args.rounds + 1):
                order = (before, after) if turn % 2 else (after, before)
                seconds = {id(process): ask(process, name) for process in order}
                if turn:  # the first one traces
                    pairs.append((seconds[id(before)], seconds[id(after)]))
            old, new = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(new / old for old, new in pairs)
            print(f"{name:18} {old:8.3f} {new:8.3f}  {ratio:.3f}", flush=True)
    finally:
        before.kill()
        after.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="the earlier commit")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch-size", type=int, default=32)
    names = ("pgd", "saliency", "lrp", "graph_attention")
    parser.add_argument("--only", nargs="+", default=list(names), choices=names)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_clock(parser)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    if args.commit is None:
        parser.error("name the earlier commit")
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", args.commit, "keras_capsvit"], cwd=ROOT, capture_output=True)
        if archive.returncode:
            parser.error(archive.stderr.decode().strip())
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        compare(args, folder)


if __name__ == "__main__":
    main()
