"""Attention of all blocks of a vision transformer as one map."""

import re

from keras import ops

from keras_capsvit import autodiff, taps
from keras_capsvit.explain.base import ModelExplainer, enlarged, in_batches
from keras_capsvit.ops import attention_rollout

FUSIONS = {"mean": ops.mean, "max": ops.max, "min": ops.min}


class AttentionRollout(ModelExplainer):
    """How much of every patch reaches the tokens that the logits are read from (Abnar & Zuidema 2020; thesis 7.5.1).

    Attention of a block, with its skip connection, is ``(A + I)`` with rows scaled to sum to 1; blocks are multiplied.
    The rows are those of class and distillation token, averaged, or the mean of all tokens where there is neither.

    Args:
        model: live or served model with the taps ``attention_0``, ... ``(b, heads, t, t)`` and
            ``features (b, h, w, d)``, whose grid says how many of the ``t`` tokens are in front of the patches.
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
        discard_ratio: float in [0, 1), share of the smallest attention that is set to 0, per image and block.
        batch_size: int, images per pass.

    Call: see Explainer. All classes have the same map: the rollout of the ``h w`` patches, enlarged bilinearly; on the
    grid it sums to 1 less what stays with class and distillation token.

    Raises:
        ValueError: if the model has no such taps, and for arguments out of range.

    Example::

        maps = AttentionRollout(model, head_fusion="max", discard_ratio=0.9)(x)
    """

    def __init__(self, model, *, head_fusion="mean", discard_ratio=0.0, batch_size=32):
        if head_fusion not in FUSIONS:
            raise ValueError(f"head_fusion must be one of {tuple(FUSIONS)}; received {head_fusion!r}.")
        if not 0 <= discard_ratio < 1:
            raise ValueError(f"discard_ratio must be in [0, 1); received {discard_ratio}.")
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio
        super().__init__(model, batch_size)
        blocks = sum(re.fullmatch(r"attention_\d+", name) is not None for name in taps.names(model))
        names = [f"attention_{index}" for index in range(max(blocks, 1))]
        self._forward = taps.tap(model, ["features", *names])
        self._compiled = autodiff.compile(self._maps, self.variables)

    def attributions(self, x, ids):
        return in_batches(lambda part: self._compiled(x[part]), len(x), self.batch_size)

    def on_tensors(self, x, ids):
        return self._compiled(x)

    def _maps(self, x):
        features, *attention = self._forward(x)
        height, width = features.shape[1:3]
        prefix = attention[0].shape[-1] - height * width
        patches = attention_rollout([self._fused(ops.cast(scores, "float32")) for scores in attention], prefix)
        return enlarged(ops.reshape(patches, (-1, height, width)), x.shape[1:3])

    def _fused(self, scores):
        """Attention ``(b, heads, t, t)`` of a block over its heads, ``(b, t, t)``, without what is discarded."""
        fused = FUSIONS[self.head_fusion](scores, axis=1)
        tokens = fused.shape[-1]
        discarded = int(self.discard_ratio * tokens**2)
        if discarded:
            ordered = ops.sort(ops.reshape(fused, (-1, tokens**2)), axis=-1)
            fused = ops.where(fused < ordered[:, discarded, None, None], 0.0, fused)
        return fused
