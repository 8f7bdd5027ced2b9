"""The images at which torchattacks evaluates a network, one by one, to compare ours with."""

import numpy as np


def network(random, size, classes):
    """Weights of a smooth network of two layers."""
    return random.normal(size=(size, 10)) / size**0.5, 3 * random.normal(size=(10, classes))


def visited(x, y, weights, seed, **settings):
    """Images ``(steps + 1, b, H, W, C)`` that its APGD looks at, the start first, in double precision."""
    import torch
    import torchattacks

    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(torch.tensor(each) for each in weights)

        def forward(self, x):
            x = x.permute(0, 2, 3, 1)
            seen.append(x.detach().numpy().copy())
            return torch.tanh(x.reshape(len(x), -1) @ self.weights[0]) @ self.weights[1]

    attack = torchattacks.APGD(Net(), **settings)
    images = torch.tensor(x.astype("float64")).permute(0, 3, 1, 2)
    torch.manual_seed(seed)
    attack.attack_single_run(images, torch.tensor(y.astype("int64")))
    return np.stack(seen)
