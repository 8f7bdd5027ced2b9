"""Adversarial patches: which positions fool a model, and what moving them or a higher temperature does."""

import numpy as np

from keras_capsvit import attacks, evaluate, taps
from keras_capsvit.patches import PatchGrid
from keras_capsvit.report.drawing import COLOURS, diagram, heat
from keras_capsvit.report.sections import Section, percent

_TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0)


def positions(subject, results):
    """Share of images that a patch fools at every position of a grid."""
    numbers = _right(subject)
    size = _patch_size(subject)
    grid = PatchGrid(subject.shape[:2], size)
    attack = _attack(subject, size, grid)
    how = f"grid = PatchGrid({subject.shape[:2]}, {size})\nevaluate.position_map(model, {_call(attack)}, (x, y), grid)"
    section = Section(how=how, numbers=numbers.tolist())
    if not len(numbers):
        section.left_out.append("Map of patches: no image is classified correctly.")
        return section
    settings = {"batch_size": subject.batch_size, "work": subject.work("positions")}
    rates = evaluate.position_map(subject.model, attack, subject.read(numbers), grid, **settings)
    section.figure("mean", "Fooled by a patch, mean over positions", float(rates.mean()), "share", headline=True)
    section.figure("most", "At the most vulnerable position", float(rates.max()), "share")
    section.figure("least", "At the least vulnerable position", float(rates.min()), "share")
    share = size[0] * size[1] / (subject.shape[0] * subject.shape[1])
    section.figure("patch", "Patch", f"{size[0]}x{size[1]} pixels, {percent(share)} of the image", "text")
    row, column = np.unravel_index(int(rates.argmax()), rates.shape)
    where = f"row {row + 1}, column {column + 1}"
    text = (
        f"A patch of {size[0]}x{size[1]} pixels is made in {attack.steps} steps for each of {len(numbers)} images that "
        f"are classified correctly, at each of {rates.size} positions. "
    )
    if rates.any():
        text += f"It fools {percent(float(rates.mean()))} on average, and {percent(float(rates.max()))} in {where}."
    section.say(text if rates.any() else f"{text}It fools none of them; more steps may.")
    rows = [{"row": r + 1, "column": c + 1, "fooled": float(value)} for (r, c), value in np.ndenumerate(rates)]
    section.table("positions", "Share of fooled images by position", rows, {"fooled": "share"})
    names = [[str(k + 1) for k in range(count)] for count in rates.shape]
    axes = {"label": "fooled images in %", "xlabel": "column of the grid", "ylabel": "row of the grid"}
    drawn = heat(100 * rates, *names, **axes, high=100.0, size=(4.4, 3.5))
    alt = f"Map of {rates.shape[0]}x{rates.shape[1]} positions of a patch; most images are fooled in {where}."
    section.plot("positions", drawn, "Share of images that a patch fools, by its position.", alt)
    return section


