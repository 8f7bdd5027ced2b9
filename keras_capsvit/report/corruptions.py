"""Accuracy under the 15 corruptions of ImageNet-C."""

import functools
import importlib

import numpy as np

from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.report.drawing import heat
from keras_capsvit.report.sections import Section, percent


def corruptions(subject, results):
    """Accuracy by corruption and severity."""
    section = Section(how="data.corruptions.corrupt(pictures, name, severity, seed=seed, keys=numbers)")
    channels = subject.shape[-1]
    if channels not in (1, 3):
        section.left_out.append(f"Corruptions: they are made for images of 1 or 3 channels; these have {channels}.")
        return section
    library = importlib.import_module("keras_capsvit.data.corruptions")
    numbers = subject.drawn(subject.effort.corrupted)
    section.numbers = numbers.tolist()
    x, y = subject.read(numbers)
    pictures, severities = subject.pictures(x).astype("float32"), subject.effort.severities
    names = library.CORRUPTIONS

    def measure(name, severity):
        corrupted = library.corrupt(pictures, name, severity, seed=subject.seed, keys=numbers)
        images = subject.from_pictures(corrupted)
        parts = range(0, len(images), subject.batch_size)
        correct = [
            subject.judge.correct(images[k : k + subject.batch_size], y[k : k + subject.batch_size]) for k in parts
        ]
        return {"correct": np.concatenate(correct)[None]}

    settings = {"model": subject.model, "seed": subject.seed, "names": names, "severities": severities}
    total = len(names) * len(severities)
    with Progress(
        subject.work("corruptions"), "corruptions", settings, judges=[subject.judge], total=total
    ) as progress:
        for name in names:
            for severity in severities:
                progress.batch(functools.partial(measure, name, severity), x, y, f"{name} {severity}")
    right = progress.results()["correct"].reshape(len(names), len(severities), len(x))
    shares = right.mean(axis=2)
    clean = float(subject.predictions.correct[numbers].mean())
    section.figure("accuracy", "Accuracy without corruption", clean, "share")
    section.figure("mean", "Accuracy, mean over corruptions", float(shares.mean()), "share", headline=True)
    worst = names[int(shares.mean(axis=1).argmin())]
    section.figure("worst", "Worst corruption", worst.replace("_", " "), "text")
    section.figure("worst_accuracy", "Accuracy under it", float(shares.mean(axis=1).min()), "share")
    rows = [
        {
            "corruption": name.replace("_", " "),
            **{f"severity {s}": float(v) for s, v in zip(severities, row, strict=True)},
        }
        for name, row in zip(names, shares, strict=True)
    ]
    units = {f"severity {severity}": "share" for severity in severities}
    section.table("corruptions", "Accuracy by corruption and severity", rows, units)
    section.say(
        f"Accuracy changes from {percent(clean)} to {percent(float(shares.mean()))} on average; "
        f"{worst.replace('_', ' ')} is worst. {len(x)} images, each corrupted {total} times."
    )
    if min(subject.shape[:2]) < library.SMALLEST:
        section.say(
            f"Images have a side below {library.SMALLEST} pixels, for which these corruptions were not made: they are "
            "continued by their reflection and cropped after."
        )
    left = sorted({1, 2, 3, 4, 5} - set(severities))
    if left:
        section.left_out.append(f"Severities {', '.join(map(str, left))} of the corruptions: run with more effort.")
    labels = [name.replace("_", " ") for name in names]
    axes = {"label": "accuracy in %", "xlabel": "severity", "ylabel": "corruption"}
    drawn = heat(100 * shares, labels, list(map(str, severities)), **axes, high=100.0, size=(4.2, 5.0))
    alt = f"Accuracy under {len(names)} corruptions at severities {', '.join(map(str, severities))}; lowest under "
    alt += f"{worst.replace('_', ' ')}."
    section.plot("corruptions", drawn, "Accuracy in % by corruption and severity.", alt)
    return section
