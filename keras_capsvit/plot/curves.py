"""Diagrams: how votes agree with capsules, and robust accuracy over the radius of attacks."""

import numpy as np
from matplotlib.figure import Figure

from keras_capsvit import checks


def vote_histograms(statistics, *, bins=100) -> Figure:
    """How votes agree with class capsules (thesis Fig. 6.2): their share, mean length and mean coupling per cosine.

    Args:
        statistics: dict from names, such as ``"clean"``, to what ``evaluate.vote_statistics`` returns; a column each.
        bins: int, of the cosine between -1 and 1.

    Returns:
        matplotlib Figure: the upper row is that of the true classes, the lower that of the longest others.

    Raises:
        ValueError: for no statistics.
    """
    statistics = checks.named("statistics", statistics, "what evaluate.vote_statistics returns")
    for name, of in statistics.items():
        if not isinstance(of, dict) or not {"cosine", "length", "coupling"} <= set(of):
            kind = type(of).__name__
            raise ValueError(f"Expected what evaluate.vote_statistics returns as {name!r}; received {kind}.")
    checks.positive_int("bins", bins)
    if not statistics:
        raise ValueError("Expected the statistics of at least one set of images; received none.")
    figure = Figure(figsize=(3.3 * len(statistics) + 0.8, 4.6), layout="constrained")
    axes = figure.subplots(2, len(statistics), squeeze=False, sharex=True, sharey=True)
    edges = np.linspace(-1, 1, bins + 1)
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    twins = []
    for column, (name, values) in enumerate(statistics.items()):
        for row, whose in enumerate(("true class", "longest other class")):
            ax = axes[row, column]
            cosine = values["cosine"][row].ravel()
            counts = np.histogram(cosine, edges)[0]
            sums = [np.histogram(cosine, edges, weights=values[key][row].ravel())[0] for key in ("length", "coupling")]
            length, coupling = (np.where(counts, total / np.maximum(counts, 1), np.nan) for total in sums)
            ax.bar(centres, 100 * counts / max(counts.sum(), 1), width, color="tab:blue", label="share of votes")
            twin = ax.twinx()
            twins.append(twin)
            twin.plot(centres, length, color="tab:green", label="mean length")
            twin.plot(centres, coupling, color="tab:red", label="mean coupling")
            ax.set_title(f"{name}, {whose}", fontsize=9)
            for each in (ax, twin):
                each.tick_params(labelsize=7)
            if row:
                ax.set_xlabel("cosine of vote and class capsule", fontsize=8)
            if not column:
                ax.set_ylabel("share of votes in %", fontsize=8)
            if column == len(statistics) - 1:
                twin.set_ylabel("length, coupling", fontsize=8)
    highest = max(line.get_ydata()[np.isfinite(line.get_ydata())].max() for twin in twins for line in twin.lines)
    for twin in twins:
        twin.set_ylim(0, 1.05 * highest)
    axes[0, 0].set_xticks([-1, -0.5, 0, 0.5, 1])
    handles = [*axes[0, 0].containers, *twins[0].lines]
    figure.legend(handles, [handle.get_label() for handle in handles], loc="outside lower center", ncols=3, fontsize=8)
    return figure


def robustness_curve(table, *, accuracy=True):
    """Robust accuracy over the radius of attacks.

    Args:
        table: evaluate.Table, what ``evaluate.attack_table`` returns with ``epsilons``.
        accuracy: bool, begin every line with the accuracy of images that are not attacked, at radius 0.

    Returns:
        matplotlib Figure, a line for each objective and attack; the worst case is black.

    Raises:
        ValueError: for a table without radii, and for what is none.

    Example::

        table = evaluate.attack_table(model, {"PGD": pgd}, test, epsilons=[2 / 255, 4 / 255, 8 / 255], union=True)
        plot.robustness_curve(table).savefig("robustness.png")
    """
    checks.booleans(accuracy=accuracy)
    needed = ("epsilon", "objective", "attack", "accuracy", "robust_accuracy")
    rows = getattr(table, "rows", None)
    if not rows or not all(isinstance(row, dict) and set(needed) <= row.keys() for row in rows):
        raise ValueError(
            "Expected a table with the columns " + ", ".join(needed) + ", such as evaluate.attack_table returns with "
            f"epsilons=[...]; received {getattr(table, 'columns', type(table).__name__)}."
        )
    lines = {}
    for row in rows:
        lines.setdefault((row["objective"], row["attack"]), []).append(row)
    several = len({objective for objective, _ in lines}) > 1
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = figure.subplots()
    for (objective, attack), points in lines.items():
        values = {row["epsilon"]: row["robust_accuracy"] for row in points}
        values = {0.0: points[0]["accuracy"], **values} if accuracy else values
        radii = sorted(values)
        worst = {"color": "black", "linewidth": 2} if attack == "any of these" else {}
        label = f"{attack} on {objective}" if several else attack
        ax.plot(radii, [100 * values[radius] for radius in radii], marker="o", markersize=3, label=label, **worst)
    ax.set(xlabel="radius of the ball, in units of the pixels", ylabel="robust accuracy in %", ylim=(-2, 102))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure
