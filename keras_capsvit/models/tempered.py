"""What models share whose blocks have attention with a temperature (thesis Eq. 7.3)."""

import keras
import numpy as np

from keras_capsvit.models.convnet import LogitModel


@keras.saving.register_keras_serializable(package="keras_capsvit")
class TemperedModel(LogitModel):
    """Model of logits with blocks of attention, whose temperature is settable at any time; see its subclasses."""

    @property
    def blocks(self):
        """The layers with attention in order."""
        return [layer for layer in self.layers if hasattr(layer, "temperature")]

    @property
    def temperature(self):
        """Float that attention scores are divided by, or a tuple of one per block where they differ."""
        values = [block.temperature for block in self.blocks]
        return values[0] if len(set(values)) == 1 else tuple(values)

    @temperature.setter
    def temperature(self, value):
        for block, temperature in zip(self.blocks, per_block(value, len(self.blocks)), strict=True):
            block.temperature = temperature

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


def per_block(temperature, depth):
    """A temperature for each of ``depth`` blocks, of a float or one per block; refuses another number."""
    values = tuple(temperature) if isinstance(temperature, list | tuple | np.ndarray) else (temperature,) * depth
    if len(values) != depth:
        raise ValueError(f"temperature must be a float or {depth} of them, one per block; received {temperature}.")
    return values
