"""Relevance by zennit and LXT, in a process of its own (PyTorch and TensorFlow do not always load beside each other).

    python tests/relevance_of_peers.py chain weights.npz relevance.npz

``weights.npz`` holds the weights of the Keras model in ``test_relevance_peers.py`` by path, the input ``x`` and the
``targets``; ``relevance.npz`` then holds the scores and, by name of the rules, relevance ``(b, H, W, C)``. Chain and
residual need zennit, vit needs LXT.
"""

import sys

import numpy as np
import torch

try:
    # zennit imports torchvision, which does not import beside every torch unless these two ops exist.
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from zennit import rules, types
    from zennit.attribution import Gradient
    from zennit.composites import SpecialFirstLayerMapComposite
    from zennit.layer import Sum
except ImportError:
    rules = None
try:
    from lxt.explicit import functional as lxt
    from lxt.explicit.rules import identity
except ImportError:
    lxt = None

nn = torch.nn
KERAS_EPSILON = 1e-3  # of batch and layer normalisation
ALIKE = {"stabilizer": 1e-12, "zero_params": "bias"}  # biases bypassed; sums of one sign not moved away from 0


def conv(weights, name, normalization=None, **settings):
    """A convolution, with its batch normalisation in the weights."""
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    if normalization:
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (weights[f"{normalization}/{part}"] for part in parts)
        scale = gamma / np.sqrt(variance + KERAS_EPSILON)
        kernel, bias = kernel * scale, (bias - mean) * scale + beta
    if name == "depthwise":
        kernel, settings = kernel.transpose(0, 1, 3, 2), {"groups": kernel.shape[2], **settings}
    height, width, channels, filters = kernel.shape
    layer = nn.Conv2d(channels * settings.get("groups", 1), filters, (height, width), **settings)
    layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    layer.bias.data = torch.tensor(bias)
    return layer


def dense(weights, name):
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    layer = nn.Linear(*kernel.shape)
    layer.weight.data, layer.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
    return layer


