"""Patch-Fool (Fu et al. 2022): patches on the tokens that get most attention, optimised for class and attention."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, caches, checks, taps
from keras_capsvit.attacks.adam import adam
from keras_capsvit.attacks.base import Attack, AttackWithResult
from keras_capsvit.attacks.examine import judged
from keras_capsvit.attacks.norms import per_image
from keras_capsvit.attacks.patch_result import PatchResult, pixel_limits
from keras_capsvit.batches import generators, numbered
from keras_capsvit.patches import PatchGrid, cut_patches

SELECTIONS = ("attention", "saliency", "random")
_LAYER = 5  # of twelve, counted from 1
_STEP = 0.2 * 0.226  # 0.2 of inputs divided by the standard deviation of ImageNet's pixels, a share of their range
_DECAY, _EVERY = 0.95, 10  # of the step size, steps
_LOOKED_AT = caches.Cache(256)


@dataclasses.dataclass(frozen=True)
class PatchFool(AttackWithResult):
    """Patches in place of a transformer's tokens, by Adam, that change the class and draw attention (Fu et al. 2022).

    Raises ``J = J_CE + α Σ_l J_l`` from random pixels; ``J_l`` is the attention in block ``l`` to their tokens,
    summed over heads and queries. A gradient of ``J_l`` that goes against that of ``J_CE`` loses its part along it
    (PCGrad). A patch covers a token, of those that get most attention of all heads and queries in one block. Every
    image takes all steps, those that are fooled from the start too.

    Of models without attention over all tokens of an image, such as CNNs, patches are those of the highest saliency,
    the absolute gradient of ``J_CE``, and ``J`` is ``J_CE`` alone.

    Args:
        patches: int >= 1, on each image.
        patch_size: int, or pair of ints ``(h, w)``, cells of a grid from the top left; None for the size of the model's
            tokens, the only one where attention counts.
        select: ``"attention"``, ``"saliency"`` or ``"random"``, which patches; None for attention where there is any,
            and else saliency.
        layer: int >= 1, block whose attention selects; None for the fifth, or the last of fewer.
        attention_weight: float >= 0, ``α``; 0 for ``J_CE`` alone.
        epsilon: float >= 0, largest change of a pixel; None for pixels anywhere within the bounds.
        step_size: float >= 0, of Adam, in units of the pixels; None for 0.0452 of their range, which is 0.2 of inputs
            normalised by ImageNet's standard deviation. It falls by a factor 0.95 every ten steps.
        steps: int >= 1.
        bounds: pair, the range of pixels, see Attack.
        seed: int, of the pixels that patches begin with, and of the selection at random.

    Call: see Attack. ``run`` returns more.

    Raises:
        ValueError: for settings out of range; and when called, for a model without tokens if ``patch_size`` or
            ``select`` need them, and more patches than there are.

    Example::

        result = PatchFool().run(vit, x, y)
        print(result.fooled.mean(), result.positions[:, 0])
    """

    _: dataclasses.KW_ONLY
    patches: int = 1
    patch_size: int | tuple | None = None
    select: str | None = None
    layer: int | None = None
    attention_weight: float = 0.002
    epsilon: float | None = None
    step_size: float | None = None
    steps: int = 250
    bounds: tuple = (0.0, 1.0)
    seed: int = 0
    norm: str = dataclasses.field(default="linf", init=False)

    numeric = (*Attack.numeric, "attention_weight", "patch_size", "select")

    def __post_init__(self):
        self.check_settings(at_least_0=("epsilon", "step_size", "attention_weight"), counts=("patches", "steps"))
        if self.patch_size is not None:
            object.__setattr__(self, "patch_size", checks.pair(self.patch_size, "patch_size"))
        if self.select is not None:
            checks.choice("select", self.select, SELECTIONS)
        if self.layer is not None:
            checks.positive_int("layer", self.layer)

    def run(self, objective, x, y, targeted=False, *, numbers=None):
        """Attack images, see ``AttackWithResult.run``; returns a PatchResult.

        Raises:
            ValueError: see Attack and PatchFool.
        """
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        numbers = numbered(len(x), numbers)
        prefix, grid = self._tokens(objective, x)
        checks.integer("patches", self.patches, 1, len(grid))
        cells = self._cells(objective, x, y, prefix, grid, numbers)
        positions, size, sign = grid.positions[cells], grid.patch_size, np.float32(-1 if targeted else 1)
        low, high = pixel_limits(x, positions, size, self.limits(x), self.epsilon)
        noise = np.reshape([random.uniform(size=x.shape[1:]) for random in generators(self.seed, numbers)], x.shape)
        start = (low + noise * (high - low)).astype("float32")
        if not len(x):
            return PatchResult(x, cut_patches(x, positions, size), positions, np.zeros(0, bool), np.zeros(0, int))
        attends = prefix is not None and self.attention_weight > 0
        search = self.compiled(objective, "_attentive_search" if attends else "_plain_search")
        tokens = (cells + (prefix or 0)).astype("int32")
        ones = np.ones((len(x), _looked_at(objective, x)[2]), "float32")
        settings = np.int32(self.steps), self._step(x), ones, np.float32(self.attention_weight), sign, self.limits(x)
        images = ops.convert_to_numpy(search(start, low, high, y, tokens, *settings))
        self.check_result(objective, start, images, y, targeted)
        fooled = judged(objective, images, y, sign)
        return PatchResult(images, cut_patches(images, positions, size), positions, fooled, np.full(len(x), self.steps))

    def _step(self, x):
        """Step size of Adam, a number, or ``(C,)`` where channels have their own bounds."""
        if self.step_size is not None:
            return np.float32(self.step_size)
        return np.float32(_STEP) * (self.limits(x)[1] - self.limits(x)[0])

    def _tokens(self, objective, x):
        """How many tokens lie in front of the patches, None of a model without attention to them; and a PatchGrid."""
        prefix, cells, _, reason = _looked_at(objective, x)
        if prefix is None:
            if self.patch_size is None or self.select == "attention":
                raise ValueError(
                    f"{reason} Expected such a model; of others give patch_size, such as PatchFool(patch_size=16), and "
                    "leave select='attention' out."
                )
            return None, PatchGrid(x.shape[1:], self.patch_size)
        size = tuple(side // count for side, count in zip(x.shape[1:3], cells, strict=True))
        if self.patch_size not in (None, size):
            raise ValueError(
                f"patch_size must be that of the model's tokens, {size}, or None; received {self.patch_size}."
            )
        return prefix, PatchGrid(x.shape[1:], size)

    def _cells(self, objective, x, y, prefix, grid, numbers):
        """Cells of the grid that patches cover, ints ``(b, n)``, those that count most first."""
        if self.select == "random" or not len(x):
            return grid.draw(numbers, self.patches, seed=self.seed)
        if prefix is None or self.select == "saliency":
            gradient = objective.compiled(
                "saliency", lambda objective: autodiff.gradient(objective.loss_and_scores, has_aux=True)
            )
            slope = np.abs(ops.convert_to_numpy(gradient(x, y)[1]))
            weights = cut_patches(slope, grid.positions, grid.patch_size).sum(axis=(2, 3, 4))
        else:
            blocks = _looked_at(objective, x)[2]
            layer = min(_LAYER, blocks) if self.layer is None else checks.integer("layer", self.layer, 1, blocks)
            attention = objective.compiled(("attention of all", layer), _attention_of(layer - 1))
            weights = ops.convert_to_numpy(attention(x, y))[:, prefix:]
        return np.argsort(-weights, axis=1, kind="stable")[:, : self.patches]

    def _attentive_search(self, objective):
        def attended(x, y, tokens):
            each = objective.loss_and_attention(x, y)[1]
            each = [ops.take_along_axis(_received(attention), tokens, axis=1) for attention in each]
            return ops.stack([ops.sum(attention, axis=1) for attention in each], axis=1)

        return _search(objective.loss, attended)

    def _plain_search(self, objective):
        return _search(objective.loss, None)


def _looked_at(objective, x):
    """Tokens in front of the patches, None where none are seen; their grid; how many blocks; and why none are seen."""
    owners, which, _ = objective.parts()

    def look():
        if objective.subject is None:
            return None, None, 0, "Expected an objective of a model's logits; this is another."
        try:
            return *taps.tokens(objective.subject, x), len(taps.attentions(objective.subject, x)), None
        except ValueError as error:
            return None, None, 0, str(error)

    return _LOOKED_AT.get(owners, (which, x.shape[1:]), look)


def _attention_of(position):
    """Maker of a function of images and class ids: attention that all tokens of a block get, ``(b, t)``."""
    return lambda objective: lambda x, y: _received(objective.loss_and_attention(x, y)[1][position])


def _received(attention):
    """What each token gets of attention ``(b, heads, t, t)``, summed over heads and queries, float32 ``(b, t)``."""
    return ops.sum(ops.cast(attention, "float32"), axis=(1, 2))


def _search(loss, attended):
    """Steps of Adam that raise ``loss (b,)`` and, where that does not lower it, the sum of ``attended (b, k)``."""
    gradient = autodiff.gradient(loss)

    def combined(loss_slope, x, y, tokens, unit, ones, weight):
        """Gradient of the loss with those of what is attended, of which what goes against it is left out."""

        def along(ones, x):
            total = autodiff.gradient(lambda x: ops.sum(ones * attended(x, y, tokens), axis=1))
            slope = total(x)[1] * unit
            return ops.sum(slope * loss_slope, axis=(1, 2, 3)), slope

        # The product of each gradient with the first by a gradient of its own, instead of one gradient for each of k.
        (_, slope), products = autodiff.gradient(along, has_aux=True)(ones, x)
        length = ops.sum(ops.square(loss_slope), axis=(1, 2, 3))
        against = ops.sum(ops.minimum(products, 0.0), axis=1) / ops.where(ops.equal(length, 0), 1.0, length)
        return loss_slope + weight * (slope - per_image(against) * loss_slope)

    def search(x, low, high, y, tokens, steps, step_size, ones, weight, sign, limits):
        unit = (limits[1] - limits[0]) * ops.cast(high > low, "float32")  # so that Adam knows shares of the range

        def step(i, x, mean, square):
            slope = sign * gradient(x, y)[1] * unit
            if attended is not None:
                slope = combined(slope, x, y, tokens, unit, ones, weight)
            change, mean, square = adam(i, slope, mean, square)
            size = step_size * _DECAY ** ops.cast(i // _EVERY, "float32")
            return i + 1, ops.minimum(ops.maximum(x + size * change, low), high), mean, square

        state = (0 * steps, x, ops.zeros_like(x), ops.zeros_like(x))
        return ops.while_loop(lambda i, *_: i < steps, step, state)[1]

    return search
