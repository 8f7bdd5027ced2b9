"""What timm, torchvision and Hugging Face call the weights of the networks here, and in which layout they keep them."""

import re

from keras_capsvit.layers import NormalizedConv2D

# Variables of Keras's layers → what published weights call them.
PUBLISHED = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# A format: (pattern, replacement) for the names of `published_names`, all applied in order.
TIMM = [
    (r"^(patch_embed|stem)\.(weight|bias)$", r"\1.proj.\2"),
    (r"^patch_embed\.class_token$", "cls_token"),
    (r"^patch_embed\.distillation_token$", "dist_token"),
    (r"^patch_embed\.positions$", "pos_embed"),
    (r"\.shortcut\.", ".downsample."),
    (r"^linear\.", "fc."),
]

TIMM_LEVIT = [
    (r"^(stem|head|head_dist)_(?=conv|bn|linear)", r"\1."),
    (r"\.(proj|q)\.(?=linear|bn)", r".\1.ln."),
    (r"\.mlp_ln", ".mlp.ln"),
]
TORCHVISION = [(r"^(inception\d[a-e])_", r"\1."), (r"^linear\.", "fc.")]


def _stage(match):
    return f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."


RESNET = [
    (r"^(conv|bn)1\.", r"resnet.embedder.embedder.\1."),
    (r"\.(conv|bn)(\d)\.", lambda match: f".layer.{int(match[2]) - 1}.{match[1]}."),
    (r"\.shortcut\.0\.", ".shortcut.conv."),
    (r"\.shortcut\.1\.", ".shortcut.bn."),
    (r"^layer(\d)\.(\d+)\.", _stage),
    (r"\.conv\.", ".convolution."),
    (r"\.bn\.", ".normalization."),
    (r"^linear\.", "classifier.1."),
]


def _vit(prefix, head):
    """Names in published files."""
    return [
        (r"^blocks\.", f"{prefix}.encoder.layer."),
        (r"\.attn\.qkv\.", ".attention.attention.(query|key|value)."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        *_vit_outside(prefix, head),
    ]


def _vit5(prefix, head):
    """Names in memory since transformers 5."""
    return [
        (r"^blocks\.", f"{prefix}.layers."),
        (r"\.attn\.qkv\.", ".attention.(q|k|v)_proj."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        *_vit_outside(prefix, head),
    ]


def _vit_outside(prefix, head):
    return [
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"^norm\.", f"{prefix}.layernorm."),
        (r"^patch_embed\.(weight|bias)$", rf"{prefix}.embeddings.patch_embeddings.projection.\1"),
        (r"^patch_embed\.class_token$", f"{prefix}.embeddings.cls_token"),
        (r"^patch_embed\.distillation_token$", f"{prefix}.embeddings.distillation_token"),
        (r"^patch_embed\.positions$", f"{prefix}.embeddings.position_embeddings"),
        (r"^head\.", f"{head}."),
        (r"^head_dist\.", "distillation_classifier."),
    ]


# The names themselves are those of small ResNets, of VGG19 and of torchvision's AlexNet.
FORMATS = {
    "as they are": [],
    "timm": TIMM,
    "timm (LeViT)": TIMM_LEVIT,
    "torchvision": TORCHVISION,
    "Hugging Face (ResNet)": RESNET,
    "Hugging Face (ViT)": _vit("vit", "classifier"),
    "Hugging Face (ViT, transformers 5)": _vit5("vit", "classifier"),
    "Hugging Face (DeiT)": _vit("deit", "cls_classifier"),
    "Hugging Face (DeiT, transformers 5)": _vit5("deit", "cls_classifier"),
}


def _layers_of(model):
    """Layers of a model, a convolution and its batch normalisation one by one."""
    for layer in model.layers:
        yield from (layer.conv, layer.norm) if isinstance(layer, NormalizedConv2D) else (layer,)


def published_names(model):
    """Names of a model's weights, as files of PyTorch have them.

    A layer's name, a dot for every underscore beside a digit, then ``weight`` and ``bias`` (of convolutions and dense
    layers, and the scale and offset of normalisations), ``running_mean`` and ``running_var``; what else a layer has is
    called as in Keras. For example ``layer2.0.bn1.running_mean`` of a ResNet, ``features.3.weight`` of a VGG19,
    ``blocks.0.attn.qkv.weight`` and ``patch_embed.class_token`` of a ViT.

    Args:
        model: functional or sequential model whose layers have the weights.

    Returns:
        dict from str to keras.Variable, all weights of the model in its order.

    Raises:
        ValueError: for a model with a model inside, and one with weights that no layer has or that have the names of
            others; lists them.
    """
    names = {}
    for layer in _layers_of(model):
        for variable in layer.weights:
            parts = variable.path.split("/")
            if layer.name not in parts:
                raise ValueError(
                    f"Expected layers with weights of their own; {model.name} has {layer.name}, a model with "
                    f"{variable.path}. Load that one instead."
                )
            *modules, kind = parts[parts.index(layer.name) :]
            module = re.sub(r"_(?=\d)|(?<=\d)_", ".", ".".join(modules))
            names.setdefault(f"{module}.{PUBLISHED.get(kind, kind)}", variable)
    named = {id(variable) for variable in names.values()}
    unnamed = [variable.path for variable in model.weights if id(variable) not in named]
    if unnamed:
        raise ValueError(
            f"Expected weights of layers, each with a name of its own; {model.name} also has {len(unnamed)} others: "
            f"{', '.join(unnamed[:10])}{', ...' if len(unnamed) > 10 else ''}. Save and load it as .keras instead."
        )
    return names


def sources(name, rules):
    """Names of the tensors in a file that make up the weight ``name``, one below the other.

    Args:
        name: str, a name of ``published_names``.
        rules: value of ``FORMATS``.

    Returns:
        Tuple of str: one, or query, key and value.
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    parts = re.search(r"\((.*)\)", name)
    return tuple(name.replace(parts[0], part) for part in parts[1].split("|")) if parts else (name,)


def torch_shape(variable):
    """Shape that PyTorch keeps a variable in: ``(out, in, h, w)``, ``(out, in)``; positions have an axis in front."""
    shape = tuple(variable.shape)
    if variable.name == "kernel" and len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    if variable.name == "kernel":
        return shape[::-1]
    return (1, *shape) if variable.name == "positions" else shape


def from_torch(variable, array):
    """An array of ``torch_shape(variable)`` with its axes in Keras's order."""
    if variable.name == "kernel":
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array[0] if variable.name == "positions" else array
