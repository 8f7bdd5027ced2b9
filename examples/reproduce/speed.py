"""How fast this machine trains: what rows will take here, and whether bfloat16 is worth it."""

import functools
import time

import keras
import numpy as np

from keras_capsvit import GraCapsNet, MarginLoss

# Seconds of the step below where the minutes in the TOML files were measured: two threads of one core of an AMX
# AVX-512 processor with nothing else running, TensorFlow 2.21, float32.
REFERENCE = 0.14
POLICIES = ("float32", "mixed_bfloat16")


@functools.cache
def step_seconds(policy="float32", batch_size=32, rounds=5):
    """Median seconds of a training step of GraCapsNet on 28x28 images.

    Args:
        policy: str, Keras's name of a dtype policy.
        batch_size: int.
        rounds: int, steps measured, after two for warming up.

    Returns:
        float.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = GraCapsNet((28, 28, 1), 10)
        model.compile("adam", MarginLoss())
    finally:
        keras.config.set_dtype_policy(before)
    rng = np.random.default_rng(0)
    x, y = rng.random((batch_size, 28, 28, 1), "float32"), rng.integers(0, 10, batch_size)
    seconds = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        model.train_on_batch(x, y)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[2:]))


def faster_policy():
    """The policy of ``POLICIES`` whose step takes less time here, and a sentence that says both times."""
    seconds = {policy: step_seconds(policy) for policy in POLICIES}
    best = min(seconds, key=seconds.get)
    told = ", ".join(f"{policy} {1000 * each:.0f} ms" for policy, each in seconds.items())
    return best, f"A training step of GraCapsNet (32 images) takes here: {told}; trained is in {best}."


def minutes_here(minutes, policy):
    """What takes ``minutes`` on the machine of ``REFERENCE`` takes here in a policy, in minutes, a float."""
    return minutes * step_seconds(policy) / REFERENCE
