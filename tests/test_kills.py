"""Some real SIGKILLs; ``python tests/kills.py`` does many, and ``test_resume`` interrupts without a new process."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow
COMMAND = [sys.executable, str(pathlib.Path(__file__).with_name("kills.py"))]


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("fit vit", marks=pytest.mark.slow),
        pytest.param("adversarial_fit gracapsnet", marks=pytest.mark.long),
    ],
)
def test_what_is_killed_ends_as_it_would_have(job):
    done = subprocess.run([*COMMAND, "--kills", "1", "--jobs", job], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith(" kills, 0 trials ended otherwise")
