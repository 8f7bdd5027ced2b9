"""A vision transformer's forward pass and input gradient, beside keras-hub's and Hugging Face's with the same weights.

    python examples/benchmarks/vit.py
    python examples/benchmarks/vit.py --variant S/16 --batch-size 4

Distilled DeiT up to the last layer normalisation, all of the same tokens. All take turns in one process; medians and
ratios to keras-hub's. Libraries that are not installed (keras-hub; transformers with torch) are left out. Then: what
the attention of all blocks costs beside the logits, and a gradient with it.
"""

import argparse
import contextlib
import functools
import importlib
import os
import sys
import tempfile

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

try:
    # Before TensorFlow: the other way round it crashes where both bring their own LLVM. torchvision is not needed, and
    # a build of it for another torch keeps transformers from being imported.
    sys.modules.setdefault("torchvision", None)
    import torch
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher
except ImportError:
    torch = None

import keras
import numpy as np
from keras import ops
from timing import add_clock, alternate, noise, report

from keras_capsvit import DeiT, autodiff, load_weights_from, taps


def hugging_face(model, folder):
    """Hugging Face's distilled DeiT of random weights, and ours with the same."""
    width, blocks = model.get_config()["width"], model.blocks
    theirs = DeiTForImageClassificationWithTeacher(
        DeiTConfig(
            hidden_size=width,
            num_hidden_layers=len(blocks),
            num_attention_heads=blocks[0].num_heads,
            intermediate_size=blocks[0].units,
            image_size=model.input_shape[1],
            num_labels=1000,
            layer_norm_eps=1e-6,
        )
    ).eval()
    theirs.save_pretrained(folder)
    load_weights_from(model, os.path.join(folder, "model.safetensors"))

    def forward(x):
        with torch.no_grad():
            return theirs.deit(torch.from_numpy(x.transpose(0, 3, 1, 2)))[0].numpy()

    def gradient(x):
        images = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
        return torch.autograd.grad(theirs.deit(images)[0].pow(3).sum(), images)[0].numpy().transpose(0, 2, 3, 1)

    return forward, gradient


def keras_hub(model):
    """keras-hub's DeiT with the weights of ours."""
    width, blocks = model.get_config()["width"], model.blocks
    theirs = importlib.import_module("keras_hub").models.DeiTBackbone(
        image_shape=model.input_shape[1:],
        patch_size=16,
        num_layers=len(blocks),
        num_heads=blocks[0].num_heads,
        hidden_dim=width,
        intermediate_dim=blocks[0].units,
        layer_norm_epsilon=1e-6,
    )
    ours = {variable.path: ops.convert_to_numpy(variable) for variable in model.weights}
    for variable in theirs.weights:
        variable.assign(_for_keras_hub(variable, ours))
    return compiled(theirs)


def _for_keras_hub(variable, ours):
    *_, module, name = parts = variable.path.split("/")
    if "patch_embedding" in parts:
        return ours[f"patch_embed/{name}"]
    if name in ("class_token", "distillation_token"):
        return ours[f"patch_embed/{name}"]
    if name == "position_embedding":
        return ours["patch_embed/positions"][None]
    block = next((int(part.rpartition("_")[2]) - 1 for part in parts if part.startswith("transformer_block")), None)
    if block is None:
        return ours[f"norm/{name}"]
    if module in ("query", "key", "value"):
        part = np.split(ours[f"blocks_{block}/attn/qkv/{name}"], 3, axis=-1)[("query", "key", "value").index(module)]
        return part.reshape(variable.shape)
    layer = {"ln_1": "norm1", "ln_2": "norm2", "attention_output": "attn/proj", "dense": "mlp/fc1", "output": "mlp/fc2"}
    return ours[f"blocks_{block}/{layer[module]}/{name}"].reshape(variable.shape)


def compiled(tokens):
    """Forward pass of a Keras model, and input gradient of the summed cubes of what it returns."""
    forward = autodiff.compiled(tokens, tokens.variables)
    gradient = autodiff.value_and_gradient(lambda x: ops.sum(tokens(x) ** 3, axis=(1, 2)), tokens.variables)
    return lambda x: ops.convert_to_numpy(forward(x)), lambda x: ops.convert_to_numpy(gradient(x)[1])


def last_tokens(model):
    """Normalised tokens ``(b, t, d)`` of our model, as a model."""
    x = model.get_layer("patch_embed").output
    for block in model.blocks:
        x = block(x)
    return keras.Model(model.inputs[0], model.get_layer("norm")(x))


def with_attention(model, names):
    """Compiled: the logits and further taps; and the gradient of the logits with the taps beside it."""
    tapped = taps.tap(model, ["logits", *names]) if names else model

    def loss(x):
        logits, *others = tapped(x) if names else [tapped(x)]
        return ops.sum(ops.square(logits)), others

    forward = autodiff.compiled(tapped, model.variables)
    gradient = autodiff.compiled(autodiff.gradient(loss, has_aux=True), model.variables)
    return (
        lambda x: [ops.convert_to_numpy(tensor) for tensor in (forward(x) if names else [forward(x)])],
        lambda x: ops.convert_to_numpy(gradient(x)[1]),
    )


def compare(title, pairs, x, rounds, clock):
    """Time forward passes and gradients, and print them."""
    for index, kind in enumerate(("forward", "input gradient")):
        print(f"{title}, {kind}; seconds, ratio")
        runs = {name: functools.partial(pair[index], x) for name, pair in pairs.items()}
        report(alternate(runs, rounds, warm_up=2, clock=clock))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="Ti/16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    add_clock(parser)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = DeiT(args.variant, distilled=True)
    x = noise(args.batch_size, 224, 224, 3)
    pairs = {}
    if torch is not None:
        with tempfile.TemporaryDirectory() as folder:
            pairs["transformers, torch"] = hugging_face(model, folder)
    with contextlib.suppress(ImportError):
        pairs = {"keras-hub": keras_hub(model), **pairs}
    pairs["keras_capsvit"] = compiled(last_tokens(model))
    expected = pairs["keras_capsvit"]
    for name, pair in pairs.items():
        for result, own in zip(pair, expected, strict=True):
            difference = np.abs(result(x) - own(x)).max() / np.abs(own(x)).max()
            print(f"{name}: differs by {difference:.1e} of the largest value")
    size = f"DeiT {args.variant}, batch {args.batch_size}, {args.rounds} rounds"
    compare(size, pairs, x, args.rounds, args.clock)
    attention = [f"attention_{index}" for index in range(len(model.blocks))]
    pairs = {"logits": with_attention(model, []), "with attention": with_attention(model, attention)}
    compare(size, pairs, x, args.rounds, args.clock)


if __name__ == "__main__":
    main()
