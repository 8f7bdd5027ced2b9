"""Models, each a functional ``keras.Model`` that returns class scores."""

from keras_capsvit.models.alexnet import AlexNet
from keras_capsvit.models.applications import DenseNet, SwinTransformer
from keras_capsvit.models.capsnet import AffCapsNet, CapsNet
from keras_capsvit.models.convnet import VGG19, ConvNetAvg, ConvNetFC
from keras_capsvit.models.decoded_convnet import ConvNetCR, ConvNetCRSF, ConvNetR
from keras_capsvit.models.flops import flops
from keras_capsvit.models.googlenet import GoogLeNet
from keras_capsvit.models.gracapsnet import GraCapsNet
from keras_capsvit.models.levit import LeViT
from keras_capsvit.models.loading import load_model
from keras_capsvit.models.mixer import MLPMixer
from keras_capsvit.models.reconstruction import CapsuleModel, build_decoder
from keras_capsvit.models.resnet import ResNet, ResNet18, ResNet20, ResNet34, ResNet50, ResNet101, ResNet152
from keras_capsvit.models.vit import DeiT, VisionTransformer
from keras_capsvit.models.weights import load_weights, load_weights_from

__all__ = [
    "VGG19",
    "AffCapsNet",
    "AlexNet",
    "CapsNet",
    "CapsuleModel",
    "ConvNetAvg",
    "ConvNetCR",
    "ConvNetCRSF",
    "ConvNetFC",
    "ConvNetR",
    "DeiT",
    "DenseNet",
    "GoogLeNet",
    "GraCapsNet",
    "LeViT",
    "MLPMixer",
    "ResNet",
    "ResNet18",
    "ResNet20",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "SwinTransformer",
    "VisionTransformer",
    "build_decoder",
    "flops",
    "load_model",
    "load_weights",
    "load_weights_from",
]
