"""The training loop of the embedded models: an interrupted run ends where an uninterrupted one does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainers.models.embedded import loop

SCHEDULE = loop.Schedule(steps=12, learning_rate=1e-2, warmup=3, average=0.9)


class Interrupted(Exception):  # noqa: N818 - it stands for a kill, not for an error
    """Stops a run from inside its loss."""


def train(path: Path, stop: int | None = None) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise Interrupted
        inputs = torch.randn(8, 4, generator=generator)
        value = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return value, {"loss": float(value.detach())}

    loop.Run([model], SCHEDULE, path).train("test", loss, seed=5)
    return model


def test_resumed_run_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    straight = train(tmp_path / "straight.safetensors")
    with pytest.raises(Interrupted):
        train(tmp_path / "resumed.safetensors", stop=7)
    resumed = train(tmp_path / "resumed.safetensors")
    assert torch.equal(straight.weight, resumed.weight)
    assert (tmp_path / "straight.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()


def test_finished_run_delivers_without_training(tmp_path: Path) -> None:
    first = train(tmp_path / "state.safetensors")
    again = train(tmp_path / "state.safetensors", stop=SCHEDULE.steps)
    assert torch.equal(first.weight, again.weight)


def test_rate_warms_up_and_decays() -> None:
    rates = [SCHEDULE.rate(step) for step in range(SCHEDULE.steps)]
    assert max(rates) == pytest.approx(SCHEDULE.learning_rate)
    assert rates.index(max(rates)) <= SCHEDULE.warmup
    assert rates[-1] < 0.1 * SCHEDULE.learning_rate
