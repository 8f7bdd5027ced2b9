"""Chooses a rule for every step of a graph."""

import dataclasses
import fnmatch
import re

from keras_capsvit.explain.relevance import rules as rulebook
from keras_capsvit.explain.relevance.canonical import Step
from keras_capsvit.explain.relevance.graph import node_of
from keras_capsvit.explain.relevance.refusals import UnsupportedOpError


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step with its rule, and whether it is the last linear layer, the one whose weights CLRP negates."""

    step: Step
    rule: rulebook.Rule
    settings: dict
    last_linear: bool = False


def plan_of(reader, composite, start, stop):
    """Rules for all steps between two tensors.

    Args:
        reader: Reader of the graph.
        composite: Composite, the rules; the user's entries in it must each apply to something.
        start: name of the tensor where relevance starts.
        stop: name of the tensor that it goes to.

    Returns:
        List of Planned, from the start on.

    Raises:
        UnsupportedOpError: for ops without a rule; names all of them.
        ValueError: for entries that apply to nothing, and a start that does not depend on the stop.
    """
    source, begin = node_of(stop), node_of(start)
    if begin not in reader.follow or begin == source:
        raise ValueError(
            f"Expected {begin!r}, where relevance starts, to depend on {source!r}; it does not{_why(reader, begin)}."
        )
    entries = composite.entries
    reached, plan, unsupported = {begin}, [], {}
    for name in reversed(reader.graph.order):
        if name not in reached or name == source:
            continue
        step = reader.step(name)
        choice = _choose(entries, step)
        if step.kind == "normalization" and choice and choice[0] is rulebook.GRADIENT:
            step = reader.step(name, whole=False)
            choice = _choose(entries, step)
        if choice is None:
            unsupported.setdefault(step.op, []).append(name)
            choice = rulebook.GRADIENT, {}
        first_linear = step.linear is not None and not any(planned.step.linear for planned in plan)
        plan.append(Planned(step, *choice, first_linear))
        goes_to = (step.main,) if choice[0].one_way and step.main is not None else step.active
        reached.update(node_of(step.inputs[i]) for i in goes_to)
    if unsupported:
        raise UnsupportedOpError(_unsupported(unsupported))
    for entry in entries[: composite.own]:
        if entry[0] != "*" and not any(_applies(entry, planned.step) for planned in plan):
            layers = dict.fromkeys(planned.step.path for planned in plan if planned.step.linear)
            raise ValueError(
                f"Expected the entry {entry!r} of rules to apply to a step between {start!r} and "
                f"{stop!r}; it applies to none. Linear layers there: {', '.join(layers)}."
            )
    return plan


def _why(reader, start):
    """How a sentence ends that says that a node's value does not follow that of the source."""
    before, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in before:
            before.add(name)
            waiting += map(node_of, reader.graph.inputs(name))
    follow = reader.follow
    stopping = [
        f"{reader.graph.nodes[name].op} at {name!r}"
        for name in reader.graph.order
        if name in before and name not in follow and any(node_of(i) in follow for i in reader.graph.inputs(name))
    ]
    return f": no relevance passes {', '.join(stopping)}" if stopping else ""


def _choose(entries, step):
    """Rule of a step and its settings, or None for an op that has no rule."""
    known = _known(step)
    for entry in entries:
        rule = _applies(entry, step)
        if rule is not None:
            settings = entry[2] if len(entry) == 3 else {}
            rulebook.check_settings(rule, settings)
            return rule, settings
    return (next(iter(known.values())), {}) if known else None


def _known(step):
    """Rules by name that a step has."""
    registered = None if step.linear else rulebook.RULES.get(step.op)
    return registered or rulebook.RULES.get(step.kind, {})


def _applies(entry, step):
    """The rule of an entry if it applies to a step, or None."""
    where, name = entry[:2]
    rule = _known(step).get(name) or (rulebook.GRADIENT if name == "gradient" else None)
    return rule if _matches(where, step) else None


def _matches(where, step):
    if where == "*" or where in (step.op, step.kind) or where == step.path:
        return True
    if where == "input":
        return step.linear is not None and step.linear.first
    parts = step.path.split("/")
    return any(fnmatch.fnmatchcase(layer, where) for part in parts for layer in (part, re.sub(r"_\d+$", "", part)))


def _unsupported(ops):
    listed = "; ".join(f"{op} at {', '.join(map(repr, names))}" for op, names in ops.items())
    example = next(iter(ops))
    return (
        f"Expected ops that relevance has a rule for; found {listed}. Say how relevance passes with "
        f"explain.register_rule({example!r}, function), where function(op, relevances) returns one relevance per input."
    )
