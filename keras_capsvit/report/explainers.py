"""The explainers that fit a model, and why others do not."""

import functools

from keras_capsvit import checks, explain
from keras_capsvit.explain.base import in_batches

BASELINE = "RandomMap"
_TRIED = 2  # images that an explainer has to explain to fit
_RULES = {"lengths": "epsilon", "logits": "z_plus"}  # votes of capsules may be negative, which z+ loses


def factories(subject):
    """Callables from a model to explainers, by name, from cheap to expensive.

    Args:
        subject: Subject.
    """
    few, size, rules = subject.effort, {"batch_size": subject.batch_size}, _RULES[subject.kind]
    seed = {"seed": subject.seed}
    plain = ("Saliency", "InputXGradient", "GradCAM", "GradCAMPlusPlus", "LayerCAM", "HiResCAM", "EigenCAM")
    grids = ("FeatureMapAttention", "AttentionRollout", "TransformerAttribution")
    kinds = {name: functools.partial(getattr(explain, name), **size) for name in plain}
    kinds["IntegratedGradients"] = functools.partial(
        explain.IntegratedGradients, steps=few.steps, baseline=_black(subject), **size
    )
    kinds["SmoothGrad"] = lambda model: explain.SmoothGrad(explain.Saliency(model, **size), samples=few.samples, **seed)
    kinds |= {name: functools.partial(getattr(explain, name), **size) for name in ("GuidedBackprop", "DeconvNet")}
    kinds |= {name: functools.partial(getattr(explain, name), rules=rules, **size) for name in ("LRP", "CLRP")}
    kinds |= {name: functools.partial(getattr(explain, name), **size) for name in grids}
    kinds |= {
        name: functools.partial(getattr(explain, name), **size) for name in ("GraphContribution", "GraphAttention")
    }
    if few.name != "quick":
        kinds["ScoreCAM"] = functools.partial(explain.ScoreCAM, **size)
    kinds[BASELINE] = lambda model: explain.RandomMap(**seed)
    return kinds


def fitting(subject):
    """Explainers that fit the model, by name, and for others the reason.

    Args:
        subject: Subject.

    Returns:
        Pair of a dict from names to explainers, and a dict from names to str.
    """
    x, _ = subject.read(range(min(_TRIED, len(subject.predictions.label))))
    target = subject.predictions.predicted[: len(x)]
    fits, reasons = {}, {}
    for name, make in factories(subject).items():
        try:
            explainer = make(subject.model)
            checks.maps_of_images(explainer(x, target), x)
        except (ValueError, ImportError, NotImplementedError, TypeError) as error:
            reasons[name] = str(error)
        else:
            fits[name] = explainer
    if subject.effort.name == "quick":
        reasons["ScoreCAM"] = "a forward pass for each channel of each image; run with more effort."
    return fits, reasons


def maps_of(explainer, x, target, batch_size):
    """Maps ``(n, H, W)`` of images ``(n, H, W, C)`` and class ids ``(n,)``, in batches of one size."""
    return in_batches(lambda part: explainer(x[part], target[part]), len(x), batch_size)


def _black(subject):
    low, _ = checks.limits(subject.bounds, subject.shape[-1])
    return low
