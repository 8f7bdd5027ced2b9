"""Attention of all blocks of a vision transformer, weighted by the gradient of a class, as one map."""

import numpy as np
from keras import ops

from keras_capsvit import autodiff, taps
from keras_capsvit.explain.base import score_of
from keras_capsvit.explain.rollout import TokenExplainer
from keras_capsvit.ops import reached


class TransformerAttribution(TokenExplainer):
    """What of every patch reaches the class score through attention (Chefer, Gur & Wolf 2021, ICCV, Eq. 5 and 6).

    Their rule of self-attention: ``R = I`` before the first block, and ``R = R + mean_heads(max(0, dS/dA * A)) R`` for
    every block, with the attention ``A`` and the score ``S`` of the class. The map is the mean of the rows of the
    tokens that the scores are read from (see AttentionRollout).

    Args:
        model: see AttentionRollout.
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Call: see Explainer. Maps are those of the ``h w`` patches, at least 0, enlarged bilinearly.

    Raises:
        ValueError: for a model without attention over all tokens.

    Example::

        maps = TransformerAttribution(model)(x, target=3)
    """

    def __init__(self, model, *, output=None, batch_size=32):
        super().__init__(model, batch_size, output)

    def over_tokens(self, x, ids, read):
        heads = [shape[0] for shape in taps.attentions(self.scores, x)]
        tokens = taps.attentions(self.scores, x)[0][-1]

        def score(offset, x, ids):
            ends = np.cumsum(heads)
            offsets = {k: offset[:, end - count : end] for k, (count, end) in enumerate(zip(heads, ends, strict=True))}
            scores, _, attention = self.scores.recorded(x, attention=True, offsets=offsets)
            return score_of(scores, ids), ops.concatenate([ops.cast(each, "float32") for each in attention], axis=1)

        zeros = ops.zeros((ops.shape(x)[0], sum(heads), tokens, tokens))
        (_, attention), gradient = autodiff.gradient(score, has_aux=True)(zeros, x, ids)
        relevant = ops.split(ops.relu(gradient * attention), np.cumsum(heads)[:-1], axis=1)
        return reached(read, [ops.mean(each, axis=1) + ops.eye(tokens) for each in reversed(relevant)])
