"""A short run of the fuzzer: cheap calls only, in this process. ``python tests/fuzz`` is the long one."""

import numpy as np
import pytest
from fuzz import calls, campaign, subjects
from fuzz.values import Value

from keras_capsvit import checks, patches

ROOMS = ("attacks", "evaluate", "patches", "data")


@pytest.mark.tensorflow
def test_a_few_hundred_calls():
    cheap = [each for each in subjects.subjects() if each.cost <= 10 and each.name.startswith(ROOMS)]
    tally = campaign.Tally()
    for number, subject in enumerate(campaign.plan(cheap, 400)):
        call = calls.drawn(subject, 1, number)
        outcome = calls.judged(call)
        tally.add(number, {"name": subject.name, "call": str(call), "kind": outcome.kind, "detail": outcome.detail})
    assert tally.is_clean, str(tally)


@pytest.mark.tensorflow
def test_everything_public_is_called():
    public = set(subjects.public())
    assert set(subjects.NOT_CALLED) <= public, "names that are no longer there"
    assert {each.name for each in subjects.subjects()} == public - set(subjects.NOT_CALLED)


def own_error():
    raise ValueError("Expected what is right; received what is wrong.")


def test_what_is_an_error_of_this_package_is_told_from_what_is_not():
    def error_of(function, *arguments):
        with pytest.raises(Exception) as caught:
            function(*arguments)
        return caught.value

    assert calls.is_documented(error_of(checks.positive_int, "steps", 0))
    assert not calls.is_documented(error_of(own_error))
    assert not calls.is_documented(error_of(np.reshape, np.zeros(3), (2, 2)))  # in words of NumPy
    assert calls.is_documented(error_of(patches.boxes))


class Takes:
    name, pools, required, cost, nan = "test", {}, (), 1, False

    def __init__(self, result):
        self.result = result

    def call(self, **arguments):
        return self.result

    def check(self, arguments, result):
        return "too long" if result == "abc" else None


@pytest.mark.parametrize(
    ("verdict", "result", "kind"),
    [
        ("good", 1.0, "right"),
        ("good", float("nan"), "silent"),
        ("open", float("nan"), "right"),
        ("nan", 1.0, "silent"),
        ("nan", {"a": [float("inf")]}, "right"),
        ("bad", 1.0, "silent"),
        ("good", "abc", "wrong"),
    ],
)
def test_results_are_judged(verdict, result, kind):
    call = calls.Call(Takes(result), {"x": Value(lambda: 1, "1", verdict)})
    assert calls.judged(call).kind == kind
