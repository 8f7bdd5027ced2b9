"""Layers of a model, found in its graph by the scopes that Keras gives their ops."""

import re


def locate(graph, name):
    """The tensor that a layer computes.

    Args:
        graph: Graph.
        name: str, a layer (the last op in its scope that depends on the input), also of nested and subclassed models;
            a path of layers ``"outer/inner"``; or a node of the graph.

    Returns:
        str, name of the tensor; None for None.

    Raises:
        ValueError: if there is none, or several; lists them.
    """
    if name is None:
        return None
    follow = graph.descendants(graph.input)
    names = [known for known in graph.order if known in follow]
    if name in names:
        return f"{name}:0"
    path = name.split("/")
    # Keras numbers the scopes of a traced model's layers; a layer conv_1 is conv_1_1 there, and conv is conv_1.
    numbered = [*(re.escape(layer) + r"(_\d+)?" for layer in path[:-1]), re.escape(path[-1]) + r"_\d+"]
    exact = list(map(re.escape, path))
    for patterns in (numbered, exact) if len(path) == 1 else (exact, numbered):
        scopes = {}
        for node in names:
            scope = _scope(node.split("/"), patterns)
            if scope is not None:
                scopes[scope] = node
        if len(scopes) > 1:
            raise ValueError(
                f"Expected the name of one layer; received {name!r}, which is that of several: {', '.join(scopes)}. "
                "Pass one of these paths, or the part of it that tells it apart."
            )
        if scopes:
            return f"{next(iter(scopes.values()))}:0"
    layers = dict.fromkeys(known.split("/")[-2] for known in names if "/" in known)
    raise ValueError(f"Expected a tap, a layer or a node of the graph; received {name!r}. Layers: {', '.join(layers)}.")


def _scope(parts, patterns):
    """The scope of a node that layers of such names are, one in the other; or None."""
    for start in range(len(parts) - len(patterns) + 1):
        if all(map(re.fullmatch, patterns, parts[start:])):
            return "/".join(parts[: start + len(patterns)])
    return None
