"""Kinds of files by name; see ``weights`` and ``others``."""

from damaged import others, weights

KINDS = {**weights.KINDS, **others.KINDS}
