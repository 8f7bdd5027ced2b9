"""What explainers share: checked images and classes, class scores, equal batches, maps as large as images."""

import keras
import numpy as np
from keras import ops

from keras_capsvit import autodiff, caches, checks, taps


class Recorded:
    """An object that says what it was constructed with, and is constructed again when that is no longer the same.

    Attributes:
        constructed_with: dict of that, by the places or names of the arguments.
    """

    def __new__(cls, *args, **kwargs):
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__name__}() takes no arguments")
        instance = super().__new__(cls)
        instance.constructed_with = dict(enumerate(args)) | kwargs
        instance._made_of = instance._fingerprints()
        return instance

    def renew(self):
        """Construct it again if a model among its arguments got another layer, activation or setting since.

        Values of variables are those of the call anyway.
        """
        for argument in self.constructed_with.values():
            if isinstance(argument, Recorded):
                argument.renew()
        fingerprints = self._fingerprints()
        if fingerprints != self._made_of:
            places = [name for name in self.constructed_with if isinstance(name, int)]
            named = {name: value for name, value in self.constructed_with.items() if name not in places}
            self.__init__(*(self.constructed_with[place] for place in places), **named)
            self._made_of = fingerprints

    def _fingerprints(self):
        """What its models and callables are made of."""
        return [
            caches.fingerprint(argument)
            for argument in self.constructed_with.values()
            if callable(argument) and not isinstance(argument, Recorded | type)
        ]


class Explainer(Recorded):
    """An explainer, of which subclasses define ``attributions``.

    Call: ``explainer(x, target=None)`` with finite images ``x (b, H, W, C)``, as the model takes them, and ``target``,
    a class id, ids ``(b,)``, or None for the predicted classes. Returns maps, a float32 NumPy array ``(b, H, W)``, or
    ``(b, H, W, C)`` of explainers with ``channels=True``.

    Raises:
        ValueError: for images of another rank, NaN or infinite ones, a target of another shape or out of range, and
            explanations that come out as NaN or infinite.
    """

    channels = False

    def __call__(self, x, target=None):
        x = checks.images(x)
        ids = check_target(target, len(x))
        self.renew()
        if not len(x):
            return np.zeros(x.shape if self.channels else x.shape[:3], "float32")
        self.check(x, ids)
        maps = np.array(self.finished(self.attributions(x, ids)))
        if not np.isfinite(maps).all():
            raise ValueError(
                f"{type(self).__name__} found NaN or infinite values; expected a model whose scores and gradients are "
                "finite for these images."
            )
        return maps

    def attributions(self, x, ids):
        """What is averaged by SmoothGrad, before ``finished``.

        Args:
            x: float32 array ``(b, H, W, C)``, not empty.
            ids: int32 array ``(b,)``, ``PREDICTED`` for the predicted classes.

        Returns:
            float32 array ``(b, ...)``.
        """
        raise NotImplementedError

    def finished(self, attributions):
        """Maps, an array or a tensor, from attributions, one or the other."""
        return attributions

    def on_tensors(self, x, ids):
        """Maps inside a compiled function, such as an endpoint of ``serving.export``; nothing is checked.

        Args:
            x: tensor ``(b, H, W, C)``, one batch whatever its size.
            ids: int32 tensor ``(b,)``.

        Returns:
            Tensor of the maps.

        Raises:
            NotImplementedError: of explainers that need arrays.
        """
        raise NotImplementedError(f"{type(self).__name__} needs arrays")

    def attributions_on_tensors(self, x, ids):
        """What ``on_tensors`` finishes, as ``attributions`` for arrays; where nothing is to be finished, the maps."""
        return self.on_tensors(x, ids)

    def check(self, x, ids):
        """Refuse images and ids that do not fit the model, where it is known what does."""

    def resolved(self, x, ids):
        """Class ids ``(b,)``, the ``predicted(x)`` of a subclass that tells them where ``ids`` stand for these."""
        return self.predicted(x) if checks.PREDICTED in ids else ids


class ModelExplainer(Explainer):
    """Explainer of the class scores of a model before any softmax or sigmoid (see ``taps.scores``).

    Args:
        model: live, nested or served model; or callable ``x (b, H, W, C) → scores (b, M)``. One with a single sigmoid
            output ``(b, 1)`` has two classes, of which class 1 is the one that the output speaks for.
        batch_size: int >= 1, images per pass.
        output: str or int, of a model with several outputs.
    """

    def __init__(self, model, batch_size, output=None):
        self.batch_size = checks.batch_size(batch_size)
        self.scores = taps.scores(model, output)
        self.variables = self.scores.variables
        checks.finite_variables(self.variables, self.scores.name)
        self._scores = taps.compiled(model, "scores", lambda scores: scores, output)
        self._classes = {}  # their number, by size of the images

    def check(self, x, ids):
        shape, size = self.scores.input_shape, x.shape[1:]
        checks.of_size(x, shape, self.scores.name)
        unknown = shape is None or None in shape
        if size not in self._classes and (unknown or checks.PREDICTED not in ids):
            self._classes[size] = self._number_of_classes(x)
        if checks.PREDICTED not in ids:
            checks.class_ids(ids, len(ids), self._classes[size], "Targets")

    def _number_of_classes(self, x):
        try:
            with checks.running(self.scores.name, x):
                scores = self._scores(x[:1])
        except ValueError as error:
            if not self._classes:
                raise
            # Of a model that took another size it is about the size.
            raise checks.wrong_size(x, self.scores.name, error) from error
        if scores.shape[0] != 1:
            raise ValueError(f"Expected scores (b, M), a row for each image; received {scores.shape} of one image.")
        return scores.shape[-1]

    def predicted(self, x):
        """Predicted classes ``(b,)`` of images ``(b, H, W, C)``."""
        self.renew()
        return self.finite_scores(x).argmax(-1).astype("int32")

    def finite_scores(self, x):
        """Scores ``(b, M)`` of images, or an error where they are not finite."""
        scores = in_batches(lambda part: self._scores(x[part]), len(x), self.batch_size)
        if not np.isfinite(scores).all():
            raise ValueError(f"{type(self).__name__} found NaN or infinite scores; expected a model of finite ones.")
        return scores


