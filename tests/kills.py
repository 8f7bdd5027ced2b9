"""Kills work again and again, resumes it, and compares its end with that of the same work without a kill, bit by bit.

    python tests/kills.py --kills 100                    # all jobs, some of an hour on one core
    python tests/kills.py --kills 10 --jobs "fit vit"

A job does its work in a folder and leaves ``end.npz`` and perhaps tables there. It is killed by SIGKILL: at a random
moment, or at a random one of the system calls by which it opens, renames and removes files in its folder. Then the same
job is started again in the same folder, until it comes to its end. Prints a row per job, and exits with 1 if an end
differs. Moments are drawn from ``--seed``, but where they hit depends on the machine.

To enrol other work, write a function of its folder, of which everything random is seeded, and add it to ``JOBS``.
"""

import argparse
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback

# One thread before the processes of the jobs are forked, so that a fork is safe.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_capsvit import GraCapsNet, attacks, data, evaluate, models, serving, training

SHAPE, CLASSES, EPOCHS = (8, 8, 1), 3, 4


def gracapsnet():
    """A graph capsule network with a decoder."""
    return GraCapsNet(
        SHAPE,
        CLASSES,
        num_heads=2,
        primary_dim=4,
        capsule_dim=4,
        filters=4,
        reconstruction="conditional",
        reconstruction_units=(8,),
    )


def vit():
    """A vision transformer with dropout."""
    size = {"width": 8, "depth": 1, "num_heads": 2, "mlp_units": 16}
    return models.VisionTransformer("Ti/4", input_shape=SHAPE, num_classes=CLASSES, dropout=0.2, drop_path=0.2, **size)


def streams():
    """A stream that is shuffled and moved, and one to judge by."""
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(40, *SHAPE)).astype("float32"), np.arange(40) % CLASSES
    x[np.arange(40), y, :, 0] = 1.0  # a row tells the class
    train = data.augment(data.from_arrays(x, y, batch_size=8, shuffle=True, seed=1), shift=1, seed=2)
    return train, data.from_arrays(x[:16], y[:16], batch_size=8)


def recipe(model, **settings):
    """A short training."""
    loss = "margin" if isinstance(model, GraCapsNet) else "cross_entropy"
    return training.Recipe(**{"epochs": EPOCHS, "learning_rate": 0.01, "schedule": "cosine", "loss": loss, **settings})


def fit(build, **settings):
    """Job: ``training.fit``."""

    def job(work):
        model = build()
        training.fit(model, *streams(), recipe(model, **settings), work=work, verbose=0)
        end(work, *model.get_weights(), *(np.asarray(v) for v in model.optimizer.variables))

    return job


def adversarial_fit(build, attack):
    """Job: ``training.adversarial_fit``."""

    def job(work):
        model = build()
        training.adversarial_fit(model, *streams(), recipe(model), attack, work=work, verbose=0)
        end(work, *model.get_weights(), *(np.asarray(v) for v in model.optimizer.variables))

    return job


def export(build):
    """Job: ``serving.export``, whose versions are always whole, whatever was killed before."""

    def job(work):
        model, path = build(), work / "served"
        for version in path.glob("[0-9]*"):
            serving.load(version.parent, version=int(version.name))
            shutil.rmtree(version)  # the next one is the first again
        version = serving.export(model, path)
        names = sorted(str(file.relative_to(version)) for file in version.rglob("*") if file.is_file())
        x = np.random.default_rng(1).uniform(size=(4, *SHAPE)).astype("float32")
        end(work, np.asarray(serving.load(path)(x)), np.array(names))

    return job


def robustness(build):
    """Job: ``evaluate.robustness``."""

    def job(work):
        x, y = data.take(streams()[1], 16)
        result = evaluate.robustness(build(), attacks.PGD(0.1, steps=5), (x, y), batch_size=4, work=work / "robustness")
        end(work, result.accuracy, result.robust_accuracy, *result.norms.values())

    return job


def auto_attack(build):
    """Job: ``evaluate.auto_attack``, by an attack of each kind."""

    def job(work):
        model, (x, _) = build(), data.take(streams()[1], 16)
        parts = {"apgd": attacks.APGD(1, steps=3), "fab": attacks.FAB(steps=3), "square": attacks.Square(1, queries=20)}
        attack = attacks.AutoAttack(0.02, version="custom", attacks=parts)
        y = np.asarray(model(x)).argmax(axis=1)
        result = evaluate.auto_attack(model, attack, (x, y), batch_size=4, work=work / "auto_attack")
        end(work, result.robust_accuracy, result.broken_by, result.queries, *result.after.values())

    return job


