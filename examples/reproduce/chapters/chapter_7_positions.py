"""Chapter 7: patches at every position, moved, on other images and networks; and one patch for all of them."""

import numpy as np
from matplotlib.figure import Figure
from rows import row

from chapters.chapter_7_networks import Comparison
from chapters.plain import in_percent, known, without_nan
from keras_capsvit import data, evaluate
from keras_capsvit.patches import apply_patch, random_positions


@row("7.F6")
def positions(setting, run):
    """Fooling rate at every cell of the grid: the middle against the border."""
    comparison, measured, maps = Comparison.of(setting, run), {}, {}
    for name, model in comparison.models.items():

        def measure(model=model):
            grid, attack = comparison.grid(), comparison.attack()
            return (100 * evaluate.position_map(model, attack, (comparison.x, comparison.y), grid)).tolist()

        maps[name] = np.array(run.step(name, measure))
        measured |= {f"{name}, {kind}": value for kind, value in middle_and_border(maps[name]).items()}
    heat_maps(maps).savefig(run.figure("positions"), dpi=130)
    return {"measured": known(measured), "notes": f"Of {len(comparison.x)} images at each cell."}


@row("7.T4")
@row("7.T9")
def shifted(setting, run):
    """Whether a patch still fools that was moved by pixels, or by whole patches of the transformer."""
    comparison, measured = Comparison.of(setting, run), {}
    shifts = {label: pixels_of(label, setting.patch_size) for label in setting.shifts}
    for name, model in comparison.models.items():

        def measure(name=name, model=model):
            result = comparison.results(setting.cells)[name]
            rows = evaluate.shift_table(model, comparison.x, comparison.y, result, list(shifts.values())).rows
            return without_nan([each["fooling_rate"] for each in rows])

        rates = run.step(name, measure)
        measured |= {f"{name} {label}": in_percent(rate) for label, rate in zip(shifts, rates, strict=True)}
    return {"measured": known(measured), "notes": f"{comparison.note} Those count on which the moved patch still lies."}


@row("7.T7")
@row("7.T8")
def transferred(setting, run):
    """Whether patches fool on other images, and other networks."""
    comparison, measured = Comparison.of(setting, run), {}
    for label, cells in setting.sizes.items():

        def measure(cells=cells):
            how = comparison.models, comparison.x, comparison.y, comparison.results(cells)
            return evaluate.patch_transfer(*how).rows

        for each in run.step(label, measure):
            name = each["made_on"]
            if run.row == "7.T7":
                measured[f"{name}, {label}"] = in_percent(each["other_images"])
            else:
                measured |= {f"{name} to {to}, {label}": in_percent(each[to]) for to in comparison.models if to != name}
    return {"measured": known(measured), "notes": comparison.note}


@row("7.F13")
def universal(setting, run):
    """One patch for a set of images, at random positions (LaVAN's second setting), tried on other images."""
    comparison, measured, drawn = Comparison.of(setting, run), {}, {}
    half = len(comparison.x) // 2
    rest = np.arange(half, len(comparison.x))
    names, target = data.info(setting.dataset).class_names, setting.target
    others = rest[comparison.y[rest] != target]
    for name, model in comparison.models.items():
        kinds = {
            "one image": comparison.attack(setting.universal_cells, early_stop=False, steps=setting.universal_steps),
            "all images": comparison.attack(
                setting.universal_cells,
                positions=None,
                universal=True,
                steps=setting.universal_steps,
                batch_size=setting.universal_batch,
            ),
        }
        for kind, attack in kinds.items():
            trained_on = slice(0, 1) if kind == "one image" else slice(0, half)
            targets = np.full(len(comparison.x[trained_on]), target)
            result = attack.run(model, comparison.x[trained_on], targets, targeted=True)
            patch = result.patches[0] if kind == "one image" else result.patches
            drawn[f"{name}, {kind}"] = patch[0]
            places = random_positions(comparison.x.shape[1:], attack.patch_size, len(others), seed=run.seed)
            images = apply_patch(comparison.x[others], patch, places)
            judge = np.asarray(model.predict(images, verbose=0)).argmax(axis=1)
            measured[f"{name}, made on {kind}"] = in_percent((judge == target).mean())
    patch_figure(drawn).savefig(run.figure("patches"), dpi=130)
    notes = f"How often {len(others)} other images become {names[target]} with the patch at a random position."
    return {"measured": known(measured), "notes": notes}


def pixels_of(label, cell):
    """Pixels ``(down, right)`` of a shift that is written in cells or pixels.

    Args:
        label: str, such as ``"(0, 1 px)"`` or ``"(1, 2)"``, the latter in cells.
        cell: int, pixels of a cell.

    Returns:
        Pair of ints.
    """
    parts = [part.strip() for part in label.strip("()").split(",")]
    return tuple(int(part.split()[0]) * (1 if part.endswith("px") else cell) for part in parts)


def middle_and_border(rates):
    """Mean fooling rates of the cells at the border of a map, of those that are not, and of all.

    Args:
        rates: array ``(rows, columns)``, at least 3 each way.

    Returns:
        dict: ``"middle"``, ``"border"``, ``"middle less border"`` and ``"all positions"``.
    """
    inside = np.zeros(rates.shape, bool)
    inside[1:-1, 1:-1] = True
    middle, border = float(rates[inside].mean()), float(rates[~inside].mean())
    everywhere = float(rates.mean())
    return {"middle": middle, "border": border, "middle less border": middle - border, "all positions": everywhere}


def heat_maps(maps):
    """A heat map of each network on one scale, a matplotlib Figure.

    Args:
        maps: dict from names to arrays ``(rows, columns)`` of percentages.
    """
    figure = Figure(figsize=(3.4 * len(maps) + 0.8, 3.3), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for ax, (name, rates) in zip(axes, maps.items(), strict=True):
        drawn = ax.imshow(rates, vmin=0, vmax=100, cmap="viridis")
        for (row_of, column), rate in np.ndenumerate(rates):
            colour = "white" if rate < 60 else "black"
            ax.text(column, row_of, f"{rate:.0f}", ha="center", va="center", fontsize=7, color=colour)
        ax.set_title(name, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    figure.colorbar(drawn, ax=axes.tolist(), shrink=0.8).set_label("fooling rate in %", fontsize=8)
    return figure


def patch_figure(patches):
    """Patches side by side, a matplotlib Figure.

    Args:
        patches: dict from names to arrays ``(h, w, C)`` in [0, 1].
    """
    figure = Figure(figsize=(1.9 * len(patches), 2.2), layout="constrained")
    axes = figure.subplots(1, len(patches), squeeze=False)[0]
    for ax, (name, patch) in zip(axes, patches.items(), strict=True):
        ax.imshow(patch.clip(0, 1), interpolation="nearest")
        ax.set_title(name, fontsize=8)
        ax.axis("off")
    return figure
