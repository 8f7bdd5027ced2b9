"""Which adjacency? GraCapsNet with several sigma at equal budget: its accuracy, and how good its explanations are.

    python examples/reproduce/sigma.py --dataset mnist --train 20000 --epochs 2 --seeds 0 1

Sigma 0 is the identity, nodes without neighbours. Explained are the predicted classes of held-out images, and measured:
"aopc", random values in 5x5 regions of a grid (thesis 3.4.2), the mean over all regions, and "third", over the first
third of these; "deletion", the same with zeros instead, which is the background; and "object", the share of the map on
pixels that are not black. Writes results/sigma_DATASET.json, a row for each sigma, seed and explainer.
"""

from short_training import compare, parse

from keras_capsvit import GraCapsNet, evaluate, explain

EXPLAINERS = {
    "contributions": explain.GraphContribution,
    "attention": explain.GraphAttention,
    "gradient": explain.Saliency,
    "IG": lambda model: explain.IntegratedGradients(model, steps=25),
    "random": lambda model: explain.RandomMap(),
}


def explained(model, images):
    """A dict of figures for each explainer, with its name."""
    rows = []
    for name, make in EXPLAINERS.items():
        maps = make(model)(images)
        curves = evaluate.aopc(model, images, maps)
        row = {
            "aopc": curves.area,
            "third": curves.curve[:, : 1 + (curves.curve.shape[1] - 1) // 3].mean(axis=1),
            "deletion": evaluate.aopc(model, images, maps, fill=0.0).area,
            "object": evaluate.energy_inside(maps, images.max(axis=-1) > 0),
        }
        means = {figure: float(values.mean()) for figure, values in row.items()}
        errors = {f"{figure} se": float(values.std(ddof=1) / len(values) ** 0.5) for figure, values in row.items()}
        rows.append({"explainer": name, **means, **errors})
    return rows


if __name__ == "__main__":
    args = parse(
        __doc__,
        dataset="fashion_mnist",
        out="sigma_{dataset}.json",
        sigmas={"type": float, "nargs": "+", "default": [0, 2], "help": "widths in nodes"},
        explained={"type": int, "default": 200, "help": "held-out images to explain"},
    )
    compare(
        args,
        [{"sigma": sigma} for sigma in args.sigmas],
        lambda adjacency, about: GraCapsNet(about.image_shape, about.num_classes, **adjacency),
        lambda model, images: explained(model, images[: args.explained]),
    )
