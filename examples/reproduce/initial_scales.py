"""What makes a GraCapsNet learn fast? The same architecture from several initial scales, at equal budget.

    python examples/reproduce/initial_scales.py

``keras``: Keras's default initialiser everywhere. ``uniform``: projections of large variance, attention nearly uniform.
``sharp``: small projections, attention that chooses; the package's own. Writes results/initial_scales.json.
"""

from short_training import compare, parse

# short_training comes first: it sets TensorFlow's environment.
# isort: split
from keras.initializers import GlorotUniform

from keras_capsvit import GraCapsNet
from keras_capsvit.layers import CapsuleInitializer

# start → scale of the projections' initialiser, factor on the pooling kernel
SCALES = {"uniform": (16.0, 1 / 16), "between": (4.0, 1 / 4), "sharp": (1.0, 1.0)}
VARIANTS = [{"start": start, "learning_rate": 0.003} for start in ("keras", *SCALES)]
VARIANTS += [{"start": start, "learning_rate": 0.01} for start in ("between", "sharp")]
VARIANTS += [{"start": "sharp", "learning_rate": 0.001}]


def build(variant, about):
    """GraCapsNet whose weights start as the variant says."""
    model = GraCapsNet(about.image_shape, about.num_classes, sigma=1)  # starts came first, sigma was compared from them
    projection, pooling = model.get_layer("projection"), model.get_layer("graph_pooling")
    if variant["start"] == "keras":
        for kernel in (model.get_layer("conv").kernel, model.get_layer("primary_capsules").conv.kernel):
            kernel.assign(GlorotUniform()(kernel.shape))
        projection.kernel.assign(GlorotUniform()(projection.kernel.shape))
        pooling.kernel.assign(GlorotUniform()(pooling.kernel.shape))
    else:
        scale, factor = SCALES[variant["start"]]
        projection.kernel.assign(CapsuleInitializer(scale)(projection.kernel.shape))
        pooling.kernel.assign(pooling.kernel * factor)
    return model


if __name__ == "__main__":
    compare(parse(__doc__, dataset="mnist", out="initial_scales.json"), VARIANTS, build)
