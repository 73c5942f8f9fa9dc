"""Trials in one process are what they are alone, to the last bit: rows, histories, adapters, checkpoints."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_pipeline
from support.models.vivid import vivid_job
from support.tiers import exhaustive

from trainers.alignment import paired
from trainers.config import TrialJob
from trainers.hosts.pack import Pack
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO
from trainers.types import StepRecord, TrialOutcome


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    paired._known.clear()
    yield
    torch.set_num_threads(before)


def packed(
    jobs: Mapping[str, TrialJob], ports: Mapping[str, LocalTrialIO] | None = None
) -> dict[str, TrialOutcome | Exception]:
    """Run jobs in threads of one pack; what each came to."""
    pack, found = Pack(), dict[str, TrialOutcome | Exception]()

    def run(name: str) -> None:
        port = LocalTrialIO() if ports is None else ports[name]
        try:
            with pack.trial() as host:
                torch.set_num_threads(1)
                found[name] = run_trial(jobs[name], port, host)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            found[name] = error

    threads = [threading.Thread(target=run, args=(name,)) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    return found


def assert_same(found: Any, alone: TrialOutcome) -> None:
    assert isinstance(found, TrialOutcome), found
    timed = {"seconds": 0.0, "images_per_second": 0.0}
    assert [dataclasses.replace(r, **timed) for r in found.history] == [
        dataclasses.replace(r, **timed) for r in alone.history
    ]
    assert found.adapter == alone.adapter
    assert (found.status, found.kl, found.rewards, found.multipliers) == (
        alone.status,
        alone.kl,
        alone.rewards,
        alone.multipliers,
    )
    assert found.evaluation is not None
    assert alone.evaluation is not None
    assert np.array_equal(found.evaluation.kl, alone.evaluation.kl)
    assert np.array_equal(found.evaluation.images, alone.evaluation.images)


ESTIMATORS: dict[str, dict[str, Any]] = {
    "backpropagation": {},
    "log variance, accumulated": {"primal": "log_variance", "accumulation": 2},
    "low variance": {"primal": "low_variance"},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize(
    "name", ["backpropagation", "log variance, accumulated", *exhaustive("low variance", "bf16")]
)
def test_packed_trials_are_what_they_are_alone(folder: Path, name: str) -> None:
    """Of other seeds, methods, thresholds and lengths; with the network asked once for all of them."""
    jobs = {
        str(number): vivid_job(folder, seed, bound, steps=steps, **ESTIMATORS[name])
        for number, (seed, bound, steps) in enumerate([(0, 0.5, 5), (1, 2.0, 3), (2, 0.2, 5)])
    }
    alone = {number: run_trial(job, LocalTrialIO()) for number, job in jobs.items()}
    assert len({outcome.adapter["pytorch_lora_weights.safetensors"] for outcome in alone.values()}) == 3
    paired._known.clear()
    for number, outcome in packed(jobs).items():
        assert_same(outcome, alone[number])


class Failing(LocalTrialIO):
    """Ends the trial at the report of its third step."""

    def report(self, record: StepRecord) -> None:
        super().report(record)
        if record.step == 3:
            raise KeyError("lost")


def test_one_that_fails_leaves_the_others_and_goes_on_beside_them(folder: Path) -> None:
    """From its checkpoint, alone or in another pack, to the same end."""
    jobs = {"a": vivid_job(folder, 0, 0.5), "b": vivid_job(folder, 2, 0.2)}
    alone = {name: run_trial(job, LocalTrialIO()) for name, job in jobs.items()}
    ports = {"a": LocalTrialIO(), "b": Failing()}
    found = packed(jobs, ports)
    assert isinstance(found["b"], KeyError)
    assert_same(found["a"], alone["a"])
    begun = ports["b"].checkpoint
    assert begun is not None
    assert_same(run_trial(jobs["b"], LocalTrialIO(checkpoint=begun)), alone["b"])
    again = packed(
        {"c": jobs["a"], "d": jobs["a"], "b": jobs["b"]},
        {"b": LocalTrialIO(checkpoint=begun), "c": LocalTrialIO(), "d": LocalTrialIO()},
    )
    assert_same(again["b"], alone["b"])
    assert_same(again["c"], alone["a"])


def test_the_network_is_asked_once_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {
        str(seed): vivid_job(folder, seed, 0.5, steps=3) for seed in (1, 3, 5)
    }  # weighted: no reference beside them
    rows: list[int] = []

    from diffusers import UNet2DConditionModel  # noqa: PLC0415 - imported by the policy anyway

    whole: Callable[..., Any] = UNet2DConditionModel.forward

    def counted(unet: Any, latents: Any, *rest: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            rows.append(len(latents))
        return whole(unet, latents, *rest, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    monkeypatch.setattr(Pack, "_same", lambda *_, **__: True)  # whatever kernels this machine has
    packed(jobs)
    # Guided and beside the reference 16 rows of each; at rest 8. The first may have run ahead of the others at first.
    assert rows[-4:] == [48, 48, 48, 24]
    assert sum(rows) == 3 * 3 * (3 * 16 + 8)


def test_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tiny_pipeline.write(tmp_path / "other")
    found = packed({"a": vivid_job(folder, 1, 0.5), "b": vivid_job(other, 1, 0.5)})
    errors = [outcome for outcome in found.values() if isinstance(outcome, ValueError)]
    assert len(errors) == 1
    assert "another base" in str(errors[0])
