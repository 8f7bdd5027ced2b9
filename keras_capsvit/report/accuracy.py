"""How often a model is right, what it confuses, whether its confidence means something, and its worst mistakes."""

import numpy as np
from scipy import stats

from keras_capsvit.report.calibration import calibration
from keras_capsvit.report.drawing import COLOURS, diagram, heat, tile
from keras_capsvit.report.sections import Section, percent

_MOST_CLASSES = 30  # in a matrix that can be read
_MOST_CONFUSIONS = 15
_MISTAKES = 12


def wilson(right, count):
    """95 % confidence interval of a share by Wilson's score, two floats."""
    interval = stats.binomtest(int(right), int(count)).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def accuracy(subject, results):
    """Accuracy of all and of every class, and what is confused."""
    predictions, names = subject.predictions, subject.names
    section = Section(how="(taps.predictions(model, x) == y).mean()  # over all images, batch by batch")
    right, count = int(predictions.correct.sum()), len(predictions.label)
    low, high = wilson(right, count)
    section.figure("accuracy", "Accuracy", right / count, "share", low=low, high=high, headline=True)
    section.figure("images", "Images", count, "count")
    section.figure("errors", "Errors", count - right, "count")
    if subject.classes > 10:
        section.figure("top_5", "Among the first five", float(np.mean(predictions.rank < 5)), "share")
    matrix = np.zeros((subject.classes, subject.classes), "int64")
    np.add.at(matrix, (predictions.label, predictions.predicted), 1)
    _classes(section, matrix, names)
    pairs = np.argwhere((matrix > 0) & ~np.eye(len(matrix), dtype=bool))
    pairs = sorted(pairs.tolist(), key=lambda pair: -matrix[tuple(pair)])[:_MOST_CONFUSIONS]
    if pairs:
        rows = [{"true": names[i], "predicted": names[j], "images": int(matrix[i, j])} for i, j in pairs]
        section.table("confused", "What is confused most", rows, {"images": "count"})
        worst = rows[0]
        section.say(
            f"Right on {percent(right / count)} of {count:,} images (95 % interval {percent(low)} to {percent(high)}). "
            f"Most often, {worst['true']} is taken for {worst['predicted']}: {worst['images']:,} times."
        )
    else:
        section.say(f"Right on all of {count:,} images (95 % interval {percent(low)} to {percent(high)}).")
    present = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    if len(present) <= _MOST_CLASSES:
        _matrix(section, matrix[np.ix_(present, present)], [names[k] for k in present])
    else:
        section.left_out.append(f"Confusion matrix as a picture: {len(present)} classes are too many to read.")
    return section


def _classes(section, matrix, names):
    rows = []
    for k, name in enumerate(names):
        images, guesses, hits = int(matrix[k].sum()), int(matrix[:, k].sum()), int(matrix[k, k])
        if images:
            low, high = wilson(hits, images)
            row = {"class": name, "images": images, "recall": hits / images, "recall, low": low, "recall, high": high}
            rows.append({**row, "precision": hits / guesses if guesses else float("nan")})
    rows.sort(key=lambda row: row["recall"])
    units = dict.fromkeys(("recall", "recall, low", "recall, high", "precision"), "share") | {"images": "count"}
    note = "Lowest recall first; intervals are Wilson's, of 95 %."
    section.table("classes", "Every class", rows, units, note=note)
    empty = len(names) - len(rows)
    if empty:
        section.left_out.append(f"Recall of {empty} of {len(names)} classes: there are no images of them.")


def _matrix(section, matrix, names):
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares = np.where(matrix.sum(axis=1, keepdims=True) > 0, 100 * shares, np.nan)
    short = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
    labels = {"label": "share of the true class in %", "xlabel": "predicted class", "ylabel": "true class"}
    drawn = heat(shares, short, short, **labels, high=100.0, written="{:.0f}" if len(names) <= 16 else None)
    diagonal = np.diag(shares)
    worst = names[int(np.nanargmin(diagonal))]
    alt = f"Confusion matrix of {len(names)} classes; the diagonal is lowest for {worst}, {np.nanmin(diagonal):.0f} %."
    section.plot("confusion", drawn, "Confusion matrix: shares of every true class in %.", alt)


def confidence(subject, results):
    """Whether the model is right as often as it is confident."""
    predictions = subject.predictions
    section = Section(how="report.calibration(confidence, correct)  # confidence of the predicted class of every image")
    result = calibration(predictions.confidence, predictions.correct)
    section.figure("ece", "Expected calibration error", result.error, headline=True)
    mean, share = float(predictions.confidence.mean()), float(predictions.correct.mean())
    section.figure("confidence", "Mean confidence", mean, "share")
    section.figure("accuracy", "Accuracy", share, "share")
    rows = [
        {"from": low, "to": high, "images": int(count), "confidence": confident, "accuracy": right}
        for low, high, count, confident, right in zip(
            result.edges[:-1], result.edges[1:], result.images, result.confidence, result.accuracy, strict=True
        )
        if count
    ]
    units = dict.fromkeys(("from", "to", "confidence", "accuracy"), "share") | {"images": "count"}
    section.table("bins", "Bins of confidence", rows, units)
    meaning = "length of the winning capsule" if subject.kind == "lengths" else "probability of the predicted class"
    section.say(f"Confidence is the {meaning}. {_in_words(mean, share, result.error)}")

    def draw(ax):
        width = np.diff(result.edges)
        ax.bar(result.edges[:-1], result.accuracy, width, align="edge", color=COLOURS[0], alpha=0.75, label="accuracy")
        ax.plot([0, 1], [0, 1], color=COLOURS[1], linewidth=1.5, label="as confident as right")
        shown = result.images > 0
        ax.plot(
            result.confidence[shown], result.accuracy[shown], "o", color=COLOURS[3], markersize=4, label="bins' means"
        )
        ax.set(xlabel=f"confidence ({meaning})", ylabel="share of images that are right", xlim=(0, 1), ylim=(0, 1.02))
        ax.legend(fontsize=8, loc="upper left")

    alt = f"Accuracy over confidence in {len(rows)} bins; expected calibration error {result.error:.3f}."
    section.plot("calibration", diagram(draw), "Calibration: bars on the line are right as often as confident.", alt)
    return section


def _in_words(mean, share, error):
    if error < 0.02:
        return "The model is as often right as it is confident."
    if mean > share:
        return f"The model is overconfident: it is confident to {percent(mean)} and right on {percent(share)}."
    return f"The model is more often right than it is confident: {percent(share)} against {percent(mean)}."


def mistakes(subject, results):
    """The most confident mistakes as pictures."""
    predictions, names = subject.predictions, subject.names
    wrong = np.flatnonzero(~predictions.correct)
    wrong = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:_MISTAKES]
    section = Section(how="numpy.argsort(-confidence[~correct])", numbers=wrong.tolist())
    if not len(wrong):
        section.say("There is no mistake to show.")
        return section
    pictures = subject.pictures(subject.read(wrong)[0])
    tiles, rows = [], []
    for number, picture in zip(wrong, pictures, strict=True):
        label, guess = names[predictions.label[number]], names[predictions.predicted[number]]
        certain = float(predictions.confidence[number])
        rows.append({"image": int(number), "true": label, "predicted": guess, "confidence": certain})
        alt = f"Image {number}, of class {label}, predicted as {guess}"
        tiles.append((tile(picture), f"{label} → {guess}, {percent(certain)}", alt))
    section.gallery("mistakes", "The most confident mistakes: true class → predicted class, confidence.", tiles)
    section.table("mistakes", "The same in numbers", rows, {"confidence": "share", "image": "count"})
    return section
