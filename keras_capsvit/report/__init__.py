"""The audit page: accuracy, explanations, how good these are, and robustness of any classifier on one page."""

from keras_capsvit.report.audit import Audit, audit
from keras_capsvit.report.calibration import Calibration, calibration
from keras_capsvit.report.effort import EFFORTS, Effort
from keras_capsvit.report.parts import PARTS, STEPS

__all__ = ["EFFORTS", "PARTS", "STEPS", "Audit", "Calibration", "Effort", "audit", "calibration"]
