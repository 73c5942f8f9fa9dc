"""One adapter for all weights of a composition: killed, it goes on bit for bit, and other files are refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support import tiny_pipeline

from trainers.adapters.files import FRONTIER_LORA
from trainers.composition.networks.alone import sample_alone
from trainers.composition.networks.student import Student
from trainers.composition.state import Ascent
from trainers.config import (
    BaseConfig,
    CompositionConfig,
    ConstituentConfig,
    ConvergenceConfig,
    DistillationConfig,
    DualConfig,
    EvaluationConfig,
    FrontierConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)
from trainers.problem import run_trial, statistics
from trainers.trial_io import LocalTrialIO
from trainers.types import StepRecord, TrialOutcome
from trainers.workers.collective import Collective

NAMES = ("bright", "vivid")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    tiny_pipeline.write(root / "base")
    for seed, name in enumerate(NAMES):
        tiny_pipeline.adapter(root / "base", root / name, seed=seed, size=0.15)
    return root


def config(root: Path, direction: str, *, names: Sequence[str] = NAMES) -> TrialConfig:
    models = tuple(ConstituentConfig(name=name, adapter=str(root / NAMES[i])) for i, name in enumerate(names))
    lora = LoraConfig(rank=6, targets=("to_q", "to_k"))
    return TrialConfig(
        model=ModelConfig(
            composition=CompositionConfig(
                models=models,
                base=BaseConfig(pretrained=str(root / "base")),
                distillation=DistillationConfig(steps=5, batch=4, lora=lora),
                sampler="score",
                direction=direction,  # type: ignore[arg-type]
            )
        ),
        prompts=PromptsConfig(train=tiny_pipeline.PROMPTS, evaluate=("red square", "blue circle")),
        sampling=SamplingConfig(steps=2),
        rewards=(RewardConfig(name="bright", kind="brightness"),),
        objective=ObjectiveConfig(kind="minmax_kl", target="models"),
        constraints=(),
        method="frontier",
        weights={},
        frontier=FrontierConfig(points=2),
        seed=0,
        training=TrainingConfig(steps=2, batch_per_worker=8, checkpoint_every=2),
        duals=DualConfig(),
        convergence=ConvergenceConfig(window=2, tolerance=0.02),
        evaluation=EvaluationConfig(images=8, every=1),
    )


class KilledError(Exception):
    """The process is gone."""


class Fragile(LocalTrialIO):
    left: int = -1

    def save(self, step: int, files: dict[str, bytes], history: Sequence[StepRecord]) -> None:
        super().save(step, files, history)
        self.left -= 1
        if self.left == 0:
            raise KilledError


def run(of: TrialConfig, io: LocalTrialIO) -> TrialOutcome:
    drawn = sample_alone(of, Collective())
    return run_trial(TrialJob(trial_id="t", config=of, baseline=statistics(drawn), thresholds={}), io)


@pytest.fixture(scope="module")
def reverse(root: Path) -> TrialOutcome:
    """What an undisturbed trial comes to."""
    return run(config(root, "reverse"), LocalTrialIO())


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_killed_it_goes_on_bit_for_bit(root: Path, direction: str, reverse: TrialOutcome) -> None:
    of = config(root, direction)
    whole = reverse if direction == "reverse" else run(of, LocalTrialIO())
    assert whole.status == "succeeded"
    io = Fragile()
    io.left = 3  # of the weights one, then two of four and more steps of the adapter
    with pytest.raises(KilledError):
        run(of, io)
    io.left = -1
    assert io.checkpoint is not None
    kept = Ascent(weights=np.zeros(0), tilt=np.zeros(0))
    kept.load(io.checkpoint)
    assert kept.seconds > kept.history[-1].seconds, "the time of the adapter's steps is not lost"
    again = run(of, io)
    assert dict(again.adapter) == dict(whole.adapter)
    assert set(whole.adapter) == {FRONTIER_LORA}
    assert again.answers == whole.answers
    assert whole.answers[0].multipliers == pytest.approx(whole.multipliers)
    assert whole.answers[0].constituents != whole.answers[1].constituents
    assert (again.distilled, again.notes) == (whole.distilled, whole.notes)

    student = Student.opened(of, whole.adapter)
    asked = np.array(list(whole.answers[1].multipliers.values()))
    assert student.answer(asked, lambda _: None) == whole.answers[1]


def test_files_of_other_models_are_refused(root: Path, reverse: TrialOutcome) -> None:
    other = Student.opened(config(root, "reverse"), reverse.adapter).chains.student_files()
    with pytest.raises(ValueError, match=r"frontier_lora\.safetensors is of another adapter.*bright"):
        Student.opened(config(root, "reverse", names=("crisp", "vivid")), other)
