"""The memory of one of two workers runs out: both go on in halves and find what whole ones find, or both give up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gloo import run_workers

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("out_of_memory")]

WORKER = """
import dataclasses
from trainers import registry
from trainers.alignment import outcome as ending
from trainers.problem import run_trial
from trainers.primal.log_variance import LogVariance
from trainers.primal.reward_backprop import RewardBackprop
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO

(cases,) = given
FULL = torch.OutOfMemoryError("CUDA out of memory.")

class Full(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()
    @staticmethod
    def backward(context, gradient):
        raise FULL

def hungry(base, limits, where):
    class Hungry(base):
        calls = 0
        def __call__(self, policy, rewards, coefficients, draw, mean):
            if torch.is_grad_enabled():
                Hungry.calls += 1
            full = len(draw) > limits[rank] and Hungry.calls > 5
            if full and where == "rollout":
                raise FULL
            def asked(value):
                found = mean(value)
                if full and where == "after the mean":
                    raise FULL
                return found
            estimate = super().__call__(policy, rewards, coefficients, draw, asked)
            if full and where == "backward":
                loss = estimate.loss + Full.apply(torch.zeros((), requires_grad=True))
                estimate = dataclasses.replace(estimate, loss=loss)
            return estimate
    return Hungry()

whole = ending.evaluate

def evaluate(policy, *positional, **named):
    limit = case.get("evaluation", [10**6] * 2)[rank]
    rollout = policy.rollout
    def drawn(draw, **options):
        if len(draw) > limit:
            raise FULL
        return rollout(draw, **options)
    policy.rollout = drawn
    try:
        return whole(policy, *positional, **named)
    finally:
        del policy.rollout

ending.evaluate = evaluate
load, bases, seen = registry.load, {"log_variance": LogVariance, "reward_backprop": RewardBackprop}, {}
for name, case in cases.items():
    estimator = hungry(bases[case["primal"]], case["limits"], case.get("where", "rollout"))
    registry.load = lambda group, kind: (lambda: estimator) if kind == "hungry" else load(group, kind)
    job = gaussian_job(
        {"x": 1.0}, workers=2, elastic=case.get("elastic", False), sampling={"steps": 4},
        training={"steps": 8, "batch_per_worker": 16, "accumulation": 2, "width": 8, "primal": "hungry"},
        evaluation={"every": 1, "images": 5000, "baseline_images": 1024},
    )
    outcome = run_trial(job, LocalTrialIO(rank=rank, world_size=size))
    seen[name] = {
        "status": outcome.status,
        "error": outcome.error,
        "notes": outcome.notes,
        "history": [[r.kl, r.rewards["x"], r.lagrangian, r.multipliers["x"]] for r in outcome.history],
        "x": None if outcome.evaluation is None else outcome.evaluation.rewards["x"].tolist(),
    }
print(json.dumps(seen))
"""

WHOLE, HALF, NONE = 16, 8, 4
UNDISTURBED = {
    "log_variance": {"primal": "log_variance", "limits": [WHOLE, WHOLE]},
    "reward_backprop": {"primal": "reward_backprop", "limits": [WHOLE, WHOLE]},
    "elastic": {"primal": "log_variance", "limits": [WHOLE, WHOLE], "elastic": True},
}
HALVED = {
    "log_variance, the first worker": {"primal": "log_variance", "limits": [HALF, WHOLE]},
    "log_variance, the second worker": {"primal": "log_variance", "limits": [WHOLE, HALF]},
    "log_variance, both": {"primal": "log_variance", "limits": [HALF, HALF]},
    "log_variance, after the mean": {
        "primal": "log_variance",
        "limits": [WHOLE, HALF],
        "where": "after the mean",
    },
    "log_variance, backward": {"primal": "log_variance", "limits": [HALF, WHOLE], "where": "backward"},
    "reward_backprop, backward": {"primal": "reward_backprop", "limits": [HALF, WHOLE], "where": "backward"},
    "elastic, the second worker": {"primal": "log_variance", "limits": [WHOLE, HALF], "elastic": True},
}
IN_EVALUATION = {
    "the first worker": {"primal": "log_variance", "limits": [WHOLE, WHOLE], "evaluation": [1500, 5000]},
    "the second worker": {"primal": "log_variance", "limits": [WHOLE, WHOLE], "evaluation": [5000, 600]},
    "not one sample": {"primal": "log_variance", "limits": [WHOLE, WHOLE], "evaluation": [5000, 0]},
}
GIVEN_UP = {
    "log_variance, the first worker": {"primal": "log_variance", "limits": [NONE, WHOLE]},
    "log_variance, the second worker": {"primal": "log_variance", "limits": [WHOLE, NONE]},
    "log_variance, backward": {"primal": "log_variance", "limits": [HALF, NONE], "where": "backward"},
    "reward_backprop, the second worker": {"primal": "reward_backprop", "limits": [WHOLE, NONE]},
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both workers saw of every case; the same on both, to the last bit."""
    cases = {f"{kind}: {name}": case for kind, group in KINDS.items() for name, case in group.items()}
    first, second = run_workers(WORKER, tmp_path_factory.mktemp("workers"), 2, cases)
    assert first == second
    return first


KINDS = {
    "undisturbed": UNDISTURBED,
    "halved": HALVED,
    "given up": GIVEN_UP,
    "in the evaluation": IN_EVALUATION,
}


@pytest.mark.parametrize("name", HALVED)
def test_both_go_on_in_halves_and_find_what_undisturbed_workers_find(ends: dict[str, Any], name: str) -> None:
    """From the sixth micro-batch of a worker on, which is the second of its third step."""
    found, undisturbed = ends[f"halved: {name}"], ends[f"undisturbed: {name.partition(',')[0]}"]
    assert found["status"] == "succeeded", found["error"]
    (note,) = found["notes"]
    assert note.startswith("out of memory at step 3 with training.batch_per_worker 16: halve it")
    assert undisturbed["notes"] == []
    np.testing.assert_allclose(found["history"], undisturbed["history"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["x"], undisturbed["x"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GIVEN_UP)
def test_both_give_up_with_the_same_advice(ends: dict[str, Any], name: str) -> None:
    """And not one of them with a connection that was closed."""
    found = ends[f"given up: {name}"]
    assert found["status"] == "failed"
    for field in ("batch_per_worker", "accumulation", "gradient_checkpointing"):
        assert f"training.{field}" in found["error"]
    assert "step 3" in found["error"]


@pytest.mark.parametrize(("name", "least"), [("the first worker", 1024), ("the second worker", 452)])
def test_in_an_evaluation_one_worker_goes_on_with_fewer_samples_at_a_time(
    ends: dict[str, Any], name: str, least: int
) -> None:
    """Halves of the 4096 samples of the first worker, and of the 904 of the second; both tell of it."""
    found, undisturbed = ends[f"in the evaluation: {name}"], ends["undisturbed: log_variance"]
    (note,) = found["notes"]
    assert f"out of memory in the evaluation with 4096 samples at a time: went on with {least}," in note
    assert found["history"] == undisturbed["history"]
    np.testing.assert_allclose(found["x"], undisturbed["x"], rtol=1e-5, atol=1e-6)


def test_both_give_up_an_evaluation_of_which_one_worker_holds_no_sample(ends: dict[str, Any]) -> None:
    found = ends["in the evaluation: not one sample"]
    assert found["status"] == "failed"
    assert found["error"].startswith("out of memory in the evaluation")
    assert "resources.gpus_per_worker" in found["error"]


def test_one_worker_in_halves_finds_what_two_whole_ones_find(tmp_path: Path, ends: dict[str, Any]) -> None:
    """The baseline of the log-variance is that of the whole batch, whoever computes it and in whatever parts."""
    case = {"primal": "log_variance", "limits": [HALF], "elastic": True}
    (alone,) = run_workers(WORKER, tmp_path, 1, {"alone": case})
    undisturbed = ends["undisturbed: elastic"]
    assert len(alone["alone"]["notes"]) == 1
    np.testing.assert_allclose(alone["alone"]["history"], undisturbed["history"], rtol=1e-4, atol=1e-5)
