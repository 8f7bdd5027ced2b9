"""Which images are shown: by rule, not by hand."""

import numpy as np

RULES = {
    "right": "the most confident correct prediction of each class in turn",
    "wrong": "the most confident wrong predictions",
    "uncertain": "the smallest differences between the first and the second class",
}


def by_rule(predictions, count):
    """Numbers of images to show, and the rule that each was taken by.

    A third each of RULES; where there are too few wrong ones, the others fill their places.

    Args:
        predictions: Predictions.
        count: int.

    Returns:
        List of pairs of an int and a str out of RULES.
    """
    certain, right = -predictions.confidence, predictions.correct
    wrong = [number for number in np.argsort(certain, kind="stable") if not right[number]]
    uncertain = list(np.argsort(predictions.margin, kind="stable"))
    by_class = [
        [number for number in np.argsort(certain, kind="stable") if right[number] and predictions.label[number] == each]
        for each in np.unique(predictions.label[right])
    ]
    longest = max(map(len, by_class), default=0)
    correct = [each[turn] for turn in range(longest) for each in by_class if turn < len(each)]
    rule_of, third = {}, -(-count // 3)
    for most, limit in ((third, True), (count, False)):
        for rule, numbers in (("wrong", wrong), ("uncertain", uncertain), ("right", correct)):
            there = sum(each == rule for each in rule_of.values())
            for number in numbers:
                if len(rule_of) == count or (limit and there == most):
                    break
                if int(number) not in rule_of:
                    rule_of[int(number)] = rule
                    there += 1
    order = list(RULES)
    return sorted(rule_of.items(), key=lambda pair: order.index(pair[1]))
