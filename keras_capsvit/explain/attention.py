"""Explanations that a model computes anyway: its attention."""

import numpy as np
from keras import ops

from keras_capsvit.taps import tap


class GraphAttention:
    """Built-in explanation of a graph capsule network: its attention, averaged over heads (thesis Eq. 3.7).

    Args:
        model: live or served model with the taps ``attention (b, h, w, l, M)`` and ``lengths``.
        batch_size: int, images per pass.

    Raises:
        ValueError: if the model has no attention tap.

    Example::

        maps = GraphAttention(model)(x)              # for the predicted classes
        maps = GraphAttention(model)(x, target=3)    # for class 3
    """

    def __init__(self, model, *, batch_size=128):
        self.batch_size = batch_size
        self._forward = tap(model, ["lengths", "attention"])

    def __call__(self, x, target=None):
        """Explain images.

        Args:
            x: images ``(b, H, W, C)`` in [0, 1].
            target: class id, ids ``(b,)``, or None for the predicted class.

        Returns:
            NumPy array ``(b, H, W)``: the attention of the ``h w`` nodes, enlarged bilinearly. On the node grid a map
            sums to 1.

        Raises:
            ValueError: for images of another rank, or a target out of range.
        """
        x = np.asarray(x, dtype="float32")
        if x.ndim != 4:
            raise ValueError(f"Expected images of shape (batch, height, width, channels); received {x.shape}.")
        maps = []
        for start in range(0, len(x), self.batch_size):
            lengths, attention = self._forward(x[start : start + self.batch_size])
            lengths = ops.convert_to_numpy(lengths)
            chosen = lengths.argmax(-1) if target is None else _ids(target, len(x))[start : start + self.batch_size]
            if chosen.min() < 0 or chosen.max() >= lengths.shape[-1]:
                raise ValueError(
                    f"Expected targets between 0 and {lengths.shape[-1] - 1}; received values between "
                    f"{chosen.min()} and {chosen.max()}."
                )
            mean = ops.convert_to_numpy(ops.mean(attention, axis=3)).astype("float32")
            mean = np.take_along_axis(mean, chosen[:, None, None, None], axis=-1)
            maps.append(ops.convert_to_numpy(ops.image.resize(mean, x.shape[1:3], data_format="channels_last"))[..., 0])
        return np.concatenate(maps) if maps else np.zeros(x.shape[:3], "float32")


def _ids(target, batch):
    ids = np.asarray(target)
    if ids.shape not in ((), (batch,)) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"target must be a class id or integer ids of shape ({batch},); received shape {ids.shape} of {ids.dtype}."
        )
    return np.broadcast_to(ids, (batch,))
