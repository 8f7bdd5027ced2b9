"""Relevance propagation on TensorFlow graphs. It needs TensorFlow, so it is imported at first use.

``sources`` says what is traced, ``graph`` traces it, and ``refusals`` says what cannot be; ``scores`` finds the class
scores in it, ``layers`` the layers; ``linear`` finds the linear ones, ``intervals`` tells signs, ``canonical`` reads
all ops as steps; ``rules`` redistribute relevance at a step, ``composites`` name rules for whole models; ``walk`` goes
back step by step, by the rules that ``plan`` chooses; ``engine`` compiles that, ``report`` is its account, ``balance``
judges what arrived.
"""

from keras_capsvit.explain.relevance.balance import Balance
from keras_capsvit.explain.relevance.composites import choose
from keras_capsvit.explain.relevance.engine import Engine
from keras_capsvit.explain.relevance.graph import Graph, trace
from keras_capsvit.explain.relevance.layers import locate
from keras_capsvit.explain.relevance.rules import register_rule
from keras_capsvit.explain.relevance.sources import load, read, rows

__all__ = ["Balance", "Engine", "Graph", "choose", "load", "locate", "read", "register_rule", "rows", "trace"]
