"""``pick``, ``export`` and ``sample`` with a finished trial for a box of thresholds, on a pipeline."""

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_pipeline
from support.asked import ask

from orchestrator.execution.asking import put
from orchestrator.execution.nearest import nearest_of
from orchestrator.execution.trials.ports import StorePort
from orchestrator.execution.trials.trial import record
from orchestrator.plan import make_job, make_plan
from orchestrator.report.sweep import read_baseline, read_plan
from orchestrator.results import layout
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.adapters.files import LOOKS
from trainers.alignment.boxed import stored
from trainers.alignment.boxed.answering import Answering
from trainers.alignment.boxed.stored import open_stored
from trainers.evaluate import pixels
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation

SPEC = """
name: whole
model: {{pretrained: "{folder}", lora: {{rank: 2}}}}
prompts: {{train: [a cat, a dog], evaluate: [a cat, a dog]}}
constraints:
  - {{reward: brightness, at_least: {{range: [-0.5, 0.2]}}, unit: sigma}}
methods: [frontier: {{points: 2}}]
sampling: {{steps: 3, rest: 0}}
training: {{steps: 6, batch_per_worker: 4, learning_rate: 5.0e-2, primal: reward_backprop}}
duals: {{start: 1.5}}
evaluation: {{images: 64, baseline_images: 64}}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    folder = tiny_pipeline.write(tmp_path_factory.mktemp("pipeline"))
    store = SweepStore(str(tmp_path_factory.mktemp("results")), "whole")
    spec = parse_spec(SPEC.format(folder=folder))
    plan = make_plan(spec)
    (trial,) = plan.trials
    drawn = sample_pretrained(trial.config)
    baseline = statistics(drawn)
    store.create(dump_spec(spec), plan.to_json(), baseline.model_dump(mode="json"))
    io = LocalTrialIO(pretrained=drawn["evaluate"].rewards)
    job = make_job(trial, baseline)
    outcome = run_trial(job, io)
    assert outcome.status == "succeeded", outcome.error
    record(job, outcome, store, started_at=datetime.now(UTC))
    return store


def test_a_point_is_a_plain_lora_that_diffusers_draws_the_same_with(
    sweep: SweepStore, tmp_path: Path
) -> None:
    """At a price plain diffusers draws with the exported files what the conditional adapter does, to ±1 of 255."""
    (row,) = sweep.trials().to_pylist()
    (trial,) = read_plan(sweep).trials
    job = make_job(trial, read_baseline(sweep))
    price = 1.0 / job.baseline.rewards["brightness"].std
    asked = ("--multiplier", f"brightness={price}")
    ask(sweep, "export", row["trial_id"], str(tmp_path / "plain"), *asked)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {"README.md", "answer.json", "adapter_config.json", "pytorch_lora_weights.safetensors"}
    answer = json.loads((tmp_path / "plain" / "answer.json").read_text())
    assert answer["kl"] > 0
    policy = open_stored(job, sweep.adapter(row["trial_id"]), None).policy.at(np.array([1.0]))
    draw = policy.fixed_draw(0, 0, 2)
    with torch.no_grad():
        own = pixels(policy.rollout(draw).samples).astype(int)
        still = pixels(policy.rollout(draw, reference=True).samples).astype(int)
    assert np.abs(own - still).max() > 1
    pipeline = tiny_pipeline.plain(Path(str(trial.config.model.pretrained)))
    pipeline.load_lora_weights(str(tmp_path / "plain"))
    for place, (prompt, seed) in enumerate(zip(draw.prompts or (), draw.seeds.tolist(), strict=True)):
        drawn = pipeline(
            prompt,
            num_inference_steps=3,
            eta=1.0,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        assert np.abs((255 * drawn).round().astype(int) - own[place]).max() <= 1


def test_thresholds_are_answered_measured_and_sampled(sweep: SweepStore, tmp_path: Path) -> None:
    (row,) = sweep.trials().to_pylist()
    answers = sweep.answers(row["trial_id"]).to_pylist()
    assert len(answers) == 2
    asked = ("--at-least", f"brightness={answers[0]['threshold_brightness']}")
    found = ask(sweep, "sample", row["trial_id"], *asked, "--count", "2", "--out", str(tmp_path / "images"))
    assert all(Path(image["tuned"]).is_file() for image in found["images"])
    picked = ask(sweep, "pick", *asked)
    assert sum(member["probability"] for member in picked["mixture"]) == pytest.approx(1.0)
    ask(sweep, "export", row["trial_id"], str(tmp_path / "whole"))
    assert (tmp_path / "whole" / "frontier_lora.safetensors").is_file()
    assert "One LoRA for every threshold of a box" in (tmp_path / "whole" / "README.md").read_text()


def test_what_was_looked_at_tells_of_what_lies_between(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the samples tell as much as all, given those that the trial ended with; without them all are drawn."""
    (row,), (trial,) = sweep.trials().to_pylist(), read_plan(sweep).trials
    job, files = make_job(trial, read_baseline(sweep)), sweep.adapter(row["trial_id"])
    asked = list[int | None]()

    class Counted(Answering):
        def _sampled(self, multipliers: Any, *, held_out: bool, images: int | None = None) -> Evaluation:
            asked.append(images)
            return super()._sampled(multipliers, held_out=held_out, images=images)

    monkeypatch.setattr(stored, "Answering", Counted)
    answering = open_stored(job, files, None)
    multipliers = 1.05 * answering.looks[0][0]
    told = answering.at(multipliers).answer
    assert asked == [32]
    assert told.images == 32
    whole = open_stored(job, {name: data for name, data in files.items() if name != LOOKS}, None).at(
        multipliers
    )
    assert asked[1:] == [None]
    for name in whole.answer.rewards:
        found, expected = told.rewards[name], whole.answer.rewards[name]
        assert found.mean == pytest.approx(expected.mean, abs=0.3 * (expected.high - expected.low))
    assert told.kl.mean == pytest.approx(whole.answer.kl.mean, rel=0.1)
    near = [look for _, look in open_stored(job, files, None).looks]
    assert all(look.log_ratio is not None for look in near)
    [by_half], [by_all] = nearest_of(job, [told], near), nearest_of(job, [whole.answer])
    assert by_half is not None
    assert by_all is not None
    assert by_half.distance == pytest.approx(by_all.distance, rel=0.4)
    assert nearest_of(job, [told]) == [None], "half of the samples alone do not tell"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: b"no tensors", "looks.safetensors cannot be read"),
        (lambda data: data.replace(b"reward.brightness", b"reward.brightnes_"), "of another trial"),
    ],
)
def test_looks_that_are_not_of_the_trial_are_refused(sweep: SweepStore, change: Any, expected: str) -> None:
    (row,), (trial,) = sweep.trials().to_pylist(), read_plan(sweep).trials
    files = dict(sweep.adapter(row["trial_id"]))
    files[LOOKS] = change(files[LOOKS])
    with pytest.raises(ValueError, match=expected):
        open_stored(make_job(trial, read_baseline(sweep)), files, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("export", "BOX", "DIR", "--at-least", "brightness=0.99"),
            r"brightness=0.99 lies outside .* the nearest inside is brightness=0\.\d+, at a KL of",
        ),
        (
            ("export", "BOX", "DIR", "--multiplier", "brightness=1e9"),
            r"trained for multipliers of brightness from 0",
        ),
        (("export", "BOX", "DIR", "--format", "kohya"), r"adapter for many thresholds is no plain LoRA"),
        (("sample", "BOX", "--out", "DIR"), r"answers many thresholds: say which"),
    ],
)
def test_what_it_cannot_answer_is_said(
    sweep: SweepStore, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (row,) = sweep.trials().to_pylist()
    names = {"BOX": row["trial_id"], "DIR": str(tmp_path / "out")}
    said = ask(sweep, *(names.get(part, part) for part in arguments), code=2)
    assert re.search(expected, " ".join(said.split())), said


def test_a_grid_loads_by_its_own_snippet(sweep: SweepStore, tmp_path: Path) -> None:
    """The lines of its README, run as they stand but for the place, draw with every point."""
    (row,) = sweep.trials().to_pylist()
    ask(sweep, "export", row["trial_id"], str(tmp_path / "grid"), "--grid", "2")
    points = json.loads((tmp_path / "grid" / "grid.json").read_text())["points"]
    assert points
    text = (tmp_path / "grid" / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace('"grid.json"', repr(str(tmp_path / "grid" / "grid.json")))
    for point in points:
        code = code.replace(f'"{point["folder"]}"', repr(str(tmp_path / "grid" / point["folder"])))
    code = code.replace('["folder"])', f'["folder"].join(["{tmp_path / "grid"}/", ""]))')
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - of our own README
    names["at"](brightness=points[0]["thresholds"]["brightness"])
    assert names["pipeline"].get_list_adapters()


def test_what_a_search_asks_is_kept_with_its_looks_and_images(sweep: SweepStore, tmp_path: Path) -> None:
    (row,), (trial,) = sweep.trials().to_pylist(), read_plan(sweep).trials
    shutil.copytree(sweep.url(), tmp_path / sweep.name)
    store, job = SweepStore(str(tmp_path), sweep.name), make_job(trial, read_baseline(sweep))
    design = store.answers(trial.trial_id).to_pylist()
    low, high = (one["threshold_brightness"] for one in design)
    put({"brightness": 0.5 * (low + high)}, job, StorePort(job, store), gpus=0.0)
    *_, found = store.answers(trial.trial_id).to_pylist()
    assert found["threshold_brightness"] == pytest.approx(0.5 * (low + high))
    assert found["distance"] >= 0
    assert found["nearest_brightness"] >= 0
    assert store.read_file(layout.answer_image(trial.trial_id, 2)) is not None
    before, after = (len(open_stored(job, of.adapter(row["trial_id"]), None).looks) for of in (sweep, store))
    new = found["multiplier_brightness"] not in [one["multiplier_brightness"] for one in design]
    assert after == before + (new and found["images"] == 64), "the next begins with what was looked at whole"
