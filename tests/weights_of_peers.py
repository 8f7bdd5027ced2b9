"""Run alone (PyTorch and TensorFlow do not share a process well): models of Hugging Face, their files and outputs.

python weights_of_peers.py FOLDER NAME...
"""

# ruff: noqa: E402
import pathlib
import re
import sys

sys.modules.setdefault("torchvision", None)  # not needed, and a build for another torch keeps transformers out

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

SIZES = {"Ti": (192, 3), "S": (384, 6)}
DEPTHS = {
    18: ("basic", [64, 128, 256, 512], [2, 2, 2, 2]),
    34: ("basic", [64, 128, 256, 512], [3, 4, 6, 3]),
    50: ("bottleneck", [256, 512, 1024, 2048], [3, 4, 6, 3]),
    101: ("bottleneck", [256, 512, 1024, 2048], [3, 4, 23, 3]),
}


def vision(kind, size, image_size=224):
    width, heads = SIZES[size]
    config, model = {
        "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
        "deit": (transformers.DeiTConfig, transformers.DeiTForImageClassificationWithTeacher),
    }[kind]
    return model(
        config(
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            image_size=image_size,
            num_labels=1000,
            attn_implementation="eager",
        )
    )


def residual(depth):
    layer_type, widths, depths = DEPTHS[depth]
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(layer_type=layer_type, hidden_sizes=widths, depths=depths, num_labels=1000)
    )


LEVIT_DEPTHS = (2, 3, 4)


def levit():
    return transformers.LevitForImageClassificationWithTeacher(
        transformers.LevitConfig(
            hidden_sizes=[128, 256, 384], depths=list(LEVIT_DEPTHS), num_attention_heads=[4, 6, 8], num_labels=1000
        )
    )


MODELS = {
    "vit_Ti": lambda: vision("vit", "Ti"),
    "vit_S": lambda: vision("vit", "S"),
    "deit_Ti": lambda: vision("deit", "Ti"),
    "deit_S": lambda: vision("deit", "S"),
    "resnet18": lambda: residual(18),
    "resnet34": lambda: residual(34),
    "resnet50": lambda: residual(50),
    "resnet101": lambda: residual(101),
    "levit_128S": levit,
}


def as_if_trained(model):
    """Values at which a wrong layer shows: no scale is 1, no offset is 0, attention is far from uniform."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, each in model.state_dict().items():
            noise = torch.randn(each.shape)
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("attention_biases"):
                each.copy_(noise)
            elif name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
                each.copy_(torch.exp(0.1 * noise))
            elif (each.ndim >= 2 and "embeddings." not in name) or re.search(r"(projection|convolution)\.weight", name):
                each.copy_(noise / np.sqrt(each[0].numel()))
            else:
                each.copy_(0.2 * noise)
    return model.eval()


def levit_layer(match):
    """timm's name of a layer of a stage of LeViT: attention and MLP by turns, at last those that lead to the next."""
    stage, layer = int(match[1]), int(match[2])
    block, is_mlp = divmod(layer, 2)
    if block < LEVIT_DEPTHS[stage]:
        return f"stages.{stage}.blocks.{block}.{'mlp' if is_mlp else 'attn'}."
    return f"stages.{stage + 1}.downsample.{'mlp' if is_mlp else 'attn_downsample'}."


def timm(arrays):
    """The same tensors as timm names and joins them."""
    arrays = {re.sub(r"^(vit|deit|resnet|levit)\.", "", name): array for name, array in arrays.items()}
    for name in [name for name in arrays if ".attention.attention.query." in name]:
        parts = [arrays.pop(name.replace("query", each)) for each in ("query", "key", "value")]
        arrays[name.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    renamed = {}
    for name, array in arrays.items():
        for old, new in [
            (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.(?!layer|shortcut)(module\.)?", levit_layer),
            (r"^patch_embeddings\.embedding_layer_(\d)\.convolution", r"stem.conv\1.linear"),
            (r"^patch_embeddings\.embedding_layer_(\d)\.batch_norm", r"stem.conv\1.bn"),
            (r"^classifier(?=\.(linear|batch_norm))", "head"),
            (r"^classifier_distill", "head_dist"),
            (r"\.batch_norm\.", ".bn."),
            (r"\.queries_keys_values\.", ".qkv."),
            (r"\.keys_values\.", ".kv."),
            (r"\.queries\.", ".q.ln."),
            (r"\.projection\.(?=linear|bn)", ".proj.ln."),
            (r"\.linear_up\.", ".ln1."),
            (r"\.linear_down\.", ".ln2."),
            (r"^encoder\.layer\.", "blocks."),
            (r"attention\.output\.dense", "attn.proj"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            (r"^layernorm\.", "norm."),
            (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.distillation_token", "dist_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"^classifier\.1\.", "fc."),
            (r"^(cls_)?classifier\.", "head."),
            (r"^distillation_classifier\.", "head_dist."),
            (r"^embedder\.embedder\.convolution", "conv1"),
            (r"^embedder\.embedder\.normalization", "bn1"),
            (r"shortcut\.convolution", "downsample.0"),
            (r"shortcut\.normalization", "downsample.1"),
            (r"^encoder\.stages\.(\d)\.layers\.", lambda match: f"layer{int(match[1]) + 1}."),
            (r"layer\.(\d)\.convolution", lambda match: f"conv{int(match[1]) + 1}"),
            (r"layer\.(\d)\.normalization", lambda match: f"bn{int(match[1]) + 1}"),
        ]:
            name = re.sub(old, new, name)
        renamed[name] = array
    return renamed


def main(folder, names):
    images = np.random.default_rng(0).uniform(size=(2, 224, 224, 3)).astype("float32")
    for name in names:
        model = as_if_trained(MODELS[name]())
        model.save_pretrained(folder / name)
        saved = folder / name / "model.safetensors"
        save_file(timm(load_file(saved)), folder / name / "timm.safetensors")
        in_memory = {key: value.numpy() for key, value in model.state_dict().items()}
        save_file(in_memory, folder / name / "memory.safetensors")
        attention = {} if name.startswith(("resnet", "levit")) else {"output_attentions": True}
        with torch.no_grad():
            out = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), **attention)
        maps = {f"attention_{index}": each.numpy() for index, each in enumerate(out.attentions)} if attention else {}
        np.savez(folder / name / "outputs.npz", images=images, logits=out.logits.numpy(), **maps)
    positions = torch.randn(1, 24, 4, 4)
    resized = {
        f"{size}_{mode}": torch.nn.functional.interpolate(positions, size=size, mode=mode, antialias=True).numpy()
        for size in ((6, 9), (3, 2))
        for mode in ("bicubic", "bilinear")
    }
    np.savez(folder / "positions.npz", positions=positions.numpy(), **resized)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
