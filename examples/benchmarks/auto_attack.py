"""AutoAttack against that of torchattacks, on the same ResNet with the same weights: robust accuracy and time.

    python examples/benchmarks/auto_attack.py --weights resnet20_cifar10.npz --norm linf --epsilon 0.002

The file holds the arrays of a CIFAR-10 ResNet by the names of its PyTorch repository (``layer1.0.conv1.weight``), as
``keras_capsvit.load_weights`` reads them. Both attack the same test images in batches of the same size; seconds are of
the processor, of all threads. torchattacks: ``pip install --no-deps torchattacks requests``.
"""

import argparse
import functools
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import torch
import torchattacks
from torch import nn
from torch.nn import functional

from keras_capsvit import ResNet, attacks, data, evaluate, load_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions, and a shortcut that halves the size by leaving out pixels and fills channels with zeros."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.more, self.stride = outputs - inputs, stride

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return functional.relu(x + y)


class Twin(nn.Module):
    """The same network in PyTorch, of images ``(b, C, H, W)`` in [0, 1]."""

    def __init__(self, arrays, depth):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        stages = [
            [
                Block(width // 2 if n and not k else width, width, 2 if n and not k else 1)
                for k in range((depth - 2) // 6)
            ]
            for n, width in enumerate((16, 32, 64))
        ]
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*blocks) for blocks in stages)
        self.linear = nn.Linear(64, 10)
        state = {name: torch.tensor(array) for name, array in arrays.items()}
        state = {n: v.permute(3, 2, 0, 1) if v.ndim == 4 else v.T if v.ndim == 2 else v for n, v in state.items()}
        unknown = self.load_state_dict(state, strict=False)
        assert not unknown.unexpected_keys and all("num_batches" in name for name in unknown.missing_keys), unknown
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def timed(function):
    """What a function returns, and the seconds of the processor and of the clock that it took."""
    processor, clock = time.process_time(), time.perf_counter()
    result = function()
    return result, time.process_time() - processor, time.perf_counter() - clock


def measured(attack, model, images, batch_size, precision):
    """Report of AutoAttack with gradients in a precision, and the seconds of ``timed``; prints them."""
    objective = functools.partial(attacks.in_precision, precision=precision)
    how = {"objective": objective, "batch_size": batch_size}
    report, processor, clock = timed(lambda: evaluate.auto_attack(model, attack, images, **how))
    seconds = f"{processor:.0f} s of the processor, {clock:.0f} s"
    print(f"keras_capsvit, {precision}: {report.robust_accuracy:.4f} robust, {seconds}")
    print("  after", {name: round(share, 4) for name, share in report.after.items()}, flush=True)
    return report, processor, clock


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=pathlib.Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--epsilon", type=float, default=0.002, help="radius, in pixels of [0, 1]")
    parser.add_argument("--examples", type=int, default=200, help="test images")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--bfloat16", action="store_true", help="ours with gradients in bfloat16, too")
    args = parser.parse_args()
    x, y = data.take(data.load("cifar10", split="test", data_dir=args.data_dir), args.examples)
    x = np.asarray(x, "float32")
    model = ResNet((32, 32, 3), 10, depth=args.depth, mean=MEAN, std=STD)
    load_weights(model, args.weights)
    twin = Twin(np.load(args.weights), args.depth).eval()
    pixels, classes = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(np.asarray(y))
    with torch.no_grad():
        difference = np.abs(twin(pixels[:32]).numpy() - np.asarray(model(x[:32]))).max()
    print(f"Largest difference of the logits: {difference:.1e}")

    ours = attacks.AutoAttack(args.epsilon, norm=args.norm)
    report, processor, clock = measured(ours, model, (x, y), args.batch_size, "float32")
    if args.bfloat16:
        half, half_processor, half_clock = measured(ours, model, (x, y), args.batch_size, "bfloat16")
        images = round(args.examples * (half.robust_accuracy - report.robust_accuracy))
        ratios = f"{processor / half_processor:.2f} (processor), {clock / half_clock:.2f} (clock)"
        print(f"float32 to bfloat16: {ratios}; {images:+d} images withstand")

    norm = {"linf": "Linf", "l2": "L2"}[args.norm]
    theirs = torchattacks.AutoAttack(twin, norm=norm, eps=args.epsilon, version="standard", n_classes=10, seed=0)

    def attack():
        batches = zip(pixels.split(args.batch_size), classes.split(args.batch_size), strict=True)
        return torch.cat([theirs(images, labels) for images, labels in batches])

    images, their_processor, their_clock = timed(attack)
    with torch.no_grad():
        robust = (twin(images).argmax(1) == classes).float().mean().item()
    print(f"torchattacks: {robust:.4f} robust, {their_processor:.0f} s of the processor, {their_clock:.0f} s")
    print(f"ratio: {their_processor / processor:.2f} (processor), {their_clock / clock:.2f} (clock)")


if __name__ == "__main__":
    main()