JOBS = {
    "fit gracapsnet": fit(gracapsnet),
    "fit vit": fit(vit),
    "fit vit, stopped": fit(vit, epochs=20, schedule="constant", stop_at=0.5),
    "adversarial_fit gracapsnet": adversarial_fit(gracapsnet, attacks.PGD(0.1, steps=2)),
    "adversarial_fit vit": adversarial_fit(vit, attacks.PGD(0.1, steps=2, norm="l2")),
    "adversarial_fit vit, DeepFool": adversarial_fit(vit, attacks.DeepFool(steps=2)),
    "export gracapsnet": export(gracapsnet),
    "robustness vit": robustness(vit),
    "auto_attack vit": auto_attack(vit),
}


def end(work, *arrays):
    """Write what a job comes to."""
    np.savez(work / "end.part.npz", *arrays)
    os.replace(work / "end.part.npz", work / "end.npz")


def start(name, work, call=None):
    """Start a job in a process of its own; with ``call``, it kills itself before that system call on its files."""
    work.mkdir(parents=True, exist_ok=True)
    if threads() - {"jemalloc_bg_thd"} != {"python"}:
        raise SystemExit(f"Expected a process of one thread, which can be forked; there are {threads()}.")
    number = os.fork()
    if number:
        return number
    try:
        os.dup2(os.open(work.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        if call is not None:
            sys.addaudithook(killer(str(work), call))
        training.set_deterministic(7)
        JOBS[name](work)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def threads():
    """Names of this process's threads; that of the memory allocator looks after forks itself."""
    _, *tasks = sorted(pathlib.Path("/proc/self/task").iterdir(), key=lambda path: int(path.name))
    return {"python", *((task / "comm").read_text().strip() for task in tasks)}


def killer(folder, call):
    """A hook that kills this process before the ``call``-th system call that opens or changes files in a folder."""

    def hook(event, arguments):
        nonlocal call
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(arguments[0]).startswith(folder):
            call -= 1
            if call < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def wait(number, seconds=None):
    """Wait for a process, and kill it after some seconds; returns its signal or status, as ``subprocess`` does."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        finished, status = os.waitpid(number, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            os.kill(number, signal.SIGKILL)
            until = None
        time.sleep(0.005)


def content(work):
    """What a job came to: arrays and tables."""
    with np.load(work / "end.npz") as arrays:
        result = {name: arrays[name].tobytes() for name in arrays.files}
    return result | {path.name: path.read_bytes() for path in work.glob("*.csv")}


def trial(name, folder, random, seconds, expected):
    """Kill a job some times, resume it, and compare its end.

    Args:
        name: str, one of ``JOBS``.
        folder: path of an empty folder.
        random: numpy.random.Generator.
        seconds: float, how long the job takes without a kill.
        expected: what it comes to then.

    Returns:
        int, number of kills; and bool, whether the end is the same.
    """
    kills = 0
    while True:
        if random.random() < 0.5:
            code = wait(start(name, folder / "work", call=int(random.integers(40))))
        else:
            code = wait(start(name, folder / "work"), seconds=random.uniform(0.3, 1.0) * seconds)
        if code == -signal.SIGKILL:
            kills += 1
        elif code:
            print((folder / "log").read_text()[-3000:], file=sys.stderr)
            return kills, False
        if code == 0 or kills >= 4:
            break
    if code and wait(start(name, folder / "work")):
        print((folder / "log").read_text()[-3000:], file=sys.stderr)
        return kills, False
    came = content(folder / "work")
    differing = sorted(part for part in came.keys() | expected if came.get(part) != expected.get(part))
    if differing:
        print(f"{name}: after {kills} kills {differing} differ", file=sys.stderr, flush=True)
        for part in differing:
            if part.endswith(".csv"):
                print(came.get(part), expected.get(part), sep="\n", file=sys.stderr, flush=True)
        print((folder / "log").read_text()[-3000:], file=sys.stderr, flush=True)
    return kills, not differing


def run(names, kills, seed, folder):
    """Kill each job until all kills are done; returns how many trials ended otherwise than without a kill."""
    random = np.random.default_rng(seed)
    wrong = total = 0
    for k, name in enumerate(names):
        begun = time.monotonic()
        if wait(start(name, folder / f"{k}" / "work")):
            raise SystemExit((folder / f"{k}" / "log").read_text())
        seconds, expected = time.monotonic() - begun, content(folder / f"{k}" / "work")
        done = trials = differing = 0
        while done < (kills * (k + 1)) // len(names) - total:
            with tempfile.TemporaryDirectory() as place:
                count, same = trial(name, pathlib.Path(place), random, seconds, expected)
            trials, done, differing = trials + (count > 0), done + count, differing + (not same)
        total, wrong = total + done, wrong + differing
        print(f"{name:32} {seconds:6.1f} s {done:4} kills {trials:4} trials {differing:4} ended otherwise", flush=True)
    print(f"{total} kills, {wrong} trials ended otherwise")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all jobs together")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB", help=f"of {list(JOBS)}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run(args.jobs, args.kills, args.seed, pathlib.Path(folder)) > 0)


if __name__ == "__main__":
    main()
