"""How many images no patch can change the class of, which is proved: derandomised smoothing."""

import dataclasses
import functools
import math
import time

import numpy as np
from keras import ops

from keras_capsvit import checks, taps
from keras_capsvit.evaluate.ablations import Ablations
from keras_capsvit.evaluate.fills import broadcast
from keras_capsvit.evaluate.judge import Judge, streamed
from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.patches import PatchGrid


@dataclasses.dataclass(frozen=True)
class CertifiedPatchAccuracy:
    """What a smoothed model does, and what no patch can make it do otherwise.

    Args:
        examples: int, how many were classified.
        accuracy: float, share that the smoothed model classifies correctly.
        certified_accuracy: float, share that it classifies correctly whatever a patch shows, wherever it lies.
        ablations: int, of each image.
        affected: int, ablations that a patch can change at most.
        counts: ints ``(b, M)``, votes of the ablations for each class.
        predictions: ints ``(b,)``, classes of the most votes; of several, the first.
        correct: bools ``(b,)``.
        certified: bools ``(b,)``, whether no patch can change the prediction, right or wrong.
        seconds_per_example: float.
    """

    examples: int
    accuracy: float
    certified_accuracy: float
    ablations: int
    affected: int
    counts: np.ndarray
    predictions: np.ndarray
    correct: np.ndarray
    certified: np.ndarray
    seconds_per_example: float


def certified_patch_accuracy(
    model,
    dataset,
    patch_size,
    *,
    size,
    ablation="column",
    stride=1,
    fill=0.0,
    threshold=None,
    drop_tokens=False,
    batch_size=128,
    work=None,
) -> CertifiedPatchAccuracy:
    """Accuracy that no patch can lower, of a smoothed model (Levine & Feizi 2020; with ViTs, Salman et al. 2022).

    The model votes on every ablation of an image, of which a column (or a block) stays and the rest is filled. A patch
    is visible in at most ``affected`` of them. So it cannot change a class that leads every other by twice as many
    votes, and by one more where the other is of lower index, which wins ties.

    Train the model on ablations as well, see ``layers.Ablation``: one that never saw them certifies little.

    Args:
        model: model, live or served, or callable ``x (b, H, W, C) → scores (b, M)``, of a vote.
        dataset: see ``robustness``.
        patch_size: int, or pair of ints ``(h, w)``, of the patches to withstand.
        size: int from 1 to the side of the images, pixels that stay: the width of a column, or the side of a block.
        ablation: ``"column"``, of all rows; or ``"block"``, as many as an image has pixels.
        stride: int, pixels from one ablation to the next. Salman et al. take 10 at 224 pixels; where the stride does
            not divide the side, more of them are affected than their formula says, which is counted here.
        fill: float, or array ``(C,)`` or ``(H, W, C)``, what is not visible: the same for all images, and as in
            training. A value that no pixel has, such as -1, tells what is missing from what is black.
        threshold: float in (0, 1], an ablation votes for every class of at least this probability, as Levine & Feizi
            (0.3); None for the class of the highest score, as Salman et al.
        drop_tokens: bool, run only the tokens of patches that any pixel is visible of, which is faster; of
            VisionTransformer and DeiT.
        batch_size: int >= 1, ablations of a pass.
        work: see ``robustness``. What is kept are votes, so the same folder serves every ``patch_size`` at once.

    Returns:
        CertifiedPatchAccuracy.

    Raises:
        ValueError: for an empty data set, images of several sizes, settings out of range, and a model without tokens
            that are to be dropped.

    Example::

        result = evaluate.certified_patch_accuracy(vit, test, 32, size=19, stride=10, drop_tokens=True, work="work")
        print(result.accuracy, result.certified_accuracy)
    """
    checks.booleans(drop_tokens=drop_tokens)
    if threshold is not None:
        checks.number("threshold", threshold, 0, 1, without=(0,))
    fill = _constant(fill)
    judge, patch_size = Judge(model), checks.pair(patch_size, "patch_size")
    vote = _Voting(model, judge, threshold, drop_tokens)
    cut = functools.partial(Ablations, size=size, kind=ablation, stride=stride)
    settings = {"model": model, "ablation": ablation, "size": size, "stride": stride, "fill": fill}
    settings |= {"threshold": threshold, "drop_tokens": drop_tokens}
    images, ablations = _images_of_a_pass(dataset, cut, batch_size), None
    total = checks.batches_in(dataset, images)
    with Progress(work, "certified_patch_accuracy", settings, judges=[judge], total=total) as progress:
        for x, y in checks.batches_of(dataset, images):
            if not len(x):
                continue
            ablations = ablations or cut(x.shape[1:3])
            checks.of_size(x, (*ablations.image_shape, None), "the first batch")
            PatchGrid(x.shape[1:], patch_size)  # which says if a patch does not fit
            progress.batch(functools.partial(_measured, vote, ablations, x, y, fill, drop_tokens, batch_size), x, y)
    if ablations is None:
        raise ValueError("Expected at least one example; the data set is empty.")
    measured, affected = progress.results(), ablations.affected(patch_size)
    counts, correct = measured["counts"], measured["correct"]
    certified = _certified(counts, affected)
    return CertifiedPatchAccuracy(
        examples=len(counts),
        accuracy=float(correct.mean()),
        certified_accuracy=float((correct & certified).mean()),
        ablations=len(ablations),
        affected=affected,
        counts=counts,
        predictions=counts.argmax(axis=1),
        correct=correct,
        certified=certified,
        seconds_per_example=float(measured["seconds"].mean()),
    )


