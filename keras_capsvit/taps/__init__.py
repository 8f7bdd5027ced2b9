"""What a model is, whatever it is: its class scores, and its intermediates by name. The one place that knows.

A model is a Keras model (functional, Sequential, subclassed, nested), a SavedModel, or any callable from images to
class scores. ``declared`` are the taps that models of this package list themselves; ``recording`` runs a live model and
sees its layers and its attention; ``graphs`` reads the functions of SavedModels, ``runners`` run either, and
``outputs`` picks one of several outputs; ``scores`` finds the class scores before any softmax or sigmoid, of which
``compiled`` compiles functions once per model; ``seen`` lists what runs in a model, ``feature_maps`` finds the last
feature map and the tokens, ``points`` gives all intermediates by name; ``centres`` tells where nodes lie on the image;
``influence`` and ``reading`` what the scores depend on; ``pixels`` the range of the input; ``precision`` lets a model
compute in another one.
"""

from keras_capsvit.taps.callables import check_attack, check_explainer, check_no_model
from keras_capsvit.taps.centres import OF_NODES, centres
from keras_capsvit.taps.compiled import compiled, is_model
from keras_capsvit.taps.declared import names
from keras_capsvit.taps.feature_maps import FeatureMap, feature_map, tokens
from keras_capsvit.taps.outputs import check_output, select_output
from keras_capsvit.taps.pixels import input_range
from keras_capsvit.taps.points import tap
from keras_capsvit.taps.precision import computing_in_bfloat16, in_bfloat16
from keras_capsvit.taps.reading import attentions, tokens_read
from keras_capsvit.taps.recording import eagerly
from keras_capsvit.taps.runners import on_array, served_function
from keras_capsvit.taps.scores import Scores, predictions, scores
from keras_capsvit.taps.seen import layers, resolve

__all__ = [
    "OF_NODES",
    "FeatureMap",
    "Scores",
    "attentions",
    "centres",
    "check_attack",
    "check_explainer",
    "check_no_model",
    "check_output",
    "compiled",
    "computing_in_bfloat16",
    "eagerly",
    "feature_map",
    "in_bfloat16",
    "input_range",
    "is_model",
    "layers",
    "names",
    "on_array",
    "predictions",
    "resolve",
    "scores",
    "select_output",
    "served_function",
    "tap",
    "tokens",
    "tokens_read",
]
