"""Pictures of explanations, adversarial images, votes and robustness, as matplotlib Figures."""

from keras_capsvit.plot.curves import robustness_curve, vote_histograms
from keras_capsvit.plot.images import adversarial, comparison, grid, overlay, rows, sweep, titles_of

__all__ = [
    "adversarial",
    "comparison",
    "grid",
    "overlay",
    "robustness_curve",
    "rows",
    "sweep",
    "titles_of",
    "vote_histograms",
]
