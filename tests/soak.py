"""Attacks, explainers, evaluations and served calls over changing settings: does memory grow, is anything retraced?

    python tests/soak.py --minutes 30

After a warm-up in which everything ran with all batch sizes, prints memory and retraces as it goes, and at the end the
slope of memory by a linear fit. Exit status 1 if that is more than three of its standard errors above 0, or anything
was retraced. Attacks and explainers enrol by themselves (see ``battery``).
"""

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import os
import pathlib
import resource
import sys
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import battery
import numpy as np

from keras_capsvit import attacks, autodiff, evaluate, explain, patches, serving
from keras_capsvit.checks import NoGradientError

BATCHES = (5, 6, 7, 8)
BLOCKS = 20  # of the fit, whose means tell how much of a slope is noise
CONFIDENCE = 3  # standard errors
SHAPE = (battery.SIZE, battery.SIZE, 3)


def main(arguments=None):
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python tests/soak.py", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        work = everything(folder)
        # From one batch size on to several, after which a function is general; and of fewer images, because some leave
        # early: TensorFlow keeps a table, of up to 1,024 rows, of the shapes that a function was called with.
        for count in (*BATCHES, *range(1, BATCHES[0]), *BATCHES):
            for call in work.values():
                call(np.random.default_rng(count), count)
            print(f"warm-up: all {len(work)} kinds of calls on {count} images", flush=True)
        start = traces = autodiff.traces()
        print(f"warm after {traces} traces, {memory():.1f} MiB", flush=True)
        samples = soaked(work, settings.minutes, np.random.default_rng(settings.seed))
    retraced = autodiff.traces() - start
    slope, error = fitted(*np.transpose(samples))
    print(f"memory {slope:+.4f} MiB a minute, standard error {error:.4f}; {retraced} retraces after the warm-up")
    grows = slope > CONFIDENCE * error
    print("memory grows" if grows else "memory is steady within noise")
    return int(grows or retraced > 0)


def soaked(work, minutes, random):
    """Pairs (minutes, MiB) after every round of all calls, in an order, of sizes and with settings drawn anew."""
    started = said = time.monotonic()
    samples, calls, before = [], 0, autodiff.traces()
    while time.monotonic() - started < 60 * minutes or len(samples) < 2 * BLOCKS:
        for name in random.permutation(list(work)):
            work[name](random, int(random.choice(BATCHES)))
            calls += 1
            if autodiff.traces() > before:
                print(f"retraced: {name}", flush=True)
                before = autodiff.traces()
        samples.append(((time.monotonic() - started) / 60, memory()))
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"{samples[-1][0]:6.1f} min  {calls:7} calls  {samples[-1][1]:8.1f} MiB", flush=True)
    return samples


def memory():
    """Resident memory in MiB, after everything that can go has gone."""
    gc.collect()
    with contextlib.suppress(OSError):  # of another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def fitted(minutes, mebibytes):
    """Slope of a linear fit and its standard error, of means of blocks, because neighbours are alike."""
    minutes, mebibytes = (np.array([part.mean() for part in np.array_split(v, BLOCKS)]) for v in (minutes, mebibytes))
    offset = minutes - minutes.mean()
    slope = (offset * mebibytes).sum() / (offset**2).sum()
    residuals = mebibytes - mebibytes.mean() - slope * offset
    return slope, np.sqrt((residuals**2).sum() / (BLOCKS - 2) / (offset**2).sum())


def everything(folder):
    """Dict from names to callables ``(random, count)``, each a call with settings drawn anew on ``count`` images."""
    model, capsules, transformer = (battery.KINDS["functional"].bring(f, f(SHAPE), folder) for f in FAMILIES)
    path = pathlib.Path(folder) / "served"
    serving.export(capsules, path, explainers={"saliency": explain.Saliency(capsules)}, input_range=(0, 1))
    served = serving.load(path)
    models = dict(zip(FAMILIES, (model, capsules, transformer), strict=True))
    several = [attacks_on(name, model) for name in battery.attack_classes()]
    several += [attacks_on(name, attacks.capsules(capsules), " on capsules") for name in ("PGD", "CarliniWagner")]
    several += [attacks_on(name, served, ", served") for name in ("MIM", "DeepFool")]
    several += [explained_by(name, models) for name in battery.explainers()]
    work = {name: call for each in several for name, call in each.items()}
    work |= {"settings of gradients": gradients_of(model), "universal patches": universal_on(model)}
    return work | evaluations(model) | calls_of(served)


FAMILIES = (battery.cnn, battery.capsules, battery.transformer)


def images(random, count):
    return random.uniform(0.05, 0.95, size=(count, *SHAPE)).astype("float32")


