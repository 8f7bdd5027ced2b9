"""What is called beside a model: explainers and attacks, in whose place a model is an error."""

from keras_capsvit import checks
from keras_capsvit.taps.compiled import is_model


def check_no_model(name, value, takes, remedy):
    """Refuse a model, which can be called but takes other arguments, and what cannot be called; otherwise return it.

    Args:
        name: str, what the message calls it.
        value: what was received.
        takes: str, arguments and result of what is expected.
        remedy: str, what to give instead of a model.

    Raises:
        ValueError: with what was received.
    """
    if is_model(value):
        raise ValueError(f"{name} must be a callable {takes}; received a model, {type(value).__name__}. {remedy}")
    return checks.function(name, value, takes)


def check_explainer(name, value, takes="(x, target) → maps (b, H, W)"):
    """Refuse what is no explainer; otherwise return it. See ``check_no_model``."""
    return check_no_model(name, value, takes, "Give an explainer of it, such as explain.Saliency(model).")


def check_attack(value):
    """Refuse what is no attack; otherwise return it. See ``check_no_model``."""
    takes = "(objective, x, y, targeted) → adversarial images"
    return check_no_model("attack", value, takes, "Give an attack, such as attacks.PGD(0.03).")
