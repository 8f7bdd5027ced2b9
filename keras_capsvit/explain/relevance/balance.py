"""What was sent against what arrived: whether relevance is finite, no more than rules can make of it, and not lost."""

import warnings

import numpy as np
import tensorflow as tf

_LOST = 0.5


class Balance:
    """Judge of the relevance that an engine returns; warns once.

    Args:
        engine: Engine.
        name: str, who explains.
        contrast: bool, whether the score is sent to all other classes negatively.
    """

    def __init__(self, engine, name, contrast):
        self._engine, self._name, self._contrast = engine, name, contrast
        self._warned = False

    def check(self, sums, arguments, targets):
        """Check relevance.

        Args:
            sums: array ``(k, b, 4)``, see Engine.
            arguments: those that relevance was computed of; ``targets``: classes ``(k, b)``.

        Raises:
            ValueError: for NaN and infinite values, and for relevance that is more than rules can make of what was
                sent; names the worst step.
        """
        if not np.isfinite(sums).all():
            raise ValueError(
                f"{self._name} found NaN or infinite values; expected a model whose weights, scores and relevance are "
                "finite for these images."
            )
        sent, arrived, size_sent, size_arrived = np.moveaxis(sums, -1, 0)
        grown = size_arrived > self._engine.growth * size_sent
        if grown.any():
            k = int(np.argmax(grown.any(1)))
            row = max(self._rows(arguments, targets[k]), key=lambda row: np.nan_to_num(row.growth, nan=np.inf))
            raise ValueError(
                f"Expected at most {self._engine.growth:.3g} times the relevance that was sent, all that rules make "
                f"of it; received {size_arrived[grown].max():.3g} from {size_sent[grown].max():.3g}. Most of "
                f"it was made at {row}. Take another rule there."
            )
        # Of a contrast nothing is left where all is well, so that it cannot tell what was lost.
        tells = self._engine.to_input and self._engine.conserving and not (self._contrast or self._engine.negate)
        whole, conserved = np.abs(sent).sum(1), (np.sign(sent) * arrived).sum(1)
        if tells and not self._warned and conserved.sum() < _LOST * whole.sum():
            self._warned = True
            rows = self._rows(arguments, targets[int(np.argmax(whole - conserved))])
            row = max(rows, key=lambda row: abs(row.arrived - row.passed))
            warnings.warn(
                f"Only {conserved.sum() / whole.sum():.1%} of the relevance that was sent arrives at the input. Most "
                f"goes missing at {row}; report(x) lists all steps.",
                stacklevel=4,
            )

    def asserted(self, maps, sums):
        """``maps``, once it is known that they are finite and not too large, inside a compiled function."""
        allowed = sums[..., 3] <= min(self._engine.growth, sums.dtype.max) * sums[..., 2]
        message = f"{self._name}: expected finite relevance, no more than rules can make of what was sent."
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(allowed), [message])]):
            return tf.identity(maps)

    def _rows(self, arguments, ids):
        return self._engine.report(self._engine.relevance(arguments, ids[None], self._contrast, audit=True)).rows
