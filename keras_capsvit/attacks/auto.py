"""AutoAttack: several attacks one after the other, each on the images that are left; the worst case of each image."""

import dataclasses
import warnings

import numpy as np

from keras_capsvit import checks
from keras_capsvit.attacks.apgd import APGD
from keras_capsvit.attacks.base import Attack, AttackWithResult
from keras_capsvit.attacks.examine import examine, judged
from keras_capsvit.attacks.fab import FAB
from keras_capsvit.attacks.square import Square
from keras_capsvit.batches import fewest, numbered

VERSIONS = ("standard", "plus", "rand", "custom")
CLEAN = "clean"
_LOOKS = 5  # at the scores of the same images
_SQUARE_FINDS = 0.002  # share of all images that is still within what random search adds


@dataclasses.dataclass
class AutoAttackResult:
    """What AutoAttack came to.

    Args:
        images: ``(b, H, W, C)``, float32; those that nothing fools as they were.
        fooled: bools ``(b,)``, whether they fool the objective.
        broken_by: str ``(b,)``, the attack that found them; ``"clean"`` where the image fools by itself, ``""`` where
            nothing does.
        robust_accuracy: dict, by ``"clean"`` and the names of attacks in their order, the share of images that is not
            fooled after it. Attacks that nothing was left for are not in it.
        queries: ints ``(b,)``, images that score-based attacks asked the objective for.
    """

    images: np.ndarray
    fooled: np.ndarray
    broken_by: np.ndarray
    robust_accuracy: dict
    queries: np.ndarray


