"""Relevance propagation on TensorFlow graphs. It needs TensorFlow, so it is imported at first use.

``sources`` says what is traced, ``graph`` traces it, ``canonical`` reads its ops as steps, ``rules`` redistribute
relevance at a step, ``engine`` walks.
"""

from keras_capsvit.explain.relevance.engine import Engine, locate
from keras_capsvit.explain.relevance.graph import Graph, trace
from keras_capsvit.explain.relevance.rules import choose, register_rule
from keras_capsvit.explain.relevance.sources import load, read

__all__ = ["Engine", "Graph", "choose", "load", "locate", "read", "register_rule", "trace"]
