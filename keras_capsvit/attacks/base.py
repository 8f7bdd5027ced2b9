"""What all attacks share: checked input, and compiled functions that are kept with what they attack."""

import dataclasses

from keras_capsvit import autodiff
from keras_capsvit.attacks.checks import check_inputs, examine
from keras_capsvit.attacks.norms import NORMS
from keras_capsvit.attacks.objectives import natural


class Attack:
    """An attack: a frozen dataclass of its settings, among them ``norm`` and ``bounds``.

    Call: ``attack(objective, x, y, targeted=False)`` with images ``x (b, H, W, C)`` within bounds and class ids
    ``y (b,)``, the true classes or, with ``targeted``, the classes wanted. ``objective`` is an Objective, or a model or
    callable, whose ``natural`` one is taken. Returns adversarial images, a float32 array of the shape of ``x``.

    Raises:
        ValueError: for settings out of range, and for input that ``check_inputs`` and ``examine`` describe.
    """

    def prepare(self, objective, x, y):
        """The Objective that ``objective`` stands for, and checked arrays of images and labels."""
        objective = natural(objective)
        x, y = check_inputs(x, y, self.bounds)
        examine(objective, x, y)
        return objective, x, y

    def compiled(self, objective, make):
        """``make(objective)``, compiled once per attack and objective; random starts share one trace.

        Args:
            objective: Objective.
            make: method of the attack, from an Objective to a function of tensors.

        Returns:
            Callable of tensors or arrays.
        """
        seedless = dataclasses.replace(self, seed=0) if hasattr(self, "seed") else self
        key = (seedless, make.__name__)
        if key not in objective.compiled:
            objective.compiled[key] = autodiff.compile(make(objective), objective.variables)
        return objective.compiled[key]

    def check_ranges(self, at_least_0=(), at_least_1=()):
        """Refuse a norm and bounds that are none, and the named settings below 0 or 1; None is no limit."""
        for lowest, names in ((0, at_least_0), (1, at_least_1)):
            for name in names:
                value = getattr(self, name)
                if value is not None and not value >= lowest:
                    raise ValueError(f"{name} must be at least {lowest}; received {name}={value}.")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {tuple(NORMS)}; received {self.norm!r}.")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be (lowest, highest) pixel value; received {self.bounds}.")
