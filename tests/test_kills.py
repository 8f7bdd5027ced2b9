"""One real SIGKILL of each kind; ``python tests/kills.py`` does many."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow
COMMAND = [sys.executable, str(pathlib.Path(__file__).with_name("kills.py"))]


def run(*args):
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_a_killed_training_ends_as_it_would_have():
    assert run("--kills", "1", "--jobs", "fit gracapsnet").endswith("kills, 0 trials ended otherwise")


@pytest.mark.slow
def test_whatever_is_killed_ends_as_it_would_have():
    assert run("--kills", "16").endswith("kills, 0 trials ended otherwise")
