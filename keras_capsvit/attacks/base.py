"""What all attacks share: checked input, settings as arguments, and compiled functions that are kept."""

import dataclasses
from typing import ClassVar

import numpy as np

from keras_capsvit import checks
from keras_capsvit.attacks.examine import check_result, examine
from keras_capsvit.attacks.losses import loss_and_scores
from keras_capsvit.attacks.objectives import natural

_MOST = 2**31 - 1  # counts are 32-bit arguments of compiled functions


class Attack:
    """An attack: a frozen dataclass of its settings, among them ``norm`` and ``bounds``.

    Call: ``attack(objective, x, y, targeted=False, *, numbers=None)`` with images ``x (b, H, W, C)`` within bounds and
    class ids ``y (b,)`` (or ``(b, 1)``, or one-hot), the true classes or, with ``targeted``, the classes wanted.
    ``objective`` is an Objective, or a model or callable, whose ``natural`` one is taken. ``numbers``, ints ``(b,)``,
    says which images of a data set these are, because what is drawn for an image depends on the seed and its number
    alone; None for 0 to b - 1. Returns adversarial images, a float32 array of the shape of ``x``.

    ``bounds`` is the range of pixels, a pair of numbers, or of sequences of one number per channel. What has a default
    of None and a unit, such as a step size, follows from other settings when the attack runs, so
    ``dataclasses.replace`` changes one setting and what depends on it.

    Raises:
        ValueError: for settings out of range; images that are not finite or outside the bounds; labels that are no
            classes; scores that are not finite; and, of an attack that uses gradients, a gradient that is zero for all
            images that are not fooled, and a callable that leaves the graph.
    """

    # Settings that compiled functions get as arguments. All others are part of what is compiled.
    numeric: ClassVar[tuple[str, ...]] = ("epsilon", "step_size", "steps", "bounds", "seed")
    raised = staticmethod(loss_and_scores)
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")  # that the attack can have
    uses_gradients = True  # else scores alone, also of callables that leave the graph

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        raise NotImplementedError

    def prepare(self, objective, x, y, targeted=False, numbers=None):
        """The Objective that ``objective`` stands for, and checked arrays of images and labels."""
        checks.booleans(targeted=targeted)
        objective = natural(objective)
        x = checks.images(x, bounds=self.bounds)
        checks.of_size(x, objective.input_shape, getattr(objective.model, "name", "the model"))
        ids = checks.class_ids(y, len(x))
        if len(x):
            ids = checks.class_ids(y, len(x), examine(objective, x, self.uses_gradients))
        if numbers is not None:
            checks.integers("numbers", numbers, (len(x),), f"({len(x)},), one for each image")
        return objective, x, ids

    def compiled(self, objective, make):
        """What a method of the attack makes, compiled once per objective and per settings that are no numbers.

        Args:
            objective: Objective.
            make: str, name of a method from an Objective to a function of tensors.

        Returns:
            Callable of tensors or arrays.
        """
        attack, owners = self.weak()
        key = (type(self), make, self.structure(), np.ndim(self.bounds[0]))  # of what traces of one rank serve
        return objective.compiled(key, getattr(attack, make), owners)

    def structure(self):
        """Hashable of the settings that are compiled, which are all but those that ``numeric`` names."""
        names = (field.name for field in dataclasses.fields(self) if field.name not in self.numeric)
        return tuple((name, getattr(self, name)) for name in names)

    def weak(self):
        """The attack without references to models, and the objects that it refers to weakly instead, a tuple."""
        return self, ()

    def limits(self, x):
        """Bounds, an argument of compiled functions: an array ``(2,)``, or ``(2, C)`` where channels have their own."""
        return np.stack(checks.limits(self.bounds, x.shape[-1]))

    def unit(self, x):
        """The range of pixels, its mean over channels: what defaults without a unit are shares of."""
        low, high = self.limits(x)
        return np.float32(np.mean(high - low))

    def check_result(self, objective, start, result, y, targeted):
        """Refuse a result that is not finite, or that is the start because no gradient reached the pixels."""
        rounding = checks.TOLERANCE * self.unit(start)
        check_result(objective, start, result, y, targeted, self.raised, rounding)

    def check_settings(self, *, above_0=(), at_least_0=(), counts=()):
        """Refuse named settings that are no finite numbers above 0 or from 0 (None is no limit), or no integers from 1;
        and flags, a seed, a norm and bounds that are none."""
        optional = {field.name for field in dataclasses.fields(self) if field.default is None}
        for names, without in ((above_0, (0,)), (at_least_0, ())):
            for name in names:
                if getattr(self, name) is not None or name not in optional:
                    checks.number(name, getattr(self, name), 0, without=without)
        for name in counts:
            checks.positive_int(name, getattr(self, name), _MOST)
        flags = (field.name for field in dataclasses.fields(self) if isinstance(field.default, bool))
        checks.booleans(**{name: getattr(self, name) for name in flags})
        if hasattr(self, "seed"):
            checks.integer("seed", self.seed)
        checks.choice("norm", self.norm, self.norms)
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))


class AttackWithResult(Attack):
    """An attack that returns more than images by its ``run``; called, it returns the ``images`` of that."""

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        return self.run(objective, x, y, targeted, numbers=numbers).images

    def run(self, objective, x, y, targeted=False, *, numbers=None):
        """Attack images.

        Args:
            objective: see Attack, as are the others.
            x: images ``(b, H, W, C)``.
            y: class ids ``(b,)``.
            targeted: bool.
            numbers: ints ``(b,)``.

        Returns:
            Result, whose ``images (b, H, W, C)`` are what a call returns, and whose ``fooled (b,)`` says which of them
            fool the objective.

        Raises:
            ValueError: as Attack.
        """
        raise NotImplementedError
