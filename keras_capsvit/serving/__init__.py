"""Export to SavedModels that TF Serving serves, and loading them back as models (TensorFlow backend)."""

from keras_capsvit.versions import require_tensorflow

require_tensorflow("keras_capsvit.serving")

from keras_capsvit.serving.export import export
from keras_capsvit.serving.load import ServedModel, load

__all__ = ["ServedModel", "export", "load"]