class Flatten(nn.Module):
    """In Keras's order."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def chain(weights):
    return nn.Sequential(
        *(conv(weights, "conv1", padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(weights, "conv2", "bn2"), nn.ReLU(), nn.AvgPool2d(2), Flatten()),
        *(dense(weights, "fc1"), nn.ReLU(), dense(weights, "fc2")),
    )


class Residual(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.conv1, self.relu1 = conv(weights, "conv1", padding=1), nn.ReLU()
        self.depthwise, self.relu2 = conv(weights, "depthwise", padding=1), nn.ReLU()
        self.pointwise, self.sum, self.relu3 = conv(weights, "pointwise", "bn"), Sum(), nn.ReLU()
        self.conv2, self.relu4 = conv(weights, "conv2", stride=2), nn.ReLU()
        self.pool, self.fc2 = nn.AdaptiveAvgPool2d(1), dense(weights, "fc2")

    def forward(self, x):
        features = self.relu1(self.conv1(x))
        deep = self.pointwise(self.relu2(self.depthwise(features)))
        summed = self.relu3(self.sum(torch.stack([features, deep], dim=-1)))
        last = self.relu4(self.conv2(torch.cat([summed, features], dim=1)))
        return self.fc2(self.pool(last).flatten(1))


def rules_by_name():
    """Rules of convolutions, of dense layers and of the first layer."""
    box = rules.ZBox(low=np.float32(0), high=np.float32(1), stabilizer=1e-12)
    plus, epsilon = rules.ZPlus(**ALIKE), rules.Epsilon(epsilon=1e-6)
    two_one = rules.AlphaBeta(alpha=2, beta=1, stabilizer=1e-12)
    gamma = rules.Gamma(gamma=0.25, stabilizer=1e-12)
    return {
        "z_plus": (plus, plus, plus),
        "z_plus_box": (plus, plus, box),
        "epsilon": (epsilon, epsilon, epsilon),
        "epsilon_plus_box": (plus, epsilon, box),
        "alpha2_beta1": (two_one, two_one, two_one),
        "gamma": (gamma, gamma, gamma),
        "epsilon_gamma_box": (gamma, epsilon, box),
        "flat": (plus, plus, rules.Flat(**ALIKE)),
        "w_square": (plus, plus, rules.WSquare(**ALIKE)),
    }


def composite(convolution, linear, first_convolution):
    norm = rules.Norm(stabilizer=1e-6)
    kinds = [(types.Activation, rules.Pass()), (types.AvgPool, norm), (Sum, norm)]
    return SpecialFirstLayerMapComposite(
        [*kinds, (types.Convolution, convolution), (types.Linear, linear)], [(types.Convolution, first_convolution)]
    )


def relevance(net, composite, x, sent):
    """Relevance ``(b, H, W, C)`` of what ``sent`` makes of the scores."""
    with Gradient(model=net, composite=composite) as attributor:
        return attributor(x.clone(), sent)[1].numpy().transpose(0, 2, 3, 1)


def contrastive(net, composite, x, one_hot):
    """CLRP1 and CLRP2 as the thesis writes them: two passes each, and their difference."""
    scores = net(x).detach()
    score = (scores * one_hot).sum(1, keepdim=True)
    explained = relevance(net, composite, x, lambda y: score * one_hot)
    others = relevance(net, composite, x, lambda y: score * (1 - one_hot) / (scores.shape[1] - 1))
    last = net[-1] if isinstance(net, nn.Sequential) else net.fc2
    last.weight.data, last.bias.data = -last.weight.data, -last.bias.data
    negated = relevance(net, composite, x, lambda y: score * one_hot)
    last.weight.data, last.bias.data = -last.weight.data, -last.bias.data
    return np.maximum(0, explained - others), np.maximum(0, explained - negated)


def vit(weights, x, heads=2):
    """Scores of a transformer made of LXT's functions; biases of positions, norms and GELUs by its identity rule."""

    def array(name):
        return torch.tensor(weights[name])

    def linear(x, name):
        kernel, bias = array(f"{name}/kernel"), array(f"{name}/bias").flatten()
        kernel = kernel.flatten(0, -2) if name.endswith("attention_output") else kernel.flatten(1)
        return lxt.linear_epsilon(x, kernel.T, bias, epsilon=1e-14)

    def norm(x, name):
        gamma, beta = array(f"{name}/gamma"), array(f"{name}/beta")
        return identity(lambda x: nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, KERAS_EPSILON), x)

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    def attention(x, name):
        query, key, value = (split(linear(x, f"{name}/{part}")) for part in ("query", "key", "value"))
        logits = lxt.matmul(query, key.transpose(-1, -2), epsilon=1e-14)
        mixed = lxt.matmul(lxt.softmax(logits, -1, temperature=query.shape[-1] ** 0.5), value, epsilon=1e-14)
        return linear(mixed.transpose(1, 2).flatten(2), f"{name}/attention_output")

    kernel = array("patches/kernel")
    size, dim = kernel.shape[0], kernel.shape[-1]
    patches = x.unfold(1, size, size).unfold(2, size, size).permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)
    x = lxt.linear_epsilon(patches, kernel.reshape(-1, dim).T, array("patches/bias"), epsilon=1e-14)
    x = torch.cat([array("tokens/token").expand(len(x), -1, -1), x], dim=1)
    x = identity(lambda x: x + array("tokens/position"), x)
    for i in range(sum(name.startswith("norm") and name.endswith("a/gamma") for name in weights.files)):
        x = lxt.add2(x, attention(norm(x, f"norm{i}a"), f"attention{i}"), epsilon=1e-14)
        hidden = identity(nn.functional.gelu, linear(norm(x, f"norm{i}b"), f"mlp{i}a"))
        x = lxt.add2(x, linear(hidden, f"mlp{i}b"), epsilon=1e-14)
    return linear(norm(x, "norm")[:, 0], "head")


def relevance_of_vit(weights):
    x = torch.tensor(weights["x"], dtype=torch.tensor(weights["head/kernel"]).dtype, requires_grad=True)
    scores = vit(weights, x)
    one_hot = nn.functional.one_hot(torch.tensor(weights["targets"]), scores.shape[1])
    return {"scores": scores.detach().numpy(), "attn_lrp": torch.autograd.grad(scores, x, scores * one_hot)[0].numpy()}


def relevance_of_net(net, weights):
    x = torch.tensor(weights["x"].transpose(0, 3, 1, 2).copy())
    scores = net(x).detach()
    one_hot = nn.functional.one_hot(torch.tensor(weights["targets"]), scores.shape[1])
    result = {
        name: relevance(net, composite(*of_layers), x, lambda y: y * one_hot)
        for name, of_layers in rules_by_name().items()
    }
    result["others"], result["negated"] = contrastive(net, composite(*rules_by_name()["z_plus_box"]), x, one_hot)
    return {"scores": scores.numpy(), **result}


def main():
    kind, read, write = sys.argv[1:]
    weights = np.load(read)
    if kind == "vit":
        result = relevance_of_vit(weights)
    else:
        result = relevance_of_net({"chain": chain, "residual": Residual}[kind](weights), weights)
    np.savez(write, **result)


if __name__ == "__main__":
    main()
