"""What an explainer does, step by step, as a table."""

import collections
import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """A step in a Report: its node, op type, kind and rule, and sums of relevance (None without images)."""

    node: str
    op: str
    kind: str
    rule: str
    settings: dict
    arrived: float | None
    passed: float | None
    lost: float | None


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
        lines = [f"Relevance of {self.start} to {self.stop}: {ops}", f"{'op':22} {'rule':14} node"]
        if self.rows and self.rows[0].arrived is not None:
            lines[1] = f"{'op':22} {'rule':14} {'arrived':>11} {'passed':>11} {'lost':>11}  node"
        for row in self.rows:
            sums = "" if row.arrived is None else f"{row.arrived:11.4g} {row.passed:11.4g} {row.lost:11.4g}  "
            lines.append(f"{row.op:22} {row.rule:14} {sums}{row.node}")
        if self.relevance is not None:
            lines.append(f"{'':37} {self.relevance:11.4g} {'':24} {self.stop}")
        return "\n".join(lines)
