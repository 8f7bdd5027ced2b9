"""How well a model withstands adversarial examples: AutoAttack, accuracy over the radius, smallest perturbations."""

import dataclasses

import numpy as np

from keras_capsvit import attacks, evaluate, taps
from keras_capsvit.report.accuracy import wilson
from keras_capsvit.report.drawing import COLOURS, diagram, tile
from keras_capsvit.report.sections import Section, percent

_SHOWN = 8
_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}


def auto_attack(subject, results):
    """Robust accuracy under AutoAttack."""
    numbers = subject.drawn(subject.effort.attacked)
    attack = _auto_attack(subject)
    section = Section(how=f"evaluate.auto_attack(model, attacks.{attack!r}, (x, y))", numbers=numbers.tolist())
    settings = {"batch_size": subject.batch_size, "work": subject.work("autoattack")}
    measured = evaluate.auto_attack(subject.model, attack, subject.read(numbers), **settings)
    low, high = wilson(round(measured.robust_accuracy * measured.examples), measured.examples)
    section.figure(
        "robust_accuracy",
        f"Robust accuracy at ε = {attack.epsilon:.4g}",
        measured.robust_accuracy,
        "share",
        low=low,
        high=high,
        headline=True,
    )
    section.figure("accuracy", "Accuracy of the same images", measured.accuracy, "share")
    section.figure("images", "Images", measured.examples, "count")
    section.figure("epsilon", f"Radius of the {_NORMS[subject.norm]} ball", float(attack.epsilon))
    rows = [{"after": name, "accuracy": share} for name, share in measured.after.items()]
    section.table("after", "Accuracy after each attack, worst case of each image", rows, {"accuracy": "share"})
    section.say(
        f"{percent(measured.robust_accuracy)} of {measured.examples} images withstand every attack within "
        f"ε = {attack.epsilon:.4g}; {percent(measured.accuracy)} are right without one."
    )
    if subject.effort.autoattack == "gradients":
        section.left_out.append(
            f"FAB and Square of AutoAttack: they take minutes. These are its two attacks by APGD alone, of "
            f"{2 * subject.effort.iterations} steps, so that robust accuracy may be lower; run with more effort for "
            "the whole of it."
        )
    return section


def _auto_attack(subject):
    shared = {"norm": subject.norm, "bounds": subject.bounds, "seed": subject.seed}
    if subject.effort.autoattack != "gradients":
        return attacks.AutoAttack(subject.radius, version=subject.effort.autoattack, **shared)
    whole = attacks.AutoAttack(subject.radius, **shared).sequence(subject.classes)
    steps = 2 * subject.effort.iterations
    own = {name: dataclasses.replace(whole[name], steps=steps) for name in ("apgd-ce", "apgd-t")}
    return attacks.AutoAttack(subject.radius, version="custom", attacks=own, **shared)


