"""The problem of a trial, found by its configuration."""

import subprocess
import sys


def test_problems_of_mixtures_wait_for_no_library_of_networks() -> None:
    script = (
        "import sys, trainers.problem, trainers.composition.trial; "
        "print({'diffusers', 'transformers', 'peft'} & sys.modules.keys() or 'none')"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "none"
