"""Run alone (PyTorch and TensorFlow do not share a process well): a small ViT of Hugging Face and its attention.

python attention_of_peers.py FOLDER
"""

# ruff: noqa: E402
import pathlib
import sys

sys.modules.setdefault("torchvision", None)  # not needed, and a build for another torch keeps transformers out

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file


def main(folder):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # attention far from uniform
            parameter.add_(0.5 * torch.randn(parameter.shape))
        images = torch.rand(2, 3, 16, 16)
        out = model(images, output_attentions=True)
    model.save_pretrained(folder)  # whose names do not depend on the version
    arrays = load_file(folder / "model.safetensors")
    attention = {f"attention_{k}": value.numpy() for k, value in enumerate(out.attentions)}
    tokens = out.last_hidden_state.numpy()
    np.savez(folder / "peer.npz", images=images.numpy().transpose(0, 2, 3, 1), tokens=tokens, **attention, **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
