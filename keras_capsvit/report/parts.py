"""The parts of an audit and their steps, in the order in which they run and stand on the page."""

import dataclasses
from collections.abc import Callable

from keras_capsvit.report import (
    accuracy,
    card,
    corruptions,
    explanations,
    limits,
    patches,
    quality,
    robustness,
    trust,
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a part: ``run(subject, results)`` returns a Section, of what came of earlier steps by name."""

    name: str
    title: str
    run: Callable


PARTS = {
    "card": (
        "Card",
        "What the model is, how fast it answers, and whether what usually goes wrong did.",
        (
            Step("card.model", "The model", card.model),
            Step("card.latency", "Latency", card.latency),
            Step("card.checks", "Checks", card.common_mistakes),
        ),
    ),
    "accuracy": (
        "Accuracy",
        "How often it is right, what it confuses, and whether its confidence means something.",
        (
            Step("accuracy.accuracy", "Accuracy and confusion", accuracy.accuracy),
            Step("accuracy.calibration", "Calibration", accuracy.confidence),
            Step("accuracy.mistakes", "The most confident mistakes", accuracy.mistakes),
        ),
    ),
    "explanations": (
        "Explanations",
        "What the model looks at, on images that were chosen by rule.",
        (
            Step("explanations.side_by_side", "All explainers side by side", explanations.side_by_side),
            Step("explanations.two_classes", "The predicted class against the second", explanations.two_classes),
            Step("explanations.built_in", "What the model explains by itself", explanations.built_in),
        ),
    ),
    "quality": (
        "Quality of explanations",
        "Whether these explanations say what the model's scores depend on, and which one to trust here.",
        (
            Step("quality.measures", "Faithfulness and sensitivity", quality.measures),
            Step("quality.randomisation", "Randomisation check", quality.randomisation),
            Step("quality.trust", "Which one to trust", trust.trust),
        ),
    ),
    "robustness": (
        "Robustness",
        "What it takes to make the model wrong: adversarial examples, corruptions and patches.",
        (
            Step("robustness.autoattack", "AutoAttack", robustness.auto_attack),
            Step("robustness.curve", "Accuracy over the radius", robustness.curve),
            Step("robustness.smallest", "Smallest perturbations", robustness.smallest),
            Step("robustness.corruptions", "Corruptions", corruptions.corruptions),
            Step("robustness.patches", "Where a patch fools", patches.positions),
            Step("robustness.tokens", "Shifts and temperature of transformers", patches.tokens),
        ),
    ),
    "limits": (
        "Limits",
        "What was not run and why, on how many images, and how every figure is repeated.",
        (Step("limits.limits", "What to keep in mind", limits.limits),),
    ),
}
ALWAYS = ("limits.limits",)  # quick, and depends on what else was done
STEPS = tuple(step.name for _, _, steps in PARTS.values() for step in steps)


def selected(only, skip):
    """Steps to run, in their order."""
    groups = {part: {step.name for step in steps} for part, (_, _, steps) in PARTS.items()}
    groups |= {name: {name} for name in STEPS}
    named = []
    for option, names in (("only", only), ("skip", skip)):
        names = [names] if isinstance(names, str) else names or ()
        unknown = [name for name in names if name not in groups]
        if unknown:
            raise ValueError(f"Expected {option} to name parts, {tuple(PARTS)}, or steps, {STEPS}; received {unknown}.")
        named.append(set().union(*(groups[name] for name in names)))
    names = (named[0] if only else set(STEPS)) - named[1] | set(ALWAYS)
    return [step for _, _, steps in PARTS.values() for step in steps if step.name in names]
