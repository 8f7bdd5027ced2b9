"""Learning rates that follow the steps of an optimizer."""

import keras
from keras import ops

from keras_capsvit import checks


@keras.saving.register_keras_serializable(package="keras_capsvit")
class LinearWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that grows linearly to the first one of a schedule, which then begins (Goyal et al. 2017, 2.2).

    Step ``t`` of the first ``n`` has ``(t + 1) / (n + 1)`` of the schedule's first rate; step ``n`` is the schedule's
    own first.

    Args:
        schedule: float >= 0, a rate that stays; or a keras.optimizers.schedules.LearningRateSchedule.
        steps: int >= 0, the ``n`` steps.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, schedule, steps):
        super().__init__()
        if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            checks.number("schedule, unless it is one of keras.optimizers.schedules,", schedule, 0)
        self.schedule = schedule
        self.steps = checks.integer("steps", steps)

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        rate = self._rate(ops.maximum(step - self.steps, 0))
        share = (ops.cast(step, "float32") + 1) / (self.steps + 1)
        return rate * ops.minimum(share, 1.0)

    def _rate(self, step):
        return ops.cast(self.schedule(step) if callable(self.schedule) else self.schedule, "float32")

    def get_config(self):
        is_schedule = callable(self.schedule)
        schedule = keras.optimizers.schedules.serialize(self.schedule) if is_schedule else self.schedule
        return {"schedule": schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.optimizers.schedules.deserialize(schedule)
        return cls(schedule, config["steps"])
