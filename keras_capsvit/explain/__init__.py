"""Explainers: callables ``explainer(x, target=None)`` from images ``(b, H, W, C)`` to maps ``(b, H, W)``."""

from keras_capsvit.explain.base import Explainer
from keras_capsvit.explain.baselines import RandomMap
from keras_capsvit.explain.cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from keras_capsvit.explain.contrastive import CLRP
from keras_capsvit.explain.feature_maps import FeatureMapAttention
from keras_capsvit.explain.gradients import InputXGradient, IntegratedGradients, Saliency, SmoothGrad
from keras_capsvit.explain.guided import DeconvNet, GuidedBackprop
from keras_capsvit.explain.lrp import LRP, register_rule
from keras_capsvit.explain.nodes import GraphAttention, GraphContribution
from keras_capsvit.explain.rollout import AttentionRollout
from keras_capsvit.explain.transformer_attribution import TransformerAttribution
from keras_capsvit.explain.vis import ScoreCAM

__all__ = [
    "CLRP",
    "LRP",
    "AttentionRollout",
    "DeconvNet",
    "EigenCAM",
    "Explainer",
    "FeatureMapAttention",
    "GradCAM",
    "GradCAMPlusPlus",
    "GraphAttention",
    "GraphContribution",
    "GuidedBackprop",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCAM",
    "RandomMap",
    "Saliency",
    "ScoreCAM",
    "SmoothGrad",
    "TransformerAttribution",
    "register_rule",
]
