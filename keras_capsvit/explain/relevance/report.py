"""What an explainer does, step by step, as a table."""

import collections
import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """A step in a Report: its node, op type, kind and rule, and sums of relevance (None without images).

    What arrived is what the step passed on, lost for want of anything to share it by (z = 0), what biases and other
    constants took, and what the stabilizer of the denominators took. ``growth`` is the sum of absolute values that it
    passed on over that of those that arrived.
    """

    node: str
    op: str
    kind: str
    rule: str
    settings: dict
    arrived: float | None = None
    passed: float | None = None
    lost: float | None = None
    bias: float | None = None
    stabilizer: float | None = None
    growth: float | None = None

    def __str__(self):
        sums = "" if self.arrived is None else f": {self.arrived:.3g} arrived, {self.passed:.3g} passed on"
        return f"{self.op} at {self.node!r} by rule {self.rule!r}{sums}"


_SUMS = ("arrived", "passed", "lost", "bias", "stabilizer")


@dataclasses.dataclass(frozen=True)
class Report:
    """What an explainer does.

    Attributes:
        start: str, the tensor whose value is redistributed; ``stop``: the tensor it is redistributed to.
        rows: list of Row, in the order relevance takes.
        relevance: float, what arrived at ``stop``, summed; None without images.
    """

    start: str
    stop: str
    rows: list
    relevance: float | None = None

    @property
    def ops(self):
        """How many steps there are of each op type, a dict."""
        return dict(collections.Counter(row.op for row in self.rows).most_common())

    def __str__(self):
        ops = ", ".join(f"{count} {op}" for op, count in self.ops.items())
        audited = self.relevance is not None
        heads = "".join(f"{name:>11} " for name in _SUMS) if audited else ""
        lines = [f"Relevance of {self.start} to {self.stop}: {ops}", f"{'op':22} {'rule':14} {heads} node"]
        for row in self.rows:
            sums = "".join(f"{getattr(row, name):11.4g} " for name in _SUMS) if audited else ""
            lines.append(f"{row.op:22} {row.rule:14} {sums} {row.node}")
        if audited:
            lines.append(f"{'':49} {self.relevance:11.4g} {'':36} {self.stop}")
        return "\n".join(lines)
