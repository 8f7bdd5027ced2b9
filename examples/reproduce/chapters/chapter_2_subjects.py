"""What chapter 2 explains: a classifier, images that it looks at, and where their objects are."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # the other examples

# isort: split
import pictures
import squeezenet

from keras_capsvit import ConvNetFC, data, explain, training

WEIGHTS = "squeezenet_v1.0_imagenet.npz"  # arrays of the Caffe model, see examples/squeezenet.py


@dataclasses.dataclass(frozen=True)
class Subject:
    """A classifier and images.

    Attributes:
        model: keras.Model.
        images: ``(b, H, W, 3)`` or ``(b, H, W, 1)`` in [0, 1].
        classes: ids ``(b,)`` of their objects.
        masks: bools ``(b, H, W)``, where these are.
        preprocess: callable from such images to what the model takes.
        pixels: pair, lowest and highest values of what it takes.
        mean: image ``(H, W, C)``, the mean of the data set, as the model takes it.
        names: callable from class ids to names.
    """

    model: object
    images: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    preprocess: Callable
    pixels: tuple
    mean: np.ndarray
    names: Callable

    @property
    def x(self):
        """Images as the model takes them."""
        return np.asarray(self.preprocess(self.images), "float32")

    def relevance(self, rules="z_plus"):
        """LRP and its contrastive forms by name, by rules of ``explain.LRP``."""
        how = {"rules": rules, "input_range": self.pixels}
        return {
            "LRP": explain.LRP(self.model, **how),
            "CLRP1": explain.CLRP(self.model, "others", **how),
            "CLRP2": explain.CLRP(self.model, "negated", **how),
        }

    def explainers(self):
        """What Table 2.1 compares, by name.

        Relevance is shared by contribution in average pooling, and beside it evenly, as in the thesis, whose networks
        have no global average pooling as their last layer.
        """
        return {
            "random": explain.RandomMap(),
            "gradient": explain.Saliency(self.model),
            "guided backprop": explain.GuidedBackprop(self.model),
            **self.relevance(),
            **{f"{name} pooled evenly": each for name, each in self.relevance("thesis").items()},
        }


def subject(setting, run):
    """The Subject of a row: SqueezeNet and pictures that the user names, or a ConvNet that is trained."""
    return _squeezenet(setting, run) if setting.subject == "squeezenet" else _convnet(setting, run)


def _squeezenet(setting, run):
    size = (squeezenet.SIZE, squeezenet.SIZE)
    folder = run.weights(setting.pictures)
    if setting.classes:  # of pictures that show all of them
        paths = [path for pattern in setting.files for path in sorted(folder.glob(pattern))]
        images = np.stack([pictures.read(path, size) for path in paths])
        classes, masks = np.tile(setting.classes[0], len(images)), np.ones((*images.shape[:3],), bool)
    else:
        objects = pictures.objects(folder, folder / "boxes.json", size)[: setting.examples]
        images = np.stack([pictures.read(folder / name, size) for name, _, _ in objects])
        classes, masks = np.array([each for _, each, _ in objects]), np.stack([mask for _, _, mask in objects])
    mean = squeezenet.preprocess(images).mean(axis=0)
    names = pictures.names_of(run.weights("imagenet1k_synsets.json"))
    model = squeezenet.squeezenet(run.weights(WEIGHTS))
    return Subject(model, images, classes, masks, squeezenet.preprocess, squeezenet.input_range(), mean, names)


def _convnet(setting, run):
    def build(info):
        size = {"filters": tuple(setting.filters), "units": tuple(setting.units), "kernel_size": setting.kernel_size}
        return ConvNetFC(info.image_shape, info.num_classes, **size)

    recipe = training.Recipe(
        setting.epochs, setting.batch_size, learning_rate=0.001, schedule="cosine", loss="cross_entropy"
    )
    model = run.trained("convnet_fc", build, setting.dataset, recipe, train=setting.train)
    x, y = run.data(setting.dataset, "test", setting.examples)
    mean = run.data(setting.dataset, "train", 1000)[0].mean(axis=0)
    names = data.info(setting.dataset).class_names
    return Subject(model, x, y, boxes_around(x), lambda images: images, (0.0, 1.0), mean, lambda number: names[number])


def boxes_around(images):
    """Masks of the boxes around what is not black, bools ``(b, H, W)``, of images in [0, 1]."""
    masks = np.zeros(images.shape[:3], bool)
    for mask, image in zip(masks, images, strict=True):
        rows, columns = (np.flatnonzero(image.max(axis=(axis, 2)) > 0.2) for axis in (1, 0))
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return masks
