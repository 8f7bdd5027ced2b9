"""Numbers as records take them: finite, and in percent."""

import math


def without_nan(value):
    """Lists and dicts with None for every NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def in_percent(share):
    """A share in [0, 1] in percent; None for None."""
    return None if share is None else 100 * float(share)


def known(measured):
    """Numbers by name without those that are None, because nothing was there to measure."""
    return {name: value for name, value in measured.items() if value is not None}