def tokens(subject, results):
    """Of transformers: whether patches fool that are moved off the grid of tokens, and with other temperatures."""
    section = Section()
    try:
        _, cells = taps.tokens(subject.scores, subject.read([0])[0])
    except ValueError as error:
        section.left_out.append(f"Shifts and temperature: {error}")
        return section
    numbers = _right(subject)
    if not len(numbers):
        section.left_out.append("Shifts and temperature: no image is classified correctly.")
        return section
    size = tuple(side // cell for side, cell in zip(subject.shape, cells, strict=False))
    attack = _attack(subject, size, PatchGrid(subject.shape[:2], size))
    x, y = subject.read(numbers)
    section.numbers = numbers.tolist()
    section.how = f"result = {_call(attack)}.run(model, x, y)\nevaluate.shift_table(model, x, y, result, shifts)"
    result = attack.run(subject.model, x, y)
    half = tuple(side // 2 for side in size)
    shifts = [(0, 0), (0, 1), (1, 0), (1, 1), half, (0, size[1]), (size[0], 0), size]
    rows = evaluate.shift_table(subject.model, x, y, result, list(dict.fromkeys(shifts))).rows
    section.table(
        "shifts", "Patches moved by pixels", rows, {"fooling_rate": "share", "examples": "count"}, note=_MOVED
    )
    section.figure("fooled", "Fooled by a patch on the grid of tokens", rows[0]["fooling_rate"], "share")
    section.figure("one_pixel", "The same, moved by a pixel to the right", rows[1]["fooling_rate"], "share")
    section.figure("one_patch", "The same, moved by a whole patch", rows[-1]["fooling_rate"], "share")
    if not hasattr(subject.model, "temperature") or not hasattr(subject.model, "blocks"):
        section.left_out.append("Temperature of the attention: it can be set on transformers of this package only.")
        return section
    _temperatures(subject, section, attack, x, y)
    return section


def _temperatures(subject, section, attack, x, y):
    model, rows = subject.model, []
    before = model.temperature
    drawn = subject.read(subject.drawn(subject.effort.corrupted))
    try:
        for temperature in _TEMPERATURES:
            model.temperature = temperature
            accuracy = float(np.mean(taps.predictions(model, drawn[0]) == drawn[1]))
            right = taps.predictions(model, x) == y
            fooled = np.zeros(0)
            if right.any():
                fooled = taps.predictions(model, attack(model, x[right], y[right])) != y[right]
            share = float(fooled.mean()) if len(fooled) else float("nan")
            rows.append({"temperature": temperature, "accuracy": accuracy, "fooled by a patch": share})
    finally:
        model.temperature = before
    units = {"accuracy": "share", "fooled by a patch": "share"}
    section.table("temperatures", "Temperature of the attention", rows, units)

    def draw(ax):
        for colour, (name, label) in zip(COLOURS, (("accuracy", "accuracy"), ("fooled by a patch",) * 2), strict=False):
            values = [np.nan if row[name] is None else row[name] for row in rows]
            ax.plot(_TEMPERATURES, values, marker="o", markersize=4, color=colour, label=label)
        ax.set(xlabel="temperature of the attention", ylabel="share of images", ylim=(-0.02, 1.02))
        ax.legend(fontsize=8)

    alt = "Accuracy and share of images fooled by a patch at temperatures from 0.5 to 3."
    section.plot(
        "temperatures", diagram(draw), "Accuracy and fooled images over the temperature of the attention.", alt
    )


_MOVED = "dy and dx are pixels down and to the right; of images on which the moved patch still lies wholly."


def _right(subject):
    """Numbers of images that are classified correctly."""
    numbers = subject.drawn(len(subject.predictions.label))
    order = np.random.default_rng(subject.seed).permutation(numbers)
    return np.sort([number for number in order if subject.predictions.correct[number]][: subject.effort.patched])


def _patch_size(subject):
    """Height and width of a patch: that of the tokens of a transformer, or a share of the image."""
    try:
        _, cells = taps.tokens(subject.scores, subject.read([0])[0])
    except ValueError:
        cells = ()
    if cells and max(cells) <= subject.effort.positions + 1:
        return tuple(side // cell for side, cell in zip(subject.shape, cells, strict=False))
    side = max(1, -(-max(subject.shape[:2]) // subject.effort.positions))
    return (min(side, subject.shape[0]), min(side, subject.shape[1]))


def _attack(subject, size, grid):
    settings = {"steps": subject.effort.iterations, "bounds": subject.bounds, "seed": subject.seed}
    low, high = (np.mean(end) for end in subject.bounds)
    return attacks.PatchAttack(size, positions=grid, step_size=float(high - low) / 16, **settings)


def _call(attack):
    return (
        f"attacks.PatchAttack({attack.patch_size}, positions=grid, step_size={attack.step_size}, steps={attack.steps}, "
        f"bounds={attack.bounds}, seed={attack.seed})"
    )
