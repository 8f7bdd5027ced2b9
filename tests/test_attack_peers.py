"""Square and AutoAttack against torchattacks: as successful after as many queries, and as many images left."""

import keras
import numpy as np
import pytest

from keras_capsvit import attacks, evaluate

NORMS = {"linf": "Linf", "l2": "L2"}


@pytest.fixture
def twins(digits):
    """A ConvNet, the same one in PyTorch, and images and labels that neither has seen."""
    torch = pytest.importorskip("torch")
    keras.utils.set_random_seed(0)
    x, y = digits
    x = np.pad(x.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2), (0, 0)))
    convolutions = [keras.layers.Conv2D(8, 3, strides=2, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *convolutions, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:1000], y[:1000], epochs=15, verbose=0)
    x, y = x[1000:1200], y[1000:1200]
    kernel, bias, kernel2, bias2, dense, offset = (torch.tensor(each) for each in model.get_weights())
    dense = dense.reshape(6, 6, 8, 10).permute(3, 2, 0, 1).reshape(10, 288)
    weights = (kernel.permute(3, 2, 0, 1), bias, kernel2.permute(3, 2, 0, 1), bias2, dense, offset)
    nn = torch.nn
    twin = [nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    twin = nn.Sequential(*twin).eval()
    for parameter, value in zip(twin.parameters(), weights, strict=True):
        parameter.data = value.contiguous()
    pixels = torch.tensor(x).permute(0, 3, 1, 2)
    np.testing.assert_allclose(twin(pixels).detach().numpy(), model.predict(x, verbose=0), atol=1e-3)
    return model, twin, x, y, pixels, torch.tensor(y)


@pytest.mark.peers
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.12), ("l2", 2.0)])
def test_square_is_as_successful_as_that_of_torchattacks(norm, epsilon, twins):
    """With windows that may lie at the last row and column, as in the paper; theirs do not."""
    torch, torchattacks = pytest.importorskip("torch"), pytest.importorskip("torchattacks")
    model, twin, x, y, pixels, classes = twins
    for queries, seeds in ((200, 6), (1000, 2)):
        ours, theirs = [], []
        for seed in range(seeds):  # theirs differ more, because all images have the same windows
            ours.append(attacks.Square(epsilon, norm=norm, queries=queries, seed=seed).run(model, x, y).fooled.mean())
            attack = torchattacks.Square(twin, norm=NORMS[norm], eps=epsilon, n_queries=queries, seed=seed)
            attack.random_int = lambda low, high: int(torch.randint(low, high + 1, ()))
            theirs.append((twin(attack(pixels, classes)).argmax(1) != classes).float().mean().item())
        assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.02), (queries, ours, theirs)


@pytest.mark.long
@pytest.mark.peers
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 0.7)])
def test_autoattack_leaves_as_many_images_as_that_of_torchattacks(norm, epsilon, twins):
    """The version "standard", as a whole; at radii at which some hundred of 200 images are left."""
    torchattacks = pytest.importorskip("torchattacks")
    model, twin, x, y, pixels, classes = twins
    report = evaluate.auto_attack(model, attacks.AutoAttack(epsilon, norm=norm), (x, y), batch_size=200)
    theirs = torchattacks.AutoAttack(twin, norm=NORMS[norm], eps=epsilon, version="standard", n_classes=10, seed=0)
    images = theirs(pixels, classes)
    left = int((twin(images).argmax(1) == classes).sum())
    print(norm, epsilon, report.after, left)
    assert 40 <= left <= 160
    assert report.robust_accuracy * 200 == pytest.approx(left, abs=1)
