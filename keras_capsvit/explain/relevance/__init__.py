"""Relevance propagation on TensorFlow graphs. It needs TensorFlow, so it is imported at first use.

``sources`` says what is traced and ``graph`` traces it; ``linear`` finds the linear layers, ``canonical`` reads all ops
as steps; ``rules`` redistribute relevance at a step, ``composites`` name rules for whole models; ``walk`` goes back
step by step, ``engine`` plans and compiles that, ``report`` is its account.
"""

from keras_capsvit.explain.relevance.composites import choose
from keras_capsvit.explain.relevance.engine import Engine, locate
from keras_capsvit.explain.relevance.graph import Graph, trace
from keras_capsvit.explain.relevance.rules import register_rule
from keras_capsvit.explain.relevance.sources import load, read

__all__ = ["Engine", "Graph", "choose", "load", "locate", "read", "register_rule", "trace"]