def curve(subject, results):
    """Robust accuracy over the radius."""
    numbers = subject.drawn(subject.effort.attacked)
    shared = {"norm": subject.norm, "bounds": subject.bounds, "seed": subject.seed}
    apgd = attacks.APGD(subject.radius, steps=subject.effort.iterations, **shared)
    radii = [share * subject.radius for share in subject.effort.radii]
    named = taps.names(subject.model)
    objectives = {"capsules": attacks.capsules, "votes": attacks.votes} if {"votes", "capsules"} <= set(named) else None
    how = (
        f"evaluate.attack_table(model, {{'APGD': attacks.{apgd!r}}}, (x, y), epsilons={radii}, objectives={objectives})"
    )
    section = Section(how=how, numbers=numbers.tolist())
    settings = {"batch_size": subject.batch_size, "work": subject.work("curve"), "objectives": objectives}
    table = evaluate.attack_table(subject.model, {"APGD": apgd}, subject.read(numbers), epsilons=radii, **settings)
    columns = ("epsilon", "objective", "robust_accuracy", "success_rate")
    rows = [{name.replace("_", " "): row[name] for name in columns} for row in table.rows]
    units = {"robust accuracy": "share", "success rate": "share"}
    section.table("curve", "Robust accuracy by radius", rows, units)
    clean = table.rows[0]["accuracy"]
    section.figure("accuracy", "Accuracy at radius 0", clean, "share")
    half = [row["epsilon"] for row in rows if row["robust accuracy"] <= clean / 2]
    section.figure("half", "Smallest radius that fools half of what is right", min(half, default=float("nan")))

    def draw(ax):
        for colour, objective in zip(COLOURS, dict.fromkeys(row["objective"] for row in rows), strict=False):
            points = [(row["epsilon"], row["robust accuracy"]) for row in rows if row["objective"] == objective]
            points = [(0.0, clean), *sorted(points)]
            label = "APGD" if objective == "natural" else f"APGD on {objective}"
            ax.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=label)
        ax.axvline(subject.radius, color=COLOURS[7], linewidth=1, linestyle="--", label="ε asked for")
        ax.set(xlabel=f"radius of the {_NORMS[subject.norm]} ball, in units of the pixels", ylabel="robust accuracy")
        ax.set_ylim(-0.02, 1.02)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8)

    alt = f"Robust accuracy falls from {percent(clean)} at radius 0 to {percent(rows[-1]['robust accuracy'])} at "
    alt += f"{rows[-1]['epsilon']:.4g}."
    section.plot("curve", diagram(draw), f"Robust accuracy over the radius, {len(numbers)} images.", alt)
    return section


def smallest(subject, results):
    """Small perturbations that change the class, as pictures."""
    predictions = subject.predictions
    drawn = subject.drawn(len(predictions.label))
    numbers = np.sort(subject.drawn(subject.effort.attacked))
    numbers = numbers[predictions.correct[numbers]]
    if not len(numbers):
        numbers = drawn[predictions.correct[drawn]][:_SHOWN]
    norm = "linf" if subject.norm == "linf" else "l2"
    attack = attacks.DeepFool(norm=norm, bounds=subject.bounds, candidates=max(2, min(10, subject.classes)))
    section = Section(how=f"attacks.{attack!r}(model, x, y)", numbers=numbers.tolist())
    if not len(numbers):
        section.left_out.append("Smallest perturbations: no image is classified correctly.")
        return section
    x, y = subject.read(numbers)
    images = np.concatenate(
        [
            attack(subject.model, x[k : k + subject.batch_size], y[k : k + subject.batch_size])
            for k in range(0, len(x), subject.batch_size)
        ]
    )
    guesses = taps.predictions(subject.model, images)
    fooled, sizes = guesses != y, evaluate.perturbation_norms(x, images)[norm]
    section.figure("fooled", "Images that DeepFool fools", float(fooled.mean()), "share")
    median = float(np.median(sizes[fooled])) if fooled.any() else float("nan")
    section.figure("median", f"Median {_NORMS[norm]} size that fools", median, headline=True)
    low, high = (float(np.quantile(sizes[fooled], q)) if fooled.any() else float("nan") for q in (0.1, 0.9))
    section.figure("tenth", "A tenth of them is below", low)
    section.figure("nine_tenths", "Nine tenths are below", high)
    section.say(
        f"DeepFool looks for small perturbations in {_NORMS[norm]}; half of those that fool are smaller than "
        f"{median:.3g} in units of the pixels. Shown are the smallest ones."
    )
    order = [k for k in np.argsort(sizes, kind="stable") if fooled[k]][:_SHOWN]
    pictures, changed, rows = subject.pictures(x), subject.pictures(images), []
    for k in order:
        label, guess = subject.names[y[k]], subject.names[guesses[k]]
        change = changed[k] - pictures[k]
        grey = 0.5 + 0.5 * change / max(np.abs(change).max(), 1e-9)
        tiles = [
            (tile(pictures[k]), label, f"Image {numbers[k]}, {label}"),
            (tile(changed[k]), guess, f"Image {numbers[k]} changed, predicted as {guess}"),
            (tile(grey), f"{sizes[k]:.3g}", f"The change of image {numbers[k]}, enlarged"),
        ]
        rows.append((f"Image {numbers[k]}", tiles))
    section.grid("smallest", "The smallest perturbations that change the class.", ["image", "changed", "change"], rows)
    return section
