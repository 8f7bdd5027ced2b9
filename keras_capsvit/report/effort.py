"""How much an audit does: numbers of images and settings, by name."""

import dataclasses

from keras_capsvit import checks

_SIDE = 64  # of images from which on there are fewer ...
_COSTLY = ("judged", "attacked", "corrupted", "patched")  # ... of these ...
_FEWEST = 4  # ... but no fewer than these


@dataclasses.dataclass(frozen=True)
class Effort:
    """What an audit takes from the data, and how long it tries.

    Args:
        name: str.
        images: int, images that accuracy is of, the first of the data set; None for all.
        explained: int, images that are explained as pictures.
        judged: int, images that explanations are judged on.
        samples: int, of SmoothGrad, infidelity and max-sensitivity.
        steps: int, of integrated gradients, of insertion and deletion, and of AOPC.
        attacked: int, images under AutoAttack and of the robustness curve.
        iterations: int, of the attacks of the curve and of patches.
        autoattack: str, version of ``attacks.AutoAttack``, or ``"gradients"``, its APGD attacks alone, of twice
            ``iterations`` steps.
        radii: tuple of floats, radii of the curve relative to the radius of the audit.
        corrupted: int, images of each corruption and severity.
        severities: tuple of ints from 1 to 5.
        patched: int, images of the map of patches.
        positions: int, patches along the longer side of the map, at most.
        repetitions: int, of measured latencies.

    Numbers of images that are judged, attacked, corrupted and patched are of images of up to 64x64 pixels; see
    ``of_size``.
    """

    name: str
    images: int | None
    explained: int
    judged: int
    samples: int
    steps: int
    attacked: int
    iterations: int
    autoattack: str
    radii: tuple
    corrupted: int
    severities: tuple
    patched: int
    positions: int
    repetitions: int

    def of_size(self, height, width):
        """The Effort for images of a size: the longer their sides, the fewer are judged, attacked, corrupted, patched.

        Args:
            height: int.
            width: int.
        """
        share = min(1.0, _SIDE / (height * width) ** 0.5)
        fewer = {name: max(_FEWEST, round(share * getattr(self, name))) for name in _COSTLY}
        return dataclasses.replace(self, **{name: min(count, getattr(self, name)) for name, count in fewer.items()})


EFFORTS = {
    "quick": Effort(
        name="quick",
        images=1000,
        explained=12,
        judged=24,
        samples=8,
        steps=14,
        attacked=24,
        iterations=20,
        autoattack="gradients",
        radii=(0.25, 0.5, 1.0, 2.0),
        corrupted=40,
        severities=(1, 3, 5),
        patched=8,
        positions=4,
        repetitions=10,
    ),
    "standard": Effort(
        name="standard",
        images=10_000,
        explained=12,
        judged=100,
        samples=25,
        steps=28,
        attacked=100,
        iterations=40,
        autoattack="standard",
        radii=(0.125, 0.25, 0.5, 1.0, 1.5, 2.0),
        corrupted=200,
        severities=(1, 2, 3, 4, 5),
        patched=16,
        positions=7,
        repetitions=30,
    ),
    "thorough": Effort(
        name="thorough",
        images=None,
        explained=12,
        judged=500,
        samples=50,
        steps=56,
        attacked=1000,
        iterations=100,
        autoattack="standard",
        radii=(0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
        corrupted=1000,
        severities=(1, 2, 3, 4, 5),
        patched=64,
        positions=14,
        repetitions=100,
    ),
}


def effort_of(effort):
    """The Effort of a name, or the Effort itself."""
    if isinstance(effort, Effort):
        return effort
    return EFFORTS[checks.choice("effort", effort, tuple(EFFORTS))]
