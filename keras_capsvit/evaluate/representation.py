"""What capsules represent: semantic compactness, and decoder sweeps."""

import numpy as np
from keras import ops

from keras_capsvit import checks


def _steps(low, high):
    return tuple(np.linspace(low, high, 11).round(2).tolist())


# The thesis names the six factors, but no ranges or steps; with these a 28x28 digit stays legible and in the frame.
FACTORS = {
    "rotation": _steps(-30, 30),  # degrees, counter-clockwise
    "trans_x": _steps(-4, 4),  # pixels, to the right
    "trans_y": _steps(-4, 4),  # pixels, downwards
    "scale": _steps(0.8, 1.2),  # ratio of sizes
    "shear_x": _steps(-0.4, 0.4),  # columns per row
    "shear_y": _steps(-0.4, 0.4),  # rows per column
}
OFFSETS = _steps(-0.25, 0.25)  # thesis 3.4.4


def vary(x, factor, degrees):
    """Change one latent factor of images by an affine map about their centre.

    Args:
        x: images ``(b, H, W, C)``.
        factor: str, a key of ``FACTORS``, whose comments name the units.
        degrees: n floats, how far; 1 leaves the scale as it is and 0 every other factor.

    Returns:
        Tensor ``(b, n, H, W, C)``, bilinear; what comes from outside the image is 0.

    Raises:
        ValueError: for images of another rank, an unknown factor, values that are not finite, or a scale not above 0.
    """
    x = checks.finite_array(x, "images", "(batch, height, width, channels)", 4)
    batch, height, width, _ = x.shape
    maps = _maps(factor, degrees, height, width)
    images = np.repeat(x, len(maps), axis=0)
    varied = ops.image.affine_transform(images, np.tile(maps, (batch, 1)), data_format="channels_last")
    return ops.reshape(varied, (batch, len(maps), *x.shape[1:]))


def compactness(represent, x, labels, *, factors=FACTORS, batch_size=128):
    """Semantic compactness: how few dimensions of a representation react to a latent factor (thesis 5.3.3, Table 5.5).

    For every image the factor takes all its degrees; the variances of the ``n`` dimensions over these, divided by
    their sum, are a distribution ``p``; the score is ``KL(p || uniform) = sum_k p_k log(n p_k)``, averaged over images.
    It lies in [0, log n], log n if one dimension changes alone. A representation that does not change at all, up to
    the rounding of float32, scores 0.

    Args:
        represent: callable from images to class capsules ``(b, j, e)``, of which the true class is kept (``n = e``), or
            to flat representations ``(b, n)``, which are kept whole.
        x: images ``(b, H, W, C)``, read in chunks.
        labels: class ids ``(b,)`` or ``(b, 1)``, or one-hot.
        factors: dict from names in ``FACTORS`` to two or more different degrees (see ``vary``).
        batch_size: int, images per call of ``represent``; more only where a single image has more degrees.

    Returns:
        dict from factors to float.

    Raises:
        ValueError: for images, labels or representations of another shape, labels out of range, no images, values
            that are not finite, and factors that ``vary`` refuses or that have less than two degrees.

    Example::

        scores = evaluate.compactness(taps.tap(model, "capsules"), x, y)  # {"rotation": 0.0031, ...}
    """
    x = checks.numbers(x, "images")
    if x.ndim != 4 or not x.size:
        raise ValueError(f"Expected images of shape (batch, height, width, channels), not empty; received {x.shape}.")
    ids = checks.class_ids(labels, len(x))
    checks.batch_size(batch_size)
    checks.function("represent", represent, "from images to class capsules (b, j, e) or representations (b, n)")
    factors = checks.named("factors", factors, "degrees, such as evaluate.FACTORS")
    if not factors:
        raise ValueError(f"factors must name one of {tuple(FACTORS)} at least; received {{}}.")
    for factor, degrees in factors.items():
        _maps(factor, degrees, *x.shape[1:3])
        if len(set(degrees)) < 2:
            raise ValueError(f"Factor {factor!r} needs at least 2 different degrees; received {list(degrees)}.")
    return {factor: _compactness(represent, x, ids, factor, degrees, batch_size) for factor, degrees in factors.items()}


