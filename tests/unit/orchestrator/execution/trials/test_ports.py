"""What a trial is given of the sweep's files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.execution.trials.ports import StorePort
from orchestrator.plan import make_job, make_plan
from orchestrator.results.schema import samples_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Evaluation

SPEC = """\
name: demo
model: {pretrained: embedded}
prompts: {train: [a cat], evaluate: [a, b, c, d, e]}
constraints: [{reward: saturation, at_least: 0.5, unit: sigma}]
"""


class Port(StorePort):
    def publish(self, metrics: dict[str, Any]) -> None:
        raise AssertionError(metrics)


@pytest.mark.parametrize("images", [3, 5, 12])
def test_samples_in_another_order_than_the_evaluation_s_are_not_paired_with_it(images: int) -> None:
    """Versions before this order had another; a reward of one prompt is no control variate for another's."""
    config = make_plan(parse_spec(SPEC)).trials[0]
    assert config.config.prompts is not None
    baseline = BaselineStatistics(rewards={"saturation": RewardStatistics(mean=0, std=1)}, samples=1)
    order = config.config.prompts.in_turn("evaluate", config.config.evaluation.seed)
    assert order != tuple("abcde")

    class Store:
        asked: tuple[str, ...] = ()

        def baseline_samples(self) -> Any:
            prompts = tuple(self.asked[i % 5] for i in range(images))
            rewards = {"saturation": np.arange(images, dtype=float)}
            drawn = Evaluation(
                kl=rewards["saturation"], rewards=rewards, seeds=np.arange(images), prompts=prompts
            )
            return samples_table(config.config, {"evaluate": drawn})

    store: Any = Store()
    port = Port(make_job(config, baseline), store)
    store.asked = order
    found = port.reference()
    assert found is not None
    assert found["saturation"].tolist() == list(range(images))
    store.asked = tuple("abcde")
    assert port.reference() is None


def test_a_round_goes_on_from_the_end_of_the_one_before_without_an_interruption(tmp_path: Path) -> None:
    trial = make_plan(parse_spec(SPEC)).trials[0]
    baseline = BaselineStatistics(rewards={"saturation": RewardStatistics(mean=0, std=1)}, samples=1)
    job = make_job(trial, baseline)
    store = SweepStore(str(tmp_path), "demo")
    first = Port(job, store)
    first.save(90, {"state": b"the end of the first round"}, ())
    second = Port(job.model_copy(update={"rounds": 2}), store)
    assert second.restore() == {"state": b"the end of the first round"}
    assert (second.restored_step, second.attempts, second.interruptions) == (0, 1, ())
    second.save(120, {"state": b"within the second"}, ())
    again = Port(job.model_copy(update={"rounds": 2}), store)
    assert again.restore() == {"state": b"within the second"}
    assert (again.restored_step, again.attempts) == (120, 2)
    assert again.interruptions == ("continued from step 120 after an interruption",)
