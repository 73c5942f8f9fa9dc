"""The check of a GPU, as it runs with tiny networks on the CPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiers import exhaustive

from trainers.pipelines.families import FAMILIES, QWEN_IMAGE, STABLE_DIFFUSION, STABLE_DIFFUSION_3

ROOT = Path(__file__).parents[3]
UNLIKE = [form.name for form in (STABLE_DIFFUSION, STABLE_DIFFUSION_3, QWEN_IMAGE)]
"""A UNet, a transformer, which is compiled, and one with an autoencoder of its own."""


@pytest.mark.slow
@pytest.mark.parametrize("names", [UNLIKE, *exhaustive([])], ids=["unlike", "all"])
def test_every_family_is_checked(names: list[str], tmp_path: Path) -> None:
    written = tmp_path / "check.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--tiny", "--json", str(written)]
    command += ["--minutes", "60"]  # nothing is left out, however slow the machine is
    command += ["--families", *names] if names else []
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(written.read_text())["families"]
    assert [row["family"] for row in rows] == (names or [form.name for form in FAMILIES])
    for row in rows:
        assert row["left_out"] == [], row
        assert row["family"] in done.stdout, "the table has it"
        assert row["peak_gib"] == pytest.approx(row["estimate_gib"], rel=0.15), row["family"]
        assert row["moved"], f"{row['family']}: training changes nothing"
        assert row["resumed"], f"{row['family']}: other bits after a checkpoint"
        assert math.isfinite(row["floor_bf16"]), row["family"]
        assert math.isfinite(row["floor_fp32"]), row["family"]
        assert row["attention"], f"{row['family']}: attention without a kernel of torch"
    assert sum(row.get("compiled_images_s", 0) > 0 for row in rows) == 1, "one family is compiled"
