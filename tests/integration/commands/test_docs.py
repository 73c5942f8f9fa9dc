"""The documentation: it builds without a warning, and what it tells to type works."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.processes import Sweep

from orchestrator.cli import app

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), *(ROOT / name / "README.md" for name in (".", "cluster", "sweeps"))]
)
ELSEWHERE = (
    "--address",
    "--detach",
    "dashboard",
    "ADAPTER",
    "TRIAL",
    "SWEEP",
    "SPEC",
    "DIR",
    "s3://",
    "--watch",
    "--follow",
)
"""What is typed on a cluster, waits, or has a placeholder: such commands are parsed, and run by tests of their own."""
TINY = [
    *("--set", "training.steps=2"),
    *("--set", "training.batch_per_worker=2"),
    *("--set", "evaluation.images=16"),
    *("--set", "evaluation.baseline_images=256"),
    *("--set", "evaluation.every=1"),
]
"""The documented sweep in a minute."""


def fenced(page: Path) -> Iterator[str]:
    """Commands of the blocks that are to be typed."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("cdsweep "):
                yield line.split("  #")[0].strip()


def mentioned(page: Path) -> Iterator[str]:
    """Commands in running text, with options: a bare name is no command line."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for found in re.findall(r"`(cdsweep [a-z][^`]*)`", text):
        command = " ".join(found.split())
        if "…" not in command and "NAME" not in command:
            yield command


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "tour.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_told_is_one(page: Path) -> None:
    commands: Any = typer.main.get_command(app)
    for told in [*fenced(page), *mentioned(page)]:
        name, *arguments = shlex.split(told)[1:]
        assert name in commands.commands, told
        command = commands.commands[name]
        while arguments and arguments[0] in getattr(command, "commands", {}):
            command = command.commands[arguments.pop(0)]
        try:
            command.make_context(name, list(arguments))
        except Exception as error:  # noqa: BLE001 - Typer brings a click of its own
            # In running text a command may be named without what it takes.
            short = type(error).__name__ == "MissingParameter" or "requires an argument" in str(error)
            if not short or told in fenced(page):
                pytest.fail(f"{told}: {error}")
        for spec in (word for word in arguments if word.endswith(".yaml") and "/" in word):
            assert (ROOT / spec).exists(), told


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tour_can_be_walked(shared: Sweep) -> None:
    (shared.folder / "sweeps").symlink_to(ROOT / "sweeps")
    walked = []
    for page in (ROOT / "docs" / f"{name}.md" for name in ("tour", "thresholds", "frontier")):
        for told in fenced(page):
            if any(word in told for word in ELSEWHERE) or told in walked:
                continue
            arguments = shlex.split(told)[1:]
            starts = arguments[0] in ("run", "preview")
            if starts:
                arguments += TINY
            if "pick" in arguments:
                # So short a training reaches nothing: what is asked is what the pretrained model does.
                arguments = [re.sub(r"=0\.\d+$", "=0.001", word) for word in arguments]
            ran = shared.run(*arguments, timeout=600) if starts else shared.ask(*arguments)
            assert ran.returncode == 0, f"{told}\n{ran.stderr[-2000:]}"
            walked.append(told)
    assert any(told.startswith("cdsweep export") for told in walked)
