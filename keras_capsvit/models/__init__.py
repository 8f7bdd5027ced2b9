"""Models, each a functional ``keras.Model`` that returns class scores."""

from keras_capsvit.models.gracapsnet import GraCapsNet
from keras_capsvit.models.reconstruction import CapsuleModel, build_decoder

__all__ = ["CapsuleModel", "GraCapsNet", "build_decoder"]
