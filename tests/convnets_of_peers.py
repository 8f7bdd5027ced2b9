"""Run alone (PyTorch and TensorFlow do not share a process well): networks of torchvision, their weights and outputs.

python convnets_of_peers.py FOLDER
"""

# ruff: noqa: E402
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file

# Builds for another torch lack their compiled operators, without which torchvision is not imported.
registry = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        registry.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision

MODELS = {
    "alexnet": lambda: torchvision.models.alexnet(),
    "googlenet": lambda: torchvision.models.googlenet(aux_logits=True, init_weights=False),
}
SIZES = {"alexnet": [(224, 224), (150, 97)], "googlenet": [(224, 224), (75, 50)]}


def as_if_trained(model):
    """Values at which a wrong layer shows: no scale is 1, no offset is 0, and activations keep their size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.randn(values.shape, generator=generator)
            if name.endswith("running_var") or name.endswith("bn.weight"):
                values.copy_(torch.exp(0.1 * noise))
            elif values.ndim >= 2:
                values.copy_(noise * (2 / values[0].numel()) ** 0.5)
            else:
                values.copy_(0.2 * noise)
    return model.eval()


def main(folder):
    for name, make in MODELS.items():
        model = as_if_trained(make())
        save_file(model.state_dict(), folder / f"{name}.safetensors")
        outputs = {}
        for index, size in enumerate(SIZES[name]):
            images = np.random.default_rng(index).uniform(size=(2, *size, 3)).astype("float32")
            with torch.no_grad():
                logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
            outputs |= {f"images_{index}": images, f"logits_{index}": logits.numpy()}
        parameters = sum(each.numel() for part, each in model.named_parameters() if not part.startswith("aux"))
        np.savez(folder / f"{name}.npz", parameters=parameters, **outputs)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
