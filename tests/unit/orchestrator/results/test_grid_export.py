"""The folder of a grid: what its README says to run, runs with the first of its points."""

import json
from pathlib import Path

import pytest

from orchestrator.results import grid_export
from orchestrator.results.formats import Format
from orchestrator.results.grid_export import GridExport
from orchestrator.results.mixture_export import README

USAGE = """\
from trainers.models.pipeline import EMBEDDED_DIRECTORY

pipeline = load(EMBEDDED_DIRECTORY)
pipeline.load_lora_weights("DIRECTORY")
"""


def test_the_usage_is_of_the_first_point_and_keeps_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_export, "exported", lambda files, _form, _family: dict(files))
    export = GridExport(
        str(tmp_path),
        "abc",
        1,
        answer="answer.json",
        adapter="0" * 16,
        usage=USAGE,
        form=Format.diffusers,
        family=None,
    )
    figures = {"thresholds": {"x": 0.5}, "kl": 0.125}
    export.write(0, {"answer.json": json.dumps(figures).encode()}, held=True)
    said = (tmp_path / README).read_text()
    assert "import EMBEDDED_DIRECTORY\n" in said
    assert "load(EMBEDDED_DIRECTORY)" in said
    assert 'load_lora_weights("000")' in said