def sweep(decode, capsules, label=None, *, dims=None, offsets=OFFSETS):
    """Decode class capsules of one image with one dimension of one capsule moved (thesis Fig. 3.7, 4.4 and 5.4).

    The other capsules stay as they are: for a class-conditional decoder, set them to zero first (``CapsuleMask``).

    Args:
        decode: callable from class capsules ``(b, j, e)`` to images ``(b, H, W, C)``.
        capsules: array or tensor ``(j, e)``.
        label: int, the class whose capsule moves; None for the longest capsule.
        dims: ints in 0 ... e - 1, the dimensions to move; None for all of them.
        offsets: floats, what is added to the dimension.

    Returns:
        NumPy array ``(n_dims, n_offsets, H, W, C)``, for ``plot.sweep``.

    Raises:
        ValueError: for capsules or images of another shape, values that are not finite, no offsets, or a label or
            dimensions out of range.

    Example::

        capsules = CapsuleMask()(taps.tap(model, "capsules")(x[:1]), y[:1])[0]
        plot.sweep(evaluate.sweep(model.decoder, capsules), evaluate.OFFSETS).savefig("sweep.png")
    """
    capsules = checks.finite_array(capsules, "capsules", "(classes, dimension)", 2)
    if label is None:
        label = np.linalg.norm(capsules, axis=-1).argmax()
    checks.function("decode", decode, "from class capsules (b, j, e) to images (b, H, W, C)")
    label = checks.integer("label", label, 0, len(capsules) - 1)
    dims = list(range(capsules.shape[1])) if dims is None else checks.integers("dims", dims, (None,), "(n,)").tolist()
    if not dims or max(dims) >= capsules.shape[1]:
        raise ValueError(f"Expected at least 1 dimension between 0 and {capsules.shape[1] - 1}; received {dims}.")
    offsets = checks.finite_array(offsets, "offsets", "(n_offsets,)", 1)
    moved = np.tile(capsules, (len(dims), len(offsets), 1, 1))
    for row, dim in enumerate(dims):
        moved[row, :, label, int(dim)] += offsets
    images = checks.numbers(decode(ops.convert_to_tensor(moved.reshape(-1, *capsules.shape))), "decoded images")
    if images.ndim != 4 or len(images) != len(dims) * len(offsets):
        raise ValueError(
            f"decode must return images of shape ({len(dims) * len(offsets)}, height, width, channels); "
            f"received {images.shape}."
        )
    return checks.finite(images, "images of the decoder").reshape(len(dims), len(offsets), *images.shape[1:])


def _maps(factor, degrees, height, width):
    """Affine maps ``(n, 8)`` from output to input points ``(column, row)``, as ``affine_transform`` wants them."""
    if not isinstance(factor, str) or factor not in FACTORS:
        raise ValueError(f"Unknown factor {factor!r}; expected one of {', '.join(FACTORS)}.")
    degrees = checks.finite_array(degrees, f"degrees of {factor}", "(n,)", 1)
    if factor == "scale" and degrees.min() <= 0:
        raise ValueError(f"Degrees of scale must be above 0; received {degrees.min()}.")
    centre = (np.array([width, height]) - 1) / 2
    maps = []
    for degree in degrees.tolist():
        angle = np.deg2rad(degree)
        forward = {
            "rotation": [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]],  # rows grow downwards
            "scale": [[degree, 0], [0, degree]],
            "shear_x": [[1, degree], [0, 1]],
            "shear_y": [[1, 0], [degree, 1]],
        }.get(factor, np.eye(2))
        shift = {"trans_x": [degree, 0], "trans_y": [0, degree]}.get(factor, [0, 0])
        back = np.linalg.inv(forward)
        start = centre - back @ (centre + shift)
        maps.append([*back[0], start[0], *back[1], start[1], 0, 0])
    return np.array(maps, "float32")


def _compactness(represent, x, ids, factor, degrees, batch_size):
    n = len(degrees)
    step = max(1, batch_size // n)
    scores = []
    for start in range(0, len(x), step):
        varied = vary(x[start : start + step], factor, degrees)
        vectors = represent(ops.reshape(varied, (-1, *x.shape[1:])))
        vectors = checks.numbers(vectors, "representations").astype("float64")
        classes = np.repeat(ids[start : start + step], n)
        if vectors.ndim not in (2, 3) or len(vectors) != len(classes) or not vectors.size:
            raise ValueError(
                f"represent must return class capsules ({len(classes)}, classes, dimension) or flat representations "
                f"({len(classes)}, dimension); received shape {vectors.shape}."
            )
        if vectors.ndim == 3:
            vectors = vectors[np.arange(len(classes)), checks.class_ids(classes, len(classes), vectors.shape[1])]
        if not np.isfinite(vectors).all():
            raise ValueError("represent must return finite values; received NaN or infinite ones.")
        scores.append(_divergence(vectors.reshape(-1, n, vectors.shape[-1])))
    return float(np.concatenate(scores).mean())


def _divergence(vectors):
    """KL divergence ``(b,)`` of the normalised variances of ``(b, degrees, n)`` from the uniform distribution."""
    variance = vectors.var(axis=1)
    # Networks compute in float32: what stays within a few units of rounding did not change.
    variance[np.ptp(vectors, axis=1) <= 1e-6 * np.abs(vectors).max(axis=(1, 2))[:, None]] = 0.0
    total = variance.sum(axis=-1, keepdims=True)
    share = variance / np.where(total > 0, total, 1.0)
    return np.sum(share * np.log(np.where(share > 0, share * vectors.shape[-1], 1.0)), axis=-1)
