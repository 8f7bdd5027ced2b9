"""What distinguishes the neurons of a layer in one picture: a CLRP2 map for each, and what ablating its patch does.

    python examples/neurons.py toys.jpg --squeezenet squeezenet.npz --layer fire9.conv1x1_1
    python examples/neurons.py toys.jpg --model VGG16 --layer fc1                  # thesis Fig. 2.5

The most active neurons of the layer are taken; those of a convolution are its channels, averaged over places. Writes
OUT: the maps, and the matrix of drops. In row i the patch of neuron i is ablated; neurons are told apart where the
highest drop of a row is on the diagonal.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from explain_cnn import input_range, keras_model, read
from matplotlib.figure import Figure

from keras_capsvit import evaluate, explain, plot


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=pathlib.Path)
    parser.add_argument("--squeezenet", type=pathlib.Path, metavar="NPZ")
    parser.add_argument("--model", default="VGG16", help="class of keras.applications, unless --squeezenet is given")
    parser.add_argument("--weights", default="imagenet", help="of the Keras application: imagenet, a file, or none")
    parser.add_argument("--layer", default="fc1", help="name of the layer")
    parser.add_argument("--neurons", type=int, default=8)
    parser.add_argument("--size", type=int, default=9, help="side of the ablated patch in pixels")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("neurons.png"))
    return parser.parse_args()


def activations(model, layer):
    """Model from images to the activations ``(b, n)`` of a layer, of a convolution the means of its channels."""
    output = model.get_layer(layer).output
    if len(output.shape) == 4:
        output = keras.layers.GlobalAveragePooling2D()(output)
    return keras.Model(model.inputs, output)


def draw(image, maps, drops, labels):
    """Figure: the image and its maps at the left, the matrix of drops at the right."""
    side = int(np.ceil(np.sqrt(len(maps) + 1)))
    figure = Figure(figsize=(3.2 * side, 1.7 * side + 0.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
    axes = left.subplots(side, side, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    axes[0].imshow(image)
    axes[0].set_title("image", fontsize=8)
    pale = 0.4 + 0.6 * image.mean(axis=-1)
    for ax, heatmap, label in zip(axes[1:], maps, labels, strict=False):
        shown = heatmap / (np.quantile(heatmap, 0.995) or 1)
        drawn = plot.overlay(pale, shown.clip(0, 1), ax=ax, alpha=0.7, vmin=0, vmax=1)
        ax.set_title(label, fontsize=8)
    bar = left.colorbar(drawn, ax=axes.tolist(), shrink=0.7, aspect=30, pad=0.01)
    bar.set_label("relevance / its 99.5 % quantile", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.solids.set(alpha=1)

    ax, bound = right.subplots(), np.abs(drops).max() or 1
    drawn = ax.imshow(drops, cmap="RdBu_r", vmin=-bound, vmax=bound)
    for (row, column), drop in np.ndenumerate(drops):
        colour = "white" if abs(drop) > 0.6 * bound else "black"
        ax.text(column, row, f"{drop:.0%}".replace("-0%", "0%"), ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.set_xlabel("neuron", fontsize=8)
    ax.set_ylabel("whose patch is ablated", fontsize=8)
    bar = right.colorbar(drawn, ax=ax, shrink=0.7, aspect=30, pad=0.01, format="{x:.0%}")
    bar.set_label("drop of the activation", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def main():
    args = parse()
    model, size, preprocess = keras_model(args)
    image = read(args.image, size)
    x = np.asarray(preprocess(image[None].copy()), "float32")
    layer = activations(model, args.layer)
    before = layer.predict_on_batch(x)[0]
    ids = np.argsort(-before)[: args.neurons]
    ids = ids[before[ids] > 0]
    if len(ids) < 2:
        raise SystemExit(f"Expected at least 2 active neurons in {args.layer}; found {len(ids)}.")
    clrp = explain.CLRP(
        model,
        "negated",
        input_range=input_range(preprocess, size),
        start=args.layer,
    )
    maps = clrp(x, ids[None])[0]
    drops = evaluate.neuron_ablation(
        lambda x: layer.predict_on_batch(x)[:, ids],
        x,
        maps[:, None],
        mean=np.asarray(preprocess(np.array([[[[123, 117, 104]]]], "float32") / 255))[0],  # ImageNet's mean colour
        size=args.size,
        relative=True,
    )[0]
    draw(image, maps, drops, [str(neuron) for neuron in ids]).savefig(args.out, dpi=130)
    diagonal = int((drops.argmax(axis=1) == np.arange(len(ids))).sum())
    own, others = drops.diagonal().mean(), drops[~np.eye(len(ids), dtype=bool)].mean()
    print(f"{len(ids)} neurons of {args.layer}: ablating a patch takes {own:.1%} of its neuron, {others:.1%} of others")
    print(f"The highest drop of {diagonal} of {len(ids)} rows is on the diagonal. In {args.out}: maps and drops")


if __name__ == "__main__":
    main()
