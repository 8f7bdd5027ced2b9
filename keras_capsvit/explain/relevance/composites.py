"""Rules for whole models, by name."""

import dataclasses

import numpy as np

from keras_capsvit import checks
from keras_capsvit.explain.relevance.rules import RULES


@dataclasses.dataclass(frozen=True)
class Composite:
    """Rules for a whole model.

    Attributes:
        entries: tuple of ``(where, rule)`` or ``(where, rule, settings)``; the first that matches and that the op has
            is taken. ``where`` is ``"*"``, ``"input"``, an op type, a kind of op, or a pattern of layer names.
        box: ``"needed"``, ``"allowed"`` or ``"never"``, whether the input layer is treated by ``z_box``.
        sends_one: bool, whether 1 is sent back instead of the score.
        own: int, how many of the entries are the user's.
    """

    entries: tuple
    box: str = "allowed"
    sends_one: bool = False
    own: int = 0

    @property
    def linear(self):
        """Whether all its rules are linear in the relevance."""
        return not any(entry[1] in ("guided", "deconvnet") for entry in self.entries)


_ATTENTION = (("*", "uniform"), ("*", "taylor"))
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative", "Conv3D", "Conv2DBackpropInput")
COMPOSITES = {
    "z_plus": Composite((("*", "z_plus"),)),
    "thesis": Composite((("*", "z_plus"), ("*", "even")), box="needed"),
    "epsilon": Composite((("*", "epsilon"),)),
    "epsilon_plus": Composite((*((op, "z_plus") for op in CONVOLUTIONS), ("*", "epsilon"))),
    "epsilon_gamma_box": Composite((*((op, "gamma") for op in CONVOLUTIONS), ("*", "epsilon")), box="needed"),
    "alpha2_beta1": Composite((("*", "alpha_beta"),)),
    "gradient": Composite((("*", "gradient"),), box="never", sends_one=True),
    "guided_backprop": Composite((("activation", "guided"), ("*", "gradient")), box="never", sends_one=True),
    "deconvnet": Composite((("activation", "deconvnet"), ("*", "gradient")), box="never", sends_one=True),
    "attn_lrp": Composite((*_ATTENTION, ("*", "epsilon"))),
    "cp_lrp": Composite((("*", "constant"), ("*", "epsilon"))),
}


def choose(rules, input_range=None):
    """The Composite that a user means.

    Args:
        rules: see LRP.
        input_range: pair of numbers or arrays, or None.

    Raises:
        ValueError: for names and entries that are none, and a range that is missing, out of order or of no use.
    """
    if not isinstance(rules, str | tuple | list) or not rules:
        raise ValueError(f"rules must be a str or a list of entries, see LRP; received {rules!r:.60}.")
    *own, last = [rules] if isinstance(rules, str) else rules
    if not isinstance(last, str):
        own, last = [*own, last], "z_plus"
    names = {name for known in RULES.values() for name in known}
    for entry in own:
        if not (isinstance(entry, tuple) and len(entry) in (2, 3) and entry[1] in names):
            raise ValueError(
                f"Expected entries (where, rule) or (where, rule, settings) with a rule out of {sorted(names)}; "
                f"received {entry!r}."
            )
    if last in COMPOSITES:
        composite = COMPOSITES[last]
    elif last in RULES["linear"]:
        composite = Composite((("*", last),))
    else:
        raise ValueError(f"rules must be one of {sorted({*COMPOSITES, *RULES['linear']})}; received {last!r}.")
    entries = composite.entries
    if input_range is not None:
        if composite.box == "never":
            raise ValueError(f"rules={last!r} makes no use of an input_range; received {input_range}.")
        _check_range(input_range)
        entries = (("input", "z_box"), *entries)
    elif composite.box == "needed" or any(entry[1] == "z_box" for entry in own):
        raise ValueError("z_box needs to know the range of the input; pass input_range=(lowest, highest).")
    return dataclasses.replace(composite, entries=(*own, *entries), own=len(own))


def _check_range(input_range):
    """Refuse what are no lowest and highest input, numbers or arrays."""
    try:
        low, high = (checks.finite(checks.numbers(end, "input_range"), "input_range") for end in input_range)
        fits = np.all(low < high)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "input_range must be (lowest, highest) input, numbers or arrays that broadcast to an image; received "
            f"{input_range}."
        )
