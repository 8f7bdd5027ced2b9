"""What chapter 3 of the thesis leaves open: the adjacency, initial weights; and published weights of its backbone."""

from keras.initializers import GlorotUniform
from rows import row

from chapters.shared import percent, recipe
from keras_capsvit import GraCapsNet, ResNet, evaluate, explain, training
from keras_capsvit.layers import CapsuleInitializer
from keras_capsvit.models import load_weights, load_weights_from

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of published weights
# Start → scale of the projections' initialiser, factor on the pooling kernel.
SCALES = {"uniform": (16.0, 1 / 16), "between": (4.0, 1 / 4), "sharp": (1.0, 1.0)}


@row("X.sigma")
@row("X.sigma.M")
@row("X.sigma.C")
def adjacencies(setting, run):
    measured = {}
    x, _ = run.data(setting.dataset, "test", setting.explained)
    _, test, _ = run.streams(setting.dataset, test=setting.test)
    explainers = {
        "contributions": explain.GraphContribution,
        "attention": explain.GraphAttention,
        "gradient": explain.Saliency,
        "IG": lambda model: explain.IntegratedGradients(model, steps=setting.ig_steps),
        "random": lambda model: explain.RandomMap(run.seed),
    }
    for sigma in setting.sigmas:

        def build(info, sigma=sigma):
            return GraCapsNet(info.image_shape, info.num_classes, sigma=sigma, **setting.gracapsnet)

        numbers = {"train": setting.train, "test": setting.validation}
        model = run.trained(f"sigma {sigma}", build, setting.dataset, recipe(setting), **numbers)
        measured[f"sigma {sigma}, accuracy"] = percent(model, test) / 100
        for name, make in explainers.items():
            figures = run.step(f"{sigma} {name}", lambda make=make, model=model: explained(model, make(model)(x), x))
            measured |= {f"sigma {sigma}, {name}, {figure}": value for figure, value in figures.items()}
    return {"measured": measured}


def explained(model, maps, x):
    """What maps are worth by several measures: regions of a grid with random values, and with black; and the object.

    The object is what is not black, in grey images.
    """
    curves = evaluate.aopc(model, x, maps)
    third = 1 + (curves.curve.shape[1] - 1) // 3
    figures = {
        "AOPC": curves.area.mean(),
        "AOPC of the first third": curves.curve[:, :third].mean(),
        "AOPC with black": evaluate.aopc(model, x, maps, fill="black").area.mean(),
    }
    if x.shape[-1] == 1:
        figures["share on the object"] = evaluate.energy_inside(maps, x[..., 0] > 0).mean()
    return figures


@row("X.scales")
def initial_scales(setting, run):
    measured = {}
    _, test, _ = run.streams(setting.dataset, test=setting.test)
    for start, rates in setting.rates.items():
        for rate in rates:

            def build(info, start=start):
                settings = {"sigma": setting.sigma, **setting.gracapsnet}
                return started(GraCapsNet(info.image_shape, info.num_classes, **settings), start)

            settings = training.Recipe(**{**setting.recipe, "learning_rate": rate})
            title, numbers = f"{start}, rate {rate}", {"train": setting.train, "test": setting.validation}
            model = run.trained(title, build, setting.dataset, settings, method=f"from {start}", **numbers)
            measured[title] = percent(model, test)
    return {"measured": measured}


def started(model, start):
    """A GraCapsNet whose weights begin as ``start`` says: ``"keras"``, or a key of SCALES."""
    projection, pooling = model.get_layer("projection"), model.get_layer("graph_pooling")
    if start == "keras":
        for kernel in (model.get_layer("conv").kernel, model.get_layer("primary_capsules").conv.kernel):
            kernel.assign(GlorotUniform()(kernel.shape))
        projection.kernel.assign(GlorotUniform()(projection.kernel.shape))
        pooling.kernel.assign(GlorotUniform()(pooling.kernel.shape))
    else:
        scale, factor = SCALES[start]
        projection.kernel.assign(CapsuleInitializer(scale)(projection.kernel.shape))
        pooling.kernel.assign(pooling.kernel * factor)
    return model


@row("X.weights")
def published_weights(setting, run):
    measured = {}
    _, test, _ = run.streams("cifar10", test=setting.test)
    for depth in setting.files or ("20",):
        model = ResNet((32, 32, 3), 10, depth=int(depth), mean=MEAN, std=STD)
        if setting.files:
            path = run.weights(setting.files[depth])
            (load_weights if path.suffix == ".npz" else load_weights_from)(model, path)
        model.compile(loss=training.loss_for(model, "cross_entropy"), metrics=["accuracy"])
        measured[f"ResNet{depth}"] = percent(model, test)
    return {"measured": measured}