@dataclasses.dataclass(frozen=True)
class AutoAttack(AttackWithResult):
    """Attacks with nothing to choose, one after the other, each on the images that are not fooled yet (Croce and Hein
    2020; L1: 2021). Versions are those of the authors:

    - ``"standard"``: APGD on the cross-entropy, APGD towards 9 classes, FAB towards 9 classes, and Square with 5,000
      queries. In L1 the first with 5 restarts, the second towards 5 classes.
    - ``"plus"``: APGD on the cross-entropy and on the difference of logits ratio, with 5 restarts each; FAB with 5;
      Square; and APGD and FAB towards 9 classes.
    - ``"rand"``: for models that draw random numbers, the two APGD with the mean of 20 gradients for each step.

    For objectives of fewer than 4 classes, of which there is no targeted ratio, the margin takes its place, and a
    warning says so.

    Args:
        epsilon: float >= 0, radius of the ball, in units of the pixels.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        version: ``"standard"``, ``"plus"``, ``"rand"`` or ``"custom"``.
        attacks: dict from names to attacks, of ``"custom"``, in the order in which they run. They get the radius, norm,
            bounds and seed from here.
        bounds: pair, the range of pixels, see Attack.
        seed: int, of all attacks.

    Call: see Attack. ``run`` returns more. Whether an image is fooled is judged by the objective; images that fool it
    already stay as they are.

    Warns:
        UserWarning: of what makes robust accuracy look higher than it is: scores that differ from call to call and
            probabilities in place of logits; no gradient at the images that are left; and Square, which needs none,
            fooling what attacks by gradients did not.

    Example::

        result = attacks.AutoAttack(8 / 255).run(model, x, y)
        print(result.robust_accuracy)
    """

    epsilon: float
    _: dataclasses.KW_ONLY
    norm: str = "linf"
    version: str = "standard"
    attacks: dict | tuple | None = None
    bounds: tuple = (0.0, 1.0)
    seed: int = 0

    norms = ("linf", "l2", "l1")

    def __post_init__(self):
        self.check_settings(at_least_0=("epsilon",))
        checks.choice("version", self.version, VERSIONS)
        if (self.version == "custom") != (self.attacks is not None):
            raise ValueError(
                f"Expected attacks with version='custom' and none with others; received version={self.version!r} and "
                f"attacks={self.attacks!r}."
            )
        if self.attacks is not None:
            own = self.attacks
            if isinstance(own, tuple) and all(isinstance(each, tuple) and len(each) == 2 for each in own):
                own = dict(own)  # of an AutoAttack whose other settings are replaced
            own = checks.named("attacks", own, "attacks")
            if not own or not all(isinstance(each, Attack) for each in own.values()):
                raise ValueError(f"Expected attacks of this package, a dict by names; received {own!r}.")
            if {CLEAN, ""} & own.keys():
                raise ValueError("Expected names of attacks other than 'clean' and ''.")
            object.__setattr__(self, "attacks", tuple(own.items()))
            self.sequence()

    def sequence(self, classes=10):
        """The attacks in their order.

        Args:
            classes: int, of the objective.

        Returns:
            dict from names to Attacks.

        Raises:
            ValueError: for an attack that has not this norm.
        """
        if self.version == "custom":
            return {name: self._own(name, attack) for name, attack in self.attacks}
        shared = {"norm": self.norm, "bounds": self.bounds, "seed": self.seed}
        l1, few = self.norm == "l1", classes < 4
        often = 5 if self.version == "plus" or (l1 and self.version == "standard") else 1
        draws = 20 if self.version == "rand" else 1
        by_gradients = {**shared, "keep": "first", "eot_iter": draws}
        ratio, towards = ("margin", "margin") if few else ("dlr", "dlr_targeted")
        attacks = {
            "apgd-ce": APGD(self.epsilon, restarts=often, **by_gradients),
            "apgd-dlr": APGD(self.epsilon, restarts=often, loss=ratio, **by_gradients),
            "apgd-t": APGD(
                self.epsilon, loss=towards, targets=5 if l1 and self.version == "standard" else 9, **by_gradients
            ),
            "fab": FAB(self.epsilon, restarts=5, **shared),
            "fab-t": FAB(self.epsilon, targets=9, **shared),
            "square": Square(self.epsilon, **shared),
        }
        return {name: attacks[name] for name in _SEQUENCES[self.version]}

    def run(self, objective, x, y, targeted=False, *, numbers=None):
        """Attack images, see ``AttackWithResult.run``; returns an AutoAttackResult.

        Raises:
            ValueError: as Attack; with no gradient only if no attack can do without.
        """
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        count = len(x)
        images, broken, queries = x.copy(), np.full(count, "", object), np.zeros(count, "int64")
        if not count:
            return AutoAttackResult(images, np.zeros(0, bool), broken.astype(str), {}, queries)
        numbers, classes = numbered(count, numbers), examine(objective, x)
        attacks = self.sequence(classes)
        if classes < 4 and self.version != "custom":
            warnings.warn(
                f"Of {classes} classes there is no targeted difference of logits ratio, so APGD raises the margin.",
                stacklevel=2,
            )
        sign = -1 if targeted else 1
        fooled = judged(objective, x, y, sign)
        broken[fooled], robust, blocked = CLEAN, {CLEAN: float(np.mean(~fooled))}, []
        if self.version != "rand":
            self._warn_of_randomness(objective, x)
        for name, attack in attacks.items():
            left = np.flatnonzero(~fooled)
            if not len(left):
                break
            few = left[fewest(len(left), count)]
            run = getattr(attack, "run", attack)
            try:
                result = run(objective, x[few], y[few], targeted, numbers=numbers[few])
            except checks.NoGradientError as error:
                blocked.append((name, error))
                robust[name] = float(np.mean(~fooled))
                continue
            if hasattr(result, "queries"):
                queries[left] += result.queries[: len(left)]
            adversarial = getattr(result, "images", result)
            fooling = judged(objective, adversarial, y[few], sign)[: len(left)]
            images[left[fooling]] = adversarial[: len(left)][fooling]
            broken[left[fooling]], fooled[left] = name, fooling
            robust[name] = float(np.mean(~fooled))
        self._warn_of_gradients(blocked, robust)
        self._warn_of_square(attacks, broken)
        return AutoAttackResult(images, fooled, broken.astype(str), robust, queries)

    def _own(self, name, attack):
        """An attack with the settings that all of them share."""
        fields = {field.name for field in dataclasses.fields(attack) if field.init}
        shared = {each: getattr(self, each) for each in ("epsilon", "norm", "bounds", "seed") if each in fields}
        if self.norm not in attack.norms or ("norm" not in fields and attack.norm != self.norm):
            raise ValueError(f"Expected attacks in the norm {self.norm!r}; {name!r} has none: {attack!r:.300}.")
        return dataclasses.replace(attack, **shared)

    def _warn_of_randomness(self, objective, x):
        looks = [objective.scored(x[:8]) for _ in range(_LOOKS)]
        if max(np.abs(look - looks[0]).max() for look in looks) > 1e-3 * np.abs(looks[0]).max():
            _warn("the scores of the same images differ from call to call. Take version='rand'")

    def _warn_of_gradients(self, blocked, robust):
        if not blocked:
            return
        if len(blocked) == len(robust) - 1:
            raise blocked[0][1]
        names = ", ".join(name for name, _ in blocked)
        _warn(
            f"no gradient reached the images that were left for {names}. Look for rounding, or take Square with more "
            "queries"
        )

    def _warn_of_square(self, attacks, broken):
        squares = [name for name, attack in list(attacks.items())[1:] if isinstance(attack, Square)]
        share = float(np.isin(broken, squares).mean())
        if share > _SQUARE_FINDS:
            _warn(
                f"Square fooled {share:.1%} of the images, which attacks by gradients did not. Gradients of the model "
                "may mislead; take Square with more queries and restarts, or an attack made for the model"
            )


_SEQUENCES = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


def _warn(reason):
    warnings.warn(f"Robust accuracy may be lower than it looks: {reason}.", stacklevel=4)
