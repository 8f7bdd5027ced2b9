"""Square attack against torchattacks: the same success after the same number of queries."""

import keras
import numpy as np
import pytest

from keras_capsvit import attacks


@pytest.mark.peers
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.12), ("l2", 2.0)])
def test_as_successful_as_torchattacks(norm, epsilon, digits):
    """With windows that may lie at the last row and column, as in the paper; theirs do not."""
    torch, torchattacks = pytest.importorskip("torch"), pytest.importorskip("torchattacks")
    keras.utils.set_random_seed(0)
    x, y = (each[:1200] for each in digits)
    x = np.pad(x.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2), (0, 0)))
    convolutions = [keras.layers.Conv2D(8, 3, strides=2, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *convolutions, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:1000], y[:1000], epochs=15, verbose=0)
    x, y = x[1000:], y[1000:]
    first, bias, second, bias2, dense, offset = (torch.tensor(each) for each in model.get_weights())
    dense = dense.reshape(6, 6, 8, 10).permute(3, 2, 0, 1).reshape(10, 288)
    weights = (first.permute(3, 2, 0, 1), bias, second.permute(3, 2, 0, 1), bias2, dense, offset)
    nn = torch.nn
    twin = [nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    twin = nn.Sequential(*twin)
    for parameter, value in zip(twin.parameters(), weights, strict=True):
        parameter.data = value.contiguous()
    pixels, classes = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y)
    np.testing.assert_allclose(twin(pixels).detach().numpy(), model.predict(x, verbose=0), atol=1e-3)
    for queries, seeds in ((200, 6), (1000, 2)):
        ours, theirs = [], []
        for seed in range(seeds):  # theirs differ more, because all images have the same windows
            ours.append(attacks.Square(epsilon, norm=norm, queries=queries, seed=seed).run(model, x, y).fooled.mean())
            attack = torchattacks.Square(
                twin, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, n_queries=queries, seed=seed
            )
            attack.random_int = lambda low, high: int(torch.randint(low, high + 1, ()))
            theirs.append((twin(attack(pixels, classes)).argmax(1) != classes).float().mean().item())
        assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.02), (queries, ours, theirs)
