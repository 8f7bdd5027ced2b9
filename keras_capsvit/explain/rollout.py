"""Attention of all blocks of a vision transformer as one map."""

import numpy as np
from keras import ops

from keras_capsvit import checks, taps
from keras_capsvit.explain.base import GridExplainer
from keras_capsvit.ops import attention_rollout

FUSIONS = {"mean": ops.mean, "max": ops.max, "min": ops.min}


class TokenExplainer(GridExplainer):
    """Base: explainers of models whose blocks mix the same tokens one after the other.

    Args:
        model: see ModelExplainer; with self-attention over all tokens.
        output: see ModelExplainer.
        batch_size: int, images per pass.
    """

    def on_grid(self, x):
        prefix, grid = taps.tokens(self.scores, x)
        read = taps.tokens_read(self.scores, x)
        self._check_chain(x)

        def maps(x, ids):
            return ops.reshape(self.over_tokens(x, ids, read)[:, prefix:], (-1, *grid))

        return maps

    def over_tokens(self, x, ids, read):
        """How much of every token reaches those that the scores are read from; tensors.

        Args:
            x: images ``(b, H, W, C)``.
            ids: class ids ``(b,)``.
            read: int array, positions of the tokens that the scores are read from.

        Returns:
            Tensor ``(b, t)``.
        """
        raise NotImplementedError

    def _check_chain(self, x):
        """Refuse attention that does not follow from that of the first block, as of two networks side by side."""
        changed = taps.eagerly(lambda: self._follow_the_first(tuple(x.shape[1:])))
        if not all(changed):
            raise ValueError(
                f"Expected blocks one after the other; of the {len(changed)} self-attentions of {self.scores.name}, "
                f"{changed.count(False)} do not depend on the first (networks side by side?). Pass one of the networks."
            )

    def _follow_the_first(self, shape):
        images = ops.convert_to_tensor(self.scores.noise(shape)[:1])
        plain = self.scores.recorded(images, attention=True)[2]
        noise = np.random.default_rng(0).uniform(size=plain[0].shape).astype("float32")
        changed = self.scores.recorded(images, attention=True, offsets={0: noise})[2]
        pairs = [map(ops.convert_to_numpy, pair) for pair in zip(plain, changed, strict=True)]
        return [not np.array_equal(before, after) for before, after in pairs]


class AttentionRollout(TokenExplainer):
    """How much of every patch reaches the tokens that the logits are read from (Abnar & Zuidema 2020; thesis 7.5.1).

    Attention of a block, with its skip connection, is ``(A + I)`` with rows scaled to sum to 1; blocks are multiplied.
    The rows are those of the tokens that the class scores depend on behind the last block, averaged: of a class token,
    of it and a distillation token, or of all patches where these are pooled.

    Args:
        model: see ModelExplainer; with self-attention over all tokens in every block, its own (taps ``attention_0``,
            ...) or of ``keras.layers.MultiHeadAttention``, keras-hub, and the like.
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
        discard_ratio: float in [0, 1), share of the smallest attention that is set to 0, per image and block.
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Call: see Explainer. All classes have the same map: the rollout of the ``h w`` patches, enlarged bilinearly; on the
    grid it sums to 1 less what stays with the tokens in front of the patches.

    Raises:
        ValueError: for a model without attention over all tokens (in windows, say), and for arguments out of range.

    Example::

        maps = AttentionRollout(model, head_fusion="max", discard_ratio=0.9)(x)
    """

    def __init__(self, model, *, head_fusion="mean", discard_ratio=0.0, output=None, batch_size=32):
        self.head_fusion = checks.choice("head_fusion", head_fusion, FUSIONS)
        self.discard_ratio = checks.number("discard_ratio", discard_ratio, 0, 1, without=(1,))
        super().__init__(model, batch_size, output)

    def over_tokens(self, x, ids, read):
        _, attention = self.scores.intermediates(x, attention=True)
        return attention_rollout([self._fused(ops.cast(weights, "float32")) for weights in attention], 0, read)

    def _fused(self, scores):
        """Attention ``(b, heads, t, t)`` of a block over its heads, ``(b, t, t)``, without what is discarded."""
        fused = FUSIONS[self.head_fusion](scores, axis=1)
        tokens = fused.shape[-1]
        discarded = int(self.discard_ratio * tokens**2)
        if discarded:
            ordered = ops.sort(ops.reshape(fused, (-1, tokens**2)), axis=-1)
            fused = ops.where(fused < ordered[:, discarded, None, None], 0.0, fused)
        return fused