class GridExplainer(ModelExplainer):
    """Base: explainers whose maps lie on a grid, are enlarged bilinearly, and take one compiled pass.

    Args:
        model: see ModelExplainer.
        batch_size: see ModelExplainer.
        output: see ModelExplainer.
    """

    def __init__(self, model, batch_size, output=None):
        super().__init__(model, batch_size, output)
        self._functions = {}
        shape = self.scores.input_shape
        if shape is not None and None not in shape:
            self._function(np.empty((0, *shape)))

    def on_grid(self, x):
        """Look at the model as images like ``x`` pass it.

        Args:
            x: array or tensor ``(b, H, W, C)``, of which only the shape counts.

        Returns:
            Function ``(x, ids)`` → maps ``(b, h, w)`` of tensors.
        """
        raise NotImplementedError

    def attributions(self, x, ids):
        function = self._function(x)
        return in_batches(lambda part: function(x[part], ids[part]), len(x), self.batch_size)

    def on_tensors(self, x, ids):
        return self._function(x)(x, ids)

    def _function(self, x):
        shape = tuple(x.shape[1:])
        if shape not in self._functions:
            on_grid = self.on_grid(x)
            self._functions[shape] = autodiff.compiled(
                lambda x, ids: enlarged(ops.cast(on_grid(x, ids), "float32"), shape[:2]), self.variables
            )
        return self._functions[shape]


def score_of(scores, ids):
    """Scores ``(b,)`` of the classes ``ids (b,)``, the highest where these are ``PREDICTED``; tensors."""
    return ops.sum(class_rows(scores, ids) * scores, axis=-1)


def class_rows(scores, ids):
    """One-hot rows ``(b, M)`` of the classes ``ids (b,)``, of the highest scores where these are ``PREDICTED``.

    Rows are NaN where the scores ``(b, M)`` have any, of which none is the highest. Tensors.
    """
    ids = ops.where(ids == checks.PREDICTED, ops.cast(ops.argmax(scores, axis=-1), "int32"), ids)
    unknown = ops.any(ops.isnan(scores), axis=-1, keepdims=True)
    return ops.where(unknown, float("nan"), ops.one_hot(ids, scores.shape[-1], dtype=scores.dtype))


def check_tensorflow(feature):
    """Refuse other backends than TensorFlow; the message begins with ``feature``, a str."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{feature} needs the tensorflow backend; received {keras.backend.backend()!r}. Save the model as .keras "
            "and load it in a process with KERAS_BACKEND=tensorflow."
        )


def check_target(target, batch):
    """Class id, ids ``(batch,)``, or None as int32 ids ``(batch,)``, ``PREDICTED`` for None."""
    if target is None:
        return np.full(batch, checks.PREDICTED, "int32")
    target = checks.numbers(target, "targets")
    if target.ndim > 1:
        raise ValueError(
            f"Expected a class id or ids of shape ({batch},) as target; received shape {target.shape}. Several ids "
            "per image, of shape (batch, k), are taken by LRP, CLRP, GuidedBackprop and DeconvNet."
        )
    return checks.targets(target, batch)


def in_batches(function, images, batch_size):
    """``function(positions)`` of all images, in equal batches of at most ``batch_size``; float32 array."""
    return mean_over_samples(lambda image, _: function(image), images, 1, batch_size)


def mean_over_samples(function, images, samples, batch_size):
    """Mean over samples of a function of images and samples.

    The pairs run as one stream, sample after sample, in batches of one size, so that one trace is enough: the last is
    filled up with its last pair.

    Args:
        function: callable ``(image, sample) → (k, ...)`` of positions ``(k,)``, ``k <= batch_size``.
        images: int >= 1.
        samples: int >= 1.
        batch_size: int >= 1.

    Returns:
        float32 array ``(images, ...)``.

    Raises:
        ValueError: for another number of values than of images.
    """
    pairs = images * samples
    size = -(-pairs // -(-pairs // batch_size))
    total = None
    for start in range(0, pairs, size):
        sample, image = np.divmod(np.minimum(np.arange(start, start + size), pairs - 1), images)
        values = checks.numbers(function(image, sample), "values of images")
        if values.shape[:1] != (size,):
            raise ValueError(f"Expected a value for each of {size} images; received values of shape {values.shape}.")
        values = values[: pairs - start]
        if total is None:  # in double precision equal samples have themselves as their mean
            total = np.zeros((images, *values.shape[1:]))
        np.add.at(total, image[: len(values)], values)
    return (total / samples).astype("float32")


def mean_on_tensors(function, count):
    """Mean of ``function(k)`` over ``k < count``, a loop inside a compiled function.

    Args:
        function: callable of an int32 tensor ``()`` → float tensor.
        count: int >= 1.
    """

    def step(k, total):
        return k + 1, total + function(k)

    first, second = (ops.convert_to_tensor(k, dtype="int32") for k in (0, 1))
    return ops.while_loop(lambda k, _: k < count, step, (second, function(first)))[1] / count


def enlarged(maps, size):
    """Maps ``(b, h, w)``, tensor or array, enlarged bilinearly to ``size (H, W)``; tensor ``(b, H, W)``."""
    maps = ops.expand_dims(ops.convert_to_tensor(maps), -1)
    return ops.squeeze(ops.image.resize(maps, size, data_format="channels_last"), -1)