def labels(random, count):
    return random.integers(battery.CLASSES, size=count)


def attacks_on(name, objective, suffix=""):
    """Calls of an attack, whose numbers are drawn: untargeted, targeted, and such that no image moves.

    A function is traced when it is first needed, so what takes another way is a call of its own.
    """
    kind = getattr(attacks, name)
    fields = {field.name for field in dataclasses.fields(kind) if field.init}

    def attacked(random, count, targeted, **fixed):
        drawn = {"epsilon": float(random.uniform(0.02, 0.3)), "seed": int(random.integers(2**31))}
        drawn |= {setting: float(random.uniform(*ends)) for setting, ends in RANGES.items()}
        drawn = {setting: value for setting, value in drawn.items() if setting in fields}
        bounds = (float(random.uniform(-0.2, 0)), 1.0)
        attack = kind(**{**drawn, **battery.ATTACKS.get(name, {}), **fixed}, bounds=bounds)
        with contextlib.suppress(NoGradientError):
            attack(objective, images(random, count), labels(random, count), targeted)

    still = {"confidence": 1e6} if "confidence" in fields else {"epsilon": 0.0}
    return {
        f"{name}{suffix}": lambda random, count: attacked(random, count, False),
        f"{name}{suffix}, targeted": lambda random, count: attacked(random, count, True),
        f"{name}{suffix}, without a step": lambda random, count: attacked(random, count, False, **still),
    }


# Of what attacks of several kinds may be given.
RANGES = {"confidence": (0, 1), "overshoot": (0, 0.1), "beta": (0, 1), "relative_step": (0.1, 1)}


def universal_on(model):
    """Calls of universal patches, of two sizes each, because of one size a function knows that size only."""

    def call(random, count):
        smallest, seed = int(random.integers(1, 4)), int(random.integers(2**31))
        for size in (smallest, smallest + 1):
            several = int(random.integers(1, 3))
            attack = attacks.PatchAttack(size, universal=True, steps=2, num_patches=several, seed=seed)
            attack(model, images(random, count), labels(random, count))

    return call


def explained_by(name, models):
    """Calls of an explainer that is made once, of images that are drawn, for the predicted and for drawn classes."""
    family, make = battery.EXPLAINERS.get(name, (battery.cnn, lambda model, scale: getattr(explain, name)(model)))
    explainer = make(models[family], 1.0)
    return {
        name: lambda random, count: explainer(images(random, count)),
        f"{name} of classes": lambda random, count: explainer(images(random, count), labels(random, count)),
    }


def gradients_of(model):
    """Calls of explainers that are made anew, with settings that are drawn."""

    def call(random, count):
        steps, baseline = int(random.integers(1, 6)), float(random.uniform())
        paths = explain.IntegratedGradients(
            model, steps=steps, baseline=baseline, batch_size=int(random.integers(3, 9))
        )
        noise, seed = float(random.uniform(0, 0.3)), int(random.integers(2**31))
        explain.SmoothGrad(paths, int(random.integers(1, 4)), noise=noise, seed=seed)(images(random, count))

    return call


def evaluations(model):
    saliency, grid = explain.Saliency(model), patches.PatchGrid(SHAPE, 3)

    def data(random, count):
        x = images(random, 4 * count)
        return x, evaluate.judge.Judge(model).classes(x)  # all are right

    def robustness(random, count):
        attack = attacks.PGD(float(random.uniform(0.01, 0.3)), steps=7, seed=int(random.integers(2**31)))
        evaluate.robustness(model, attack, data(random, count), batch_size=count)

    def aopc(random, count):
        x = images(random, count)
        settings = {"patch": int(random.integers(2, 5)), "seed": int(random.integers(2**31)), "batch_size": count}
        evaluate.aopc(model, x, saliency(x), steps=int(random.integers(1, 5)), **settings)

    def compare(random, count):
        metrics = {"drop": lambda model, x, y, maps: evaluate.ablation_drop(model, x, maps, mean=0.5, target=y)}
        evaluate.compare(model, {"saliency": saliency}, data(random, count), metrics, batch_size=count)

    def position_map(random, count):
        evaluate.position_map(model, attacks.PatchAttack(3, steps=2), data(random, count), grid, batch_size=count)

    return {each.__name__: each for each in (robustness, aopc, compare, position_map)}


def calls_of(served):
    names = sorted(served.taps)

    def scores(random, count):
        served(images(random, count))

    def explanation(random, count):
        served.explain(images(random, count), labels(random, count), endpoint="saliency")

    def together(random, count):
        for start in range(len(names)):
            served.together(names[start:])(images(random, count))

    return {f"served {each.__name__}": each for each in (scores, explanation, together)}


if __name__ == "__main__":
    sys.exit(main())
