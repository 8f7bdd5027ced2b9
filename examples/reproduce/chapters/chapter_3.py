"""Graph capsule networks (thesis chapter 3)."""

import numpy as np
from rows import row

from chapters.shared import TITLES, percent, recipe
from keras_capsvit import CapsNet, GraCapsNet, ResNet20, attacks, data, evaluate, explain, plot, taps
from keras_capsvit.layers import CapsuleMask
from keras_capsvit.models import flops

HEADS = ("Avg", "FC", "DR", "EM", "SR", "GP")  # on ResNet20; GP is graph pooling


def basic(setting, run, name, dataset):
    """GraCapsNet or CapsNet of Table 3.1, trained; on CIFAR-10 GraCapsNet has the 64 heads of the author's code."""

    def build(info):
        if name == "CapsNet":
            return CapsNet(info.image_shape, info.num_classes, **setting.capsnet)
        heads = setting.gracapsnet["num_heads"] * (2 if info.image_shape[-1] == 3 else 1)
        settings = {**setting.gracapsnet, "num_heads": heads}
        return GraCapsNet(info.image_shape, info.num_classes, sigma=setting.sigma, **settings)

    title = f"{name} on {TITLES[dataset]}"
    numbers = {"train": setting.train, "test": setting.validation}
    return title, run.trained(title, build, dataset, recipe(setting, name, dataset), **numbers)


@row("3.T1")
def accuracy(setting, run):
    measured, curves = {}, {}
    for dataset in setting.datasets:
        _, test, _ = run.streams(dataset, test=setting.test)
        for name in ("GraCapsNet", "CapsNet"):
            title, model = basic(setting, run, name, dataset)
            measured[title] = run.step(title, lambda model=model, test=test: percent(model, test))
            measured[f"{title}, million parameters"] = model.count_params() / 1e6
            curves[title] = [100 * value for value in run.epochs(title)["val_accuracy"]]
    return {"measured": measured, "curves": curves}


def on_resnet20(setting, head, info):
    """A network of Table 3.2: a head on ResNet20 with the settings that give the thesis's sizes."""
    shape, classes, filters = info.image_shape, info.num_classes, setting.filters
    if head in ("Avg", "FC"):
        return ResNet20(shape, classes, head=head.lower(), filters=filters)
    backbone = ResNet20(shape, classes, filters=filters)
    if head == "GP":
        sizes = {"num_heads": setting.num_heads, "kernel_size": 1, "shared_transform": True}
        return GraCapsNet(shape, classes, backbone=backbone, sigma=setting.sigma, **sizes)
    routing = {"DR": "dynamic", "EM": "em", "SR": "self"}[head]
    sizes = {"num_types": setting.num_types, "primary_dim": 16, "kernel_size": 3}
    return CapsNet(shape, classes, routing=routing, backbone=backbone, **sizes)


def trained_heads(setting, run, dataset):
    """The networks of Table 3.2 by their heads, trained."""
    numbers = {"train": setting.train, "test": setting.validation}
    return {
        head: run.trained(
            f"{head} on {TITLES[dataset]}",
            lambda info, head=head: on_resnet20(setting, head, info),
            dataset,
            recipe(setting, head),
            **numbers,
        )
        for head in getattr(setting, "heads", HEADS)
    }


@row("3.T2")
def resnet_heads(setting, run):
    measured, curves = {}, {}
    for dataset in setting.datasets:
        _, test, _ = run.streams(dataset, test=setting.test)
        for head, model in trained_heads(setting, run, dataset).items():
            title = f"{head} on {TITLES[dataset]}"
            measured[f"{title}, error %"] = run.step(title, lambda model=model, test=test: 100 - percent(model, test))
            measured[f"{head}, million parameters"] = model.count_params() / 1e6
            measured[f"{head}, million operations"] = flops(model) / 1e6
            curves[title] = [100 - 100 * value for value in run.epochs(title)["val_accuracy"]]
    return {"measured": measured, "curves": curves}


