"""Contrastive layer-wise relevance propagation (thesis chapter 2)."""

from keras import ops

from keras_capsvit import checks
from keras_capsvit.explain.lrp import LRP

VARIANTS = ("others", "negated")


class CLRP(LRP):
    """Contrastive layer-wise relevance propagation: ``max(0, R - R_dual)`` (thesis Eq. 2.2).

    ``R_dual`` explains the opposite of a class. Forward pass and denominators are those of LRP, and because LRP is
    linear in what it redistributes, the difference is taken at the top and sent back once.

    Args:
        model: see LRP.
        variant: ``"others"`` (CLRP1: the score, uniformly over all other classes) or ``"negated"`` (CLRP2: the score,
            under negated weights of the last linear layer).
        rules: see LRP; not ``"guided_backprop"`` and ``"deconvnet"``, which are not linear. ``"epsilon"`` on the last
            layer cannot tell negated weights, so ``"negated"`` gives zeros there.
        **settings: see LRP.

    Raises:
        ValueError: see LRP; and for another variant.

    Example::

        maps = CLRP(model, input_range=(0, 1))(x, target=3)
    """

    def __init__(self, model, variant="others", *, rules="z_plus", **settings):
        checks.choice("variant", variant, VARIANTS)
        self._contrast, self._negate = variant == "others", variant == "negated"
        super().__init__(model, rules, **settings)

    def _check(self, composite):
        if not composite.linear:
            raise ValueError("CLRP needs rules that are linear in relevance; guided and deconvnet rules are not.")

    def _finished(self, maps):
        return super()._finished(ops.maximum(maps, 0))
