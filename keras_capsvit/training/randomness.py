"""Random numbers of a training: the same in two runs, and after an interruption."""

import os
import random

import keras
import numpy as np

from keras_capsvit import checks
from keras_capsvit.private import global_seed_state


def set_deterministic(seed) -> None:
    """Make what follows reproducible bit by bit: seeds, and operations whose result does not depend on threads.

    Call it first, before models and streams are made. It holds for the process, costs some speed, and with TensorFlow
    makes operations that have no deterministic form raise. The same machine, versions and inputs give the same bits;
    other processors may sum in another order.

    Args:
        seed: int in [0, 2**32), of Python's, NumPy's and Keras's random numbers, and TensorFlow's where it is there.

    Raises:
        ValueError: for another seed; on JAX with an accelerator unless XLA was told so, see the message; on another
            backend.
    """
    checks.integer("seed", seed, 0, 2**32 - 1)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif backend == "jax":
        import jax

        flag = "--xla_gpu_deterministic_ops=true"
        if jax.default_backend() == "gpu" and flag not in os.environ.get("XLA_FLAGS", ""):
            raise ValueError(
                f"On a GPU, JAX is deterministic only when it is started so; set the environment variable XLA_FLAGS to "
                f"{flag} before Python starts."
            )
    else:
        raise ValueError(f"Determinism needs the tensorflow or the jax backend; received KERAS_BACKEND={backend!r}.")
    keras.utils.set_random_seed(int(seed))


def random_state():
    """State of the generators that belong to no model, Python's, NumPy's and Keras's, a dict that JSON takes."""
    keras_state = keras.ops.convert_to_numpy(global_seed_state())  # first, because it may be made now by Python's
    version, numbers, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002, what users' streams may draw from
    numpy = {**numpy, "state": {"key": numpy["state"]["key"].tolist(), "pos": int(numpy["state"]["pos"])}}
    return {"keras": keras_state.tolist(), "python": [version, list(numbers), gauss], "numpy": numpy}


def set_random_state(state):
    """Set the generators to what ``random_state`` returned."""
    global_seed_state().assign(np.array(state["keras"]))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