@row("3.F2")
def number_of_heads(setting, run):
    measured, curves = {}, {}
    for dataset in setting.datasets:
        _, test, _ = run.streams(dataset, test=setting.test)
        accuracies = {}
        for heads in setting.heads:
            title = f"{TITLES[dataset]}, {heads} heads"

            def build(info, heads=heads):
                sizes = {"num_heads": heads, "primary_dim": setting.channels // heads, "filters": setting.filters}
                return GraCapsNet(info.image_shape, info.num_classes, sigma=setting.sigma, **sizes)

            model = run.trained(
                title, build, dataset, recipe(setting, dataset), train=setting.train, test=setting.validation
            )
            accuracies[heads] = run.step(title, lambda model=model, test=test: percent(model, test))
            measured[title] = accuracies[heads]
        exponents = np.log2(list(accuracies)).tolist()
        curves[TITLES[dataset]] = {"x": exponents, "y": list(accuracies.values())}
    return {"measured": measured, "curves": curves}


@row("3.F3")
def kinds_of_pooling(setting, run):
    def graph(info, **settings):
        sizes = {"filters": setting.filters, "num_heads": setting.num_heads, **settings}
        return GraCapsNet(info.image_shape, info.num_classes, **sizes)

    def routed(info, routing):
        sizes = {"filters": setting.filters, "num_types": setting.num_heads, "kernel_size": 3}
        return CapsNet(info.image_shape, info.num_classes, routing=routing, **sizes)

    builders = {
        "Graph-Pooling": lambda info: graph(info, sigma=setting.sigma),
        "Graph-Pooling without neighbours": lambda info: graph(info, sigma=0.0),
        "Top-K Pooling": lambda info: graph(info, pooling="top_k"),
        "Trainable-Routing": lambda info: routed(info, "trainable"),
        "No-Routing": lambda info: routed(info, "uniform"),
    }
    measured = {}
    for dataset in setting.datasets:
        _, test, _ = run.streams(dataset, test=setting.test)
        for name, build in builders.items():
            title = f"{name} on {TITLES[dataset]}"
            model = run.trained(
                title, build, dataset, recipe(setting, dataset), train=setting.train, test=setting.validation
            )
            measured[title] = run.step(title, lambda model=model, test=test: percent(model, test))
    return {"measured": measured}


@row("3.F4")
def attention(setting, run):
    measured = {}
    for dataset in setting.datasets:
        _, model = basic(setting, run, "GraCapsNet", dataset)
        x, _ = run.data(dataset, "test", setting.examples)
        maps = explain.GraphAttention(model)(x)
        names = data.info(dataset).class_names
        lengths = model.predict(x[: setting.pictures], verbose=0)
        drawn = x[: setting.pictures], maps[: setting.pictures]
        figure = plot.grid(*drawn, titles=plot.titles_of(lengths, names), columns=setting.pictures)
        figure.savefig(run.figure(dataset), dpi=70)
        if x.shape[-1] == 1:  # what is black is background
            where = x.max(axis=-1) > 0
            share = evaluate.energy_inside(maps, where).mean()
            measured[f"{TITLES[dataset]}, share of the attention on the object"] = float(share)
            measured[f"{TITLES[dataset]}, share of the image that the object covers"] = float(where.mean())
        flat = evaluate.sparseness(maps).mean()
        measured[f"{TITLES[dataset]}, Gini index of the attention"] = float(flat)
    return {"measured": measured}


class Perturbed:
    """AOPC of one kind of regions after several numbers of perturbations, from one curve of the same maps."""

    def __init__(self, regions, steps, seed):
        self.how = {"regions": regions, "steps": steps, "seed": seed}
        self.maps = self.curve = None

    def after(self, length):
        """The metric AOPC over the first perturbations."""

        def aopc(model, x, classes, maps):
            if self.maps is not maps:
                self.maps, self.curve = maps, evaluate.aopc(model, x, maps, target=classes, **self.how).curve
            return self.curve[:, : length + 1].mean(axis=1)

        return aopc


@row("3.F5")
def perturbation_curves(setting, run):
    dataset = setting.datasets[0]
    title, model = basic(setting, run, "GraCapsNet", dataset)
    x, y = run.data(dataset, "test", setting.examples)
    gradient, integrated = explain.Saliency(model), explain.IntegratedGradients(model, steps=setting.ig_steps)
    explainers = {
        "Graph-Att": explain.GraphAttention(model),
        "Grad": gradient,
        "IG": integrated,
        "Grad-SG": explain.SmoothGrad(gradient, setting.samples, seed=run.seed),
        "IG-SG": explain.SmoothGrad(integrated, setting.samples, seed=run.seed),
        "Random": explain.RandomMap(run.seed),
        "contributions": explain.GraphContribution(model),
    }
    metrics = {}
    for regions, lengths in setting.lengths.items():
        perturbed = Perturbed(regions, lengths[-1], run.seed)
        metrics |= {f"AOPC, {length} {regions}": perturbed.after(length) for length in lengths}
    for name, change in {"deletion": evaluate.deletion, "insertion": evaluate.insertion}.items():
        metrics[name] = lambda model, x, classes, maps, change=change: (
            change(model, x, maps, fill="black", steps=setting.changes, target=classes).area
        )
    metrics["share on the object"] = lambda model, x, classes, maps: evaluate.energy_inside(maps, x.max(axis=-1) > 0)
    with run.precision(model):
        table = evaluate.compare(model, explainers, (x, y), metrics, batch_size=250, work=run.work("compare"))
    measured = {f"{each['explainer']}, {metric}": each[metric] for each in table.rows for metric in metrics}
    measured["accuracy of GraCapsNet, %"] = 100 * run.epochs(title)["val_accuracy"][-1]
    curves = {}
    for each in table.rows:
        lengths = setting.lengths["pixels"]
        curves[each["explainer"]] = {"x": lengths, "y": [each[f"AOPC, {length} pixels"] for length in lengths]}
    maps = {name: explainer(x[:4]) for name, explainer in explainers.items() if name != "Random"}
    plot.comparison(x[:4], maps).savefig(run.figure("maps"), dpi=60)
    return {"measured": measured, "curves": curves}


@row("3.F6")
def attacks_on_heads(setting, run):
    measured, curves = {}, {}
    for dataset in setting.datasets:
        images = run.data(dataset, "test", setting.examples)
        for head, model in trained_heads(setting, run, dataset).items():
            for name in ("FGSM", "C&W"):
                rates = []
                for epsilon in setting.epsilons:
                    attack = attacks.FGSM(epsilon) if name == "FGSM" else attacks.CarliniWagnerBox(epsilon)
                    title = f"{head} on {TITLES[dataset]}, {name}, epsilon {epsilon}"
                    how = {"model": model, "attack": attack, "dataset": images}
                    measured[title] = run.step(title, lambda how=how: 100 * evaluate.success_rate(**how))
                    rates.append(measured[title])
                curves[f"{head}, {name}"] = {"x": list(setting.epsilons), "y": rates}
    return {"measured": measured, "curves": curves}


@row("3.F7")
def moved_dimensions(setting, run):
    measured = {}
    for dataset in setting.datasets:

        def build(info):
            sizes = {**setting.gracapsnet, "reconstruction": "conditional", "reconstruction_units": setting.units}
            return GraCapsNet(info.image_shape, info.num_classes, sigma=setting.sigma, **sizes)

        title, numbers = TITLES[dataset], {"train": setting.train, "test": setting.validation}
        model = run.trained(f"GraCapsNet with decoder on {title}", build, dataset, recipe(setting, dataset), **numbers)
        x, y = run.data(dataset, "test", setting.examples)
        capsules = CapsuleMask()(taps.tap(model, "capsules")(x), y)
        swept = np.stack(
            [evaluate.sweep(model.decoder, each) for each in np.array(capsules)]
        )  # (b, dims, offsets, ...)
        change = np.abs(swept[:, :, -1] - swept[:, :, 0]).mean(axis=(2, 3, 4))
        classes = model.predict(swept.reshape(-1, *x.shape[1:]), verbose=0).argmax(axis=-1)
        kept = classes.reshape(swept.shape[:3]) == y[:, None, None]
        measured[f"{title}, mean change of pixels by a dimension"] = float(change.mean())
        measured[f"{title}, by the strongest dimension"] = float(change.max(axis=1).mean())
        measured[f"{title}, swept pictures of their class, %"] = 100 * float(kept.mean())
        measured[f"{title}, mean brightness of pixels"] = float(x.mean())
        strongest = change.argsort(axis=1)[:, ::-1][:, : setting.drawn]
        dims = strongest[0].tolist()
        plot.sweep(swept[0, dims], evaluate.OFFSETS, dims).savefig(run.figure(dataset), dpi=60)
    return {"measured": measured}


@row("3.X")
def affine_robustness(setting, run):
    builders = {
        "GraCapsNet": lambda info: GraCapsNet(info.image_shape, info.num_classes, sigma=0.0, **setting.gracapsnet),
        "CapsNet": lambda info: CapsNet(info.image_shape, info.num_classes, **setting.capsnet),
    }
    measured = {}
    for name, build in builders.items():
        title, numbers = f"{name} on expanded_mnist", {"train": setting.train, "test": setting.validation}
        model = run.trained(title, build, "expanded_mnist", recipe(setting, name), **numbers)
        for dataset in ("expanded_mnist", *setting.moved):
            _, test, _ = run.streams(dataset, test=setting.test)
            key = f"{name} on {'AffNIST' if dataset == 'affnist' else dataset}"
            measured[key] = run.step(key, lambda model=model, test=test: percent(model, test))
    return {"measured": measured}
