"""One of the outputs of a model."""

from keras_capsvit import checks


def check_output(output):
    """Refuse what is no name and no position of an output, and not None; otherwise return it."""
    return output if output is None or isinstance(output, str) else checks.integer("output", output, low=-(2**31))


def select_output(outputs, output, name):
    """One of several outputs.

    Args:
        outputs: tensor, or a dict, list or tuple of such.
        output: str or int, or None for the only one.
        name: str, of the model, for the message.

    Raises:
        ValueError: lists the outputs.
    """
    check_output(output)
    if not isinstance(outputs, dict | list | tuple):
        if output not in (None, 0):
            raise ValueError(f"{name} has one output; received output={output!r}. Leave it out.")
        return outputs
    by_name = outputs if isinstance(outputs, dict) else dict(enumerate(outputs))
    if output is None and len(by_name) == 1:
        return next(iter(by_name.values()))
    if isinstance(output, int) and output not in by_name and -len(by_name) <= output < len(by_name):
        return list(by_name.values())[output]
    if output is None and "outputs" in by_name:  # what serving.export calls the scores beside what comes with them
        output = "outputs"
    if output not in by_name:
        raise ValueError(
            f"Expected output= to name one of the outputs of {name}, {list(by_name)}; received {output!r}. What has no "
            "such argument takes taps.scores(model, output) in place of the model."
        )
    return by_name[output]