def _certified(counts, affected):
    """Whether no change of some votes for and against each class changes which has the most; bools ``(b,)``."""
    winner, classes = counts.argmax(axis=1)[:, None], np.arange(counts.shape[1])
    lead = np.take_along_axis(counts, winner, axis=1) - counts - (classes < winner)
    return np.all((lead >= 2 * affected) | (classes == winner), axis=1)


def _measured(vote, ablations, x, y, fill, drop_tokens, batch_size):
    """Votes of the ablations of images, arrays ``(b, ...)``."""
    started = time.perf_counter()
    filled = broadcast(fill, x, "fill")
    visible = ablations.visible(np.arange(len(ablations)))
    tokens = vote.tokens_of(visible, x) if drop_tokens else np.zeros((len(visible), 0), bool)
    counts = 0
    for number in np.unique(tokens.sum(axis=1)):  # of tokens: as many in every image of a pass
        group = np.flatnonzero(tokens.sum(axis=1) == number)
        token_ids = np.nonzero(tokens[group])[1].reshape(len(group), number)
        size = math.ceil(len(x) * len(group) / math.ceil(len(x) * len(group) / batch_size))  # of passes of equal size

        def cut(indices, group=group, token_ids=token_ids):
            image, which = np.divmod(indices, len(group))
            return np.where(visible[group[which]], x[image], filled[image]), token_ids[which]

        votes = streamed(vote, cut, len(x) * len(group), size)
        counts = counts + votes.reshape(len(x), len(group), -1).sum(axis=1)
    correct = counts.argmax(axis=1) == checks.class_ids(y, len(x), counts.shape[1])
    seconds = (time.perf_counter() - started) / len(x)
    return {"counts": counts, "correct": correct, "seconds": np.full(len(x), seconds)}


class _Voting:
    """Votes ``(k, M)``, bools, of ablated images ``(k, H, W, C)`` and their tokens ``(k, t)``."""

    def __init__(self, model, judge, threshold, drop_tokens):
        self._model, self._judge, self._threshold, self._drop_tokens = model, judge, threshold, drop_tokens
        self._grid = None  # of tokens, which is looked at once
        if drop_tokens and not hasattr(model, "logits_of_tokens"):
            raise ValueError(
                "drop_tokens=True expects a live VisionTransformer or DeiT of this package, which has the method "
                f"logits_of_tokens; received {getattr(model, 'name', None) or type(model).__name__}. Leave it out."
            )

    def __call__(self, x, tokens):
        if self._threshold is not None:
            return self._values(x, tokens, "probabilities") >= self._threshold
        values = self._values(x, tokens, "scores")
        return values.argmax(axis=1)[:, None] == np.arange(values.shape[1])

    def tokens_of(self, visible, x):
        """Which tokens anything is visible of, bools ``(k, tokens)``."""
        self._grid = self._grid or taps.tokens(taps.scores(self._model), x)[1]
        height, width = self._grid
        cells = visible.reshape(len(visible), height, x.shape[1] // height, width, x.shape[2] // width)
        return cells.any(axis=(2, 4)).reshape(len(visible), -1)

    def _values(self, x, tokens, kind):
        if not self._drop_tokens:
            return self._judge.probabilities(x) if kind == "probabilities" else self._judge(x)
        # A function for each number of tokens: these are shapes that a trace has to know.
        function = taps.compiled(self._model, f"{kind} of {tokens.shape[1]} tokens", _OF_TOKENS[kind])
        values = ops.convert_to_numpy(function(x, tokens.astype("int32")))
        return checks.finite(values, f"scores of {self._model.name}")


_OF_TOKENS = {
    "scores": lambda scores: scores.model.logits_of_tokens,
    "probabilities": lambda scores: lambda x, tokens: ops.softmax(scores.model.logits_of_tokens(x, tokens)),
}


def _constant(fill):
    """What fills every image alike, a float or an array; what depends on the image a patch would change as well."""
    if isinstance(fill, str):
        raise ValueError(
            f"fill must be a number, or an array (C,) or (H, W, C), the same for all images; received {fill!r:.60}. "
            "What is computed from an image a patch on it changes too, in every ablation."
        )
    fill = checks.finite(checks.numbers(fill, "fill").astype("float32"), "fill")
    if fill.ndim > 3:
        raise ValueError(f"fill must be a number, or an array (C,) or (H, W, C); received shape {fill.shape}.")
    return fill if fill.ndim else fill.item()


def _images_of_a_pass(dataset, cut, batch_size):
    """How many images of a pair of arrays are looked at, and kept, at a time; batches of other data sets stay."""
    checks.batch_size(batch_size)
    shape = getattr(dataset[0], "shape", ()) if isinstance(dataset, tuple | list) and len(dataset) == 2 else ()
    return max(1, batch_size // len(cut(shape[1:3]))) if len(shape) == 4 and 0 not in shape else batch_size
