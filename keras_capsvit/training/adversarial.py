"""Adversarial training: Keras's ``fit`` with a train step that attacks its images first."""

import contextlib
import dataclasses
import warnings

import keras
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.training import recipes
from keras_capsvit.training.fitting import Training

_FEW = 8  # images that the attack is tried on before an epoch


def adversarial_fit(model, train, validation, recipe, attack, *, objective=None, work=None, verbose="auto"):
    """Train a model on adversarial examples, made of every batch for the weights of that moment (Madry et al. 2018).

    It is ``fit`` in all else: checkpoints, resuming, returns. Validation is on clean images. The thesis's AT is
    ``objective=None`` (capsules, or logits); its AT + Votes (Table 6.2) is
    ``objective=lambda model: attacks.combined(attacks.capsules(model), attacks.votes(model))``.

    FGSM, BIM, MIM, PGD and other GradientAttacks run inside the compiled train step. Other attacks run between the
    compiled parts, in Python, which is slower and works on a single device.

    Args:
        model: model that returns lengths or logits.
        train: stream of batches ``(x (b, H, W, C), y (b,))``, see ``fit``; pixels within the attack's bounds. The loss
            is NaN, and training ends with an error, where they are not.
        validation: stream judged by after every epoch; None for none.
        recipe: Recipe, or the name of one in ``RECIPES``.
        attack: callable ``(objective, x, y) → adversarial images``, such as ``attacks.PGD(0.031, steps=8)``; one with a
            seed gets another for every batch, by the number of steps that the optimizer has made.
        objective: callable from the model to what is attacked; None for the model's natural objective.
        work: path of a folder for checkpoints and ``epochs.csv``; None for neither.
        verbose: Keras's.

    Returns:
        keras.callbacks.History, see ``fit``.

    Raises:
        ValueError: what ``fit`` and the attack refuse; labels that are no class ids, and recipes that mix images.
        FileError: see ``fit``.

    Warns:
        UserWarning: before an epoch, if no gradient reaches the images that the attack is tried on.
    """
    recipe = recipes.named(recipe)
    if recipe.mixes:
        raise ValueError(
            f"An attack needs the class of an image; received a recipe that mixes images, mixup={recipe.mixup} and "
            f"cutmix={recipe.cutmix}. Take one without."
        )
    goal = model if objective is None else objective(model)
    training = Training(model, train, validation, recipe, work, f"adversarial_fit by {_described(attack)}")
    if _runs_inside(attack):
        with _replaced(model, train_step=_inside(model, attack.within_step(goal), attack.seed)):
            return training.run(verbose, [_Trial(attack, goal, training.streams[-1])])
    steps = {"train_step": _between(model, attack, goal), "test_step": _compiled(model.test_step)}
    with _replaced(model, eagerly=True, **steps):
        return training.run(verbose)


def _described(attack):
    """An attack by its name and those of its settings that are plain values, for the checkpoint."""
    if not dataclasses.is_dataclass(attack):
        return getattr(attack, "__name__", type(attack).__name__)
    settings = ((field.name, getattr(attack, field.name)) for field in dataclasses.fields(attack))
    plain = (f"{name}={value!r}" for name, value in settings if isinstance(value, bool | int | float | str | tuple))
    return f"{type(attack).__name__}({', '.join(plain)})"


def _runs_inside(attack):
    """Whether a train step can hold the attack: it says how, and no subclass has another call since it said so."""
    for kind in type(attack).__mro__:
        if "within_step" in vars(kind):
            return True
        if "__call__" in vars(kind):
            return False
    return False


@contextlib.contextmanager
def _replaced(model, *, eagerly=False, **steps):
    """Let a model run other steps than its own, for a while."""
    model.run_eagerly, before = eagerly, model.run_eagerly
    for name, step in steps.items():
        setattr(model, name, step)
    try:
        yield
    finally:
        for name in steps:
            delattr(model, name)
        model.run_eagerly = before
        model.make_train_function(force=True)
        model.make_test_function(force=True)


def _inside(model, attacked, seed):
    """The train step of a model on images that ``attacked`` makes, all of it to be compiled."""
    step, seeds = model.train_step, _StepSeeds(seed)

    def train_step(*args):  # (data) on TensorFlow, (state, data) on JAX
        *state, data = args
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with _values(model, *state):
            x = attacked(x, y, seeds.of(model.optimizer.iterations))
        # What was refused weighs NaN, because some networks make numbers of images that are NaN.
        lost = ops.any(ops.isnan(x), axis=(1, 2, 3))
        valid = ops.where(lost, float("nan"), 1.0)
        weights = valid if weights is None else weights * valid
        return step(*state, keras.utils.pack_x_y_sample_weight(x, y, weights))

    return train_step


class _StepSeeds(keras.random.SeedGenerator):
    """Seeds that follow from a seed and the steps that an optimizer has made, not from a state.

    The steps are in the checkpoint, so nothing else has to be; and devices that train together share no state.
    """

    _MOST = 64  # draws in a step

    def __init__(self, seed):
        super().__init__(seed)
        self._first = seed % 2**31

    def of(self, number):
        """These seeds in step ``number``, a tensor."""
        self._number, self._draws = ops.cast(number, self.state.dtype), 0
        return self

    def next(self, ordered=True):
        draw, self._draws = self._draws, self._draws + 1
        return ops.stack([self._first * ops.ones_like(self._number), self._number * self._MOST + draw])


def _between(model, attack, goal):
    """The train step of a model on images that an attack makes in Python, before what is compiled."""
    step = _compiled(model.train_step)

    def train_step(*args):
        *state, data = args
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with _values(model, *state):
            x = _attacked(_seeded(attack, int(model.optimizer.iterations)), goal, x, y)
        return step(*state, keras.utils.pack_x_y_sample_weight(ops.convert_to_tensor(x), y, weights))

    return train_step


def _compiled(step):
    """A step of a model, compiled, to be called from one that is not."""
    last = []

    def flat(*leaves):
        return step(*keras.tree.pack_sequence_as(last, leaves))

    compiled = autodiff.compiled(flat)

    def call(*args):
        last[:] = args
        return compiled(*keras.tree.flatten(list(args)))

    return call


@contextlib.contextmanager
def _values(model, state=None):
    """Let variables have the values of a step's state, which JAX hands from step to step."""
    if state is None:
        yield
        return
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    values = [value for kind in state[:3] for value in kind]  # the fourth kind are metrics
    with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
        yield


def _seeded(attack, number):
    if dataclasses.is_dataclass(attack) and hasattr(attack, "seed"):
        return dataclasses.replace(attack, seed=attack.seed + number)
    return attack


def _attacked(attack, goal, x, y):
    """Adversarial examples of a batch; the clean ones where no gradient reaches any, as of a model that is all sure."""
    try:
        return attack(goal, x, y)
    except checks.NoGradientError as error:
        warnings.warn(f"Images are trained on as they are: {error}", stacklevel=3)
        return x


class _Trial(keras.callbacks.Callback):
    """Attacks a few images before every epoch, because what is compiled into a step can neither refuse nor warn."""

    def __init__(self, attack, goal, stream):
        super().__init__()
        x, y = keras.utils.unpack_x_y_sample_weight(_first(stream))[:2]
        if isinstance(y, dict):
            raise ValueError("Expected class ids (b,) as labels, which the attack works on; received a dict of labels.")
        self._call = attack, goal, x[:_FEW], y[:_FEW]

    def on_epoch_begin(self, epoch, logs=None):
        _attacked(*self._call)


def _first(stream):
    return stream[0] if isinstance(stream, keras.utils.PyDataset) else next(stream.as_numpy_iterator())
