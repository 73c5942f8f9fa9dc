"""A box of thresholds of groups of prompts on a pipeline: from the spec to ``pick``, ``export``, ``sample``, report."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support import tiny_pipeline
from support.asked import ask

from orchestrator.execution.trials.trial import record
from orchestrator.plan import make_job, make_plan
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, load_spec
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.trial_io import LocalTrialIO

SPEC = """
name: whole
model: {{pretrained: "{folder}"}}
prompts: {{train: prompts.jsonl, evaluate: prompts.jsonl}}
constraints:
  - {{reward: brightness, at_least: {{range: [-1.5, -0.8]}}, unit: sigma, for_each: kind}}
methods: [frontier: {{points: 2}}]
sampling: {{steps: 3, rest: 0}}
training: {{steps: 3, batch_per_worker: 4, learning_rate: 5.0e-2}}
evaluation: {{images: 16, baseline_images: 32}}
"""
KINDS = {"round": "red circle", "edged": "blue square"}
NAMES = [f"brightness[{kind}]" for kind in KINDS]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    home = tmp_path_factory.mktemp("spec")
    folder = tiny_pipeline.write(home / "pipeline")
    rows = [json.dumps({"prompt": prompt, "kind": kind}) for kind, prompt in KINDS.items()]
    (home / "prompts.jsonl").write_text("\n".join(rows))
    (home / "spec.yaml").write_text(SPEC.format(folder=folder))
    store = SweepStore(str(home / "results"), "whole")
    spec = load_spec(home / "spec.yaml")
    plan = make_plan(spec)
    (trial,) = plan.trials
    drawn = sample_pretrained(trial.config)
    baseline = statistics(drawn)
    store.create(dump_spec(spec), plan.to_json(), baseline.model_dump(mode="json"))
    job = make_job(trial, baseline)
    outcome = run_trial(job, LocalTrialIO(pretrained=drawn["evaluate"].rewards))
    assert outcome.status == "succeeded", outcome.error
    record(job, outcome, store, started_at=datetime.now(UTC))
    return store


def test_groups_are_asked_for_by_name_and_one_plain_lora_answers_for_all(
    sweep: SweepStore, tmp_path: Path
) -> None:
    (row,) = sweep.trials().to_pylist()
    answers = sweep.answers(row["trial_id"]).to_pylist()
    loosest, tightest = ({name: answer[f"threshold_{name}"] for name in NAMES} for answer in answers)
    assert all(loosest[name] < tightest[name] for name in NAMES)

    both = [part for name in NAMES for part in ("--at-least", f"{name}={loosest[name]}")]
    assert ask(sweep, "pick", *both)["thresholds"] == pytest.approx(loosest)

    ask(sweep, "export", row["trial_id"], str(tmp_path / "grid"), "--grid", "2")
    (example,) = re.findall(r"such as at\((.*)\)\.", (tmp_path / "grid" / "README.md").read_text())
    assert eval(f"dict({example})").keys() == loosest.keys()  # noqa: S307 - of our own README

    answer = json.loads((tmp_path / "grid" / "000" / "answer.json").read_text())
    assert answer["thresholds"] == pytest.approx(loosest)
    assert set(NAMES) == set(answer["multipliers"]) <= set(answer["rewards"])
    assert (tmp_path / "grid" / "000" / "pytorch_lora_weights.safetensors").is_file()

    one = ("--at-least", f"{NAMES[0]}={(loosest[NAMES[0]] + tightest[NAMES[0]]) / 2}")
    asked = ("--count", "2", "--out", str(tmp_path / "images"))
    drawn = ask(sweep, "sample", row["trial_id"], *one, *asked)
    assert [image["prompt"] for image in drawn["images"]] == list(KINDS.values())
    ask(sweep, "report")
