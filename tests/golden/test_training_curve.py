"""A seeded training curve: what a refactoring of the trainers must leave as it is.

If a change of the numbers is meant, say why in the changelog and accept it with

    CDSWEEP_ACCEPT_GOLDEN=1 .venv/bin/pytest tests/golden/test_training_curve.py
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.problem import run_trial
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO

GOLDEN = Path(__file__).with_name("training_curve.json")
RTOL, ATOL = 2e-3, 2e-4
"""Room for other platforms' float32: after 30 steps the last digits have spread."""


def curve(primal: str, kind: str) -> list[dict[str, float]]:
    job = gaussian_job(
        {"x": 1.0},
        sampling={"steps": 8},
        training={"steps": 30, "batch_per_worker": 64, "width": 16, "learning_rate": 1e-2, "primal": primal},
        duals={"kind": kind},
        evaluation={"every": 5, "images": 1024, "baseline_images": 32768},
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        history = run_trial(job, LocalTrialIO()).history
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "step": r.step,
            "kl": r.kl,
            "lagrangian": r.lagrangian,
            "reward": r.rewards["x"],
            "multiplier": r.multipliers["x"],
        }
        for r in history
    ]


@pytest.mark.parametrize(("primal", "kind"), [("log_variance", "ascent"), ("reward_backprop", "nu_pi")])
def test_training_curve(primal: str, kind: str) -> None:
    found = curve(primal, kind)
    recorded: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("CDSWEEP_ACCEPT_GOLDEN"):
        GOLDEN.write_text(
            json.dumps(recorded | {f"{primal}, {kind}": found}, indent=1, sort_keys=True) + "\n"
        )
    expected = json.loads(GOLDEN.read_text())[f"{primal}, {kind}"]
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for now, then in zip(found, expected, strict=True):
        assert now == pytest.approx(then, rel=RTOL, abs=ATOL), (
            f"step {now['step']} moved; to accept: see {__file__}"
        )
