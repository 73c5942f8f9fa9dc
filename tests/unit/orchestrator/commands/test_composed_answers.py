"""``pick``, ``export`` and ``sample`` of a composition with one adapter for all weights, from run to diffusers."""

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import tiny_pipeline
from support.asked import ask
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.execution.sampling.weighed import opened
from orchestrator.execution.trials.trial import record
from orchestrator.frontier.composed_adapters import composed_adapters
from orchestrator.plan import make_job, make_plan
from orchestrator.report.page.document import report_document
from orchestrator.report.sweep import read_plan
from orchestrator.results.schema import samples_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.adapters.files import FRONTIER_LORA
from trainers.evaluate import pixels
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.trial_io import LocalTrialIO

SPEC = """
name: composed
model: {{pretrained: "{root}/base"}}
models:
  bright: {{adapter: "{root}/bright", rewards: [brightness]}}
  vivid: {{adapter: "{root}/vivid", rewards: [saturation]}}
prompts: {{train: [a cat, a dog], evaluate: [a cat, a dog]}}
objective: {{minmax_kl: [bright, vivid], sampler: score}}
distillation: {{steps: 12, batch: 8, lora: {{targets: [to_q, to_k, to_v, to_out.0]}}}}
methods:
  - frontier: {{points: 4}}
  - weighted: {{weights: {{bright: 0.9, vivid: 0.1}}}}
sampling: {{steps: 3, rest: 0}}
training: {{steps: 3, batch_per_worker: 8}}
convergence: {{window: 2}}
evaluation: {{images: 16}}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """All trials of the spec, as a sweep runs and records them."""
    root = tmp_path_factory.mktemp("pipelines")
    tiny_pipeline.write(root / "base")
    for seed, name in enumerate(("bright", "vivid")):
        tiny_pipeline.adapter(root / "base", root / name, seed=seed, size=0.15)
    store = SweepStore(str(tmp_path_factory.mktemp("results")), "composed")
    spec = parse_spec(SPEC.format(root=root))
    plan = make_plan(spec)
    drawn = sample_pretrained(plan.trials[0].config)
    baseline = statistics(drawn)
    known = baseline.model_dump(mode="json")
    store.create(dump_spec(spec), plan.to_json(), known)
    store.write_baseline(samples_table(plan.base, drawn), known, plan.to_json(baseline=baseline))
    alone = {name: found.rewards for name, found in drawn.items()}
    for trial in plan.trials:
        job = make_job(trial, baseline)
        outcome = run_trial(job, LocalTrialIO(pretrained=drawn["evaluate"].rewards, alone=alone))
        assert outcome.status == "succeeded", outcome.error
        record(job, outcome, store, started_at=datetime.now(UTC))
    return store


def of_method(sweep: SweepStore, method: str) -> dict[str, Any]:
    return next(row for row in sweep.trials().to_pylist() if row["method"] == method)


def test_answers_are_kept_at_weights_of_the_design(sweep: SweepStore) -> None:
    row = of_method(sweep, "frontier")
    answers = sweep.answers(row["trial_id"]).to_pylist()
    weights = [(answer["multiplier_bright"], answer["multiplier_vivid"]) for answer in answers]
    assert weights[0] == pytest.approx((row["multiplier_bright"], row["multiplier_vivid"]))
    assert weights[1:] == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    for answer in answers:
        assert answer["kl"] == max(answer["kl_bright"], answer["kl_vivid"])
        assert answer["kl_bright_low"] < answer["kl_bright"] < answer["kl_bright_high"]
        assert {name for name in answer if name.startswith("retention_")} == {
            f"retention_{name}{end}" for name in ("bright", "vivid") for end in ("", "_low", "_high")
        }
    assert row["distilled_kl_bright"] == answers[0]["kl_bright"]
    # What a model alone is asked for is nearer to it than what the other is.
    assert answers[1]["kl_bright"] < answers[2]["kl_bright"]
    assert answers[2]["kl_vivid"] < answers[1]["kl_vivid"]
    assert "for all weights of bright, vivid" in sweep.adapter(row["trial_id"])["README.md"].decode()


def test_weights_are_a_plain_lora_that_diffusers_draws_the_same_with(
    sweep: SweepStore, tmp_path: Path
) -> None:
    """At weights plain diffusers draws with the exported files what the conditional adapter does, to ±1 of 255."""
    row, plan = of_method(sweep, "frontier"), read_plan(sweep)
    asked = ("--multiplier", "bright=0.2", "--multiplier", "vivid=0.8")
    ask(sweep, "export", row["trial_id"], str(tmp_path / "plain"), *asked)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {"README.md", "answer.json", "adapter_config.json", "pytorch_lora_weights.safetensors"}
    answer = json.loads((tmp_path / "plain" / "answer.json").read_text())
    assert answer["multipliers"] == {"bright": 0.2, "vivid": 0.8}
    assert answer["kl"] == max(ends[0] for ends in answer["kls"].values())
    trial = next(trial for trial in plan.trials if trial.trial_id == row["trial_id"])
    chains = opened(sweep, trial).chains
    draw = chains.draw(2, 1, 5, held_out=True)
    shots = {}
    with torch.no_grad():
        for driver in ("student", "base"):
            state = draw.noise[0]
            for step in range(chains.steps):
                control = chains.control(driver, step, state, draw, (0.2, 0.8))
                state = chains.advance(step, state, control, draw.noise[step + 1])
            shots[driver] = pixels(chains.decode(state)).astype(int)
    assert np.abs(shots["student"] - shots["base"]).max() > 1
    composition = trial.config.model.composition
    assert composition is not None
    assert composition.base is not None
    pipeline = tiny_pipeline.plain(Path(composition.base.pretrained))
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
        assert np.abs((255 * drawn).round().astype(int) - shots["student"][place]).max() <= 1


def test_the_adapter_is_picked_whose_farthest_model_is_nearest(sweep: SweepStore, tmp_path: Path) -> None:
    found = ask(sweep, "pick")
    known = found["answers"]
    assert [(one["method"], round(one["multipliers"]["bright"], 3)) for one in known[1:]] == [
        ("frontier", 1.0),
        ("frontier", 0.0),
        ("frontier", 0.5),
        ("weighted", 0.9),
    ]
    assert found["kl"] == min(max(ends[0] for ends in one["kls"].values()) for one in known)
    assert found["kl"] == found["kls"][found["farthest"]][0]
    asked = ask(sweep, "pick", "--multiplier", "bright=1")
    assert asked["multipliers"] == {"bright": 1.0, "vivid": 0.0}
    assert {name: asked[name] for name in known[1]} == known[1], "it is not measured again"
    exported = ask(sweep, "export", "pick", str(tmp_path / "picked"))
    assert exported["trial_id"] == found["trial_id"]
    assert (tmp_path / "picked" / "pytorch_lora_weights.safetensors").is_file()
    shown = CliRunner().invoke(app, ["pick", sweep.name, "--storage", sweep.storage])
    assert f"farthest {found['farthest']}" in shown.stdout
    assert "measuring" not in shown.stderr
    shown = CliRunner().invoke(
        app, ["pick", sweep.name, "--storage", sweep.storage, "--multiplier", "bright=1"]
    )
    assert "measuring these weights: 16 held-out images" in shown.stderr


def test_answers_of_a_trial_that_has_not_finished_are_not_picked(sweep: SweepStore) -> None:
    """It writes them before its row, and a run that is killed between leaves them."""
    rows, answers = sweep.trials().to_pylist(), sweep.answers().to_pylist()
    config = read_plan(sweep).trials[0].config
    known = composed_adapters(config, rows, answers)
    assert [one.method for one in known] == ["frontier"] * 4 + ["weighted"]
    left = composed_adapters(config, [row for row in rows if row["method"] != "frontier"], answers)
    assert left == known[4:]


@pytest.mark.parametrize("missing", [["vivid"], ["bright", "vivid"]])
def test_an_answer_whose_kl_to_a_model_is_not_known_is_shown_and_not_picked(
    sweep: SweepStore, tmp_path: Path, missing: list[str]
) -> None:
    trial_id = of_method(sweep, "frontier")["trial_id"]
    table = sweep.answers(trial_id)
    rows = table.to_pylist()
    for row in (rows[0], rows[3]):
        row |= {f"kl_{name}{end}": None for name in missing for end in ("", "_low", "_high")}
    shutil.copytree(sweep.storage, tmp_path / "results")
    copied = SweepStore(str(tmp_path / "results"), sweep.name)
    copied.write_answers(trial_id, pa.Table.from_pylist(rows, schema=table.schema))

    [box] = report_document(copied)["composed"]
    told = [point["kl"] is not None for point in box["points"]]
    assert told == [False, True, True, False]
    for point in (box["points"][0], box["points"][3]):
        assert [ends is None for ends in point["kls"]] == [name in missing for name in box["models"]]
    picked = ask(copied, "pick")
    assert [round(one["multipliers"]["bright"], 3) for one in picked["answers"]] == [1.0, 0.0, 0.9]
    assert picked["kl"] == min(one["kl"] for one in picked["answers"])

    at = ("--multiplier", "bright=0.5", "--multiplier", "vivid=0.5")
    said = " ".join(re.sub(r"[│╭╰─╮╯]", " ", ask(copied, "pick", *at, code=2)).split())
    assert f"of {trial_id} that to {', '.join(missing)} is missing" in said
    ask(copied, "export", trial_id, str(tmp_path / "plain"), *at)
    text = (tmp_path / "plain" / "answer.json").read_text()
    answer = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert answer["kl"] is None
    assert "it has a KL that is not known" in (tmp_path / "plain" / "README.md").read_text()
    ask(copied, "export", trial_id, str(tmp_path / "grid"), "--grid", "3")
    points = json.loads((tmp_path / "grid" / "grid.json").read_text())["points"]
    assert [point["kl"] is None for point in points] == [False, True, False]


def test_what_is_stored_is_told_without_opening_the_models(sweep: SweepStore, tmp_path: Path) -> None:
    """An adapter that cannot be opened is in the way of files, and of other weights, alone."""
    trial_id = of_method(sweep, "frontier")["trial_id"]
    shutil.copytree(sweep.storage, tmp_path / "results")
    copied = SweepStore(str(tmp_path / "results"), sweep.name)
    copied.write_adapter(trial_id, {**copied.adapter(trial_id), FRONTIER_LORA: b"cut short"})
    at = ("--multiplier", "bright=1")
    assert ask(copied, "pick", *at) == ask(sweep, "pick", *at)
    others = ("--multiplier", "bright=0.3", "--multiplier", "vivid=0.7")
    for asked in (("export", trial_id, str(tmp_path / "plain"), *at), ("pick", *others)):
        assert "is no file of safetensors" in " ".join(
            re.sub(r"[│╭╰─╮╯]", " ", ask(copied, *asked, code=2)).split()
        )


def test_images_are_drawn_at_weights(sweep: SweepStore, tmp_path: Path) -> None:
    trial_id = of_method(sweep, "frontier")["trial_id"]
    shots = {}
    for name in ("bright", "vivid"):
        asked = ("--multiplier", f"{name}=1", "--count", "2", "--out", str(tmp_path / name))
        found = ask(sweep, "sample", trial_id, *asked)
        shots[name] = [Path(image["tuned"]).read_bytes() for image in found["images"]]
    assert shots["bright"] != shots["vivid"]
    ask(sweep, "export", trial_id, str(tmp_path / "whole"))
    assert (tmp_path / "whole" / "frontier_lora.safetensors").is_file()


def test_a_grid_loads_by_its_own_snippet(sweep: SweepStore, tmp_path: Path) -> None:
    """The lines of its README, run as they stand but for the place, load the nearest of the points."""
    trial_id = of_method(sweep, "frontier")["trial_id"]
    ask(sweep, "export", trial_id, str(tmp_path / "grid"), "--grid", "3")
    points = json.loads((tmp_path / "grid" / "grid.json").read_text())["points"]
    assert [point["multipliers"]["bright"] for point in points] == [0.0, 0.5, 1.0]
    text = (tmp_path / "grid" / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace('"grid.json"', repr(str(tmp_path / "grid" / "grid.json")))
    code = code.replace('"000"', repr(str(tmp_path / "grid" / "000")))
    code = code.replace('["folder"])', f'["folder"].join(["{tmp_path / "grid"}/", ""]))')
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - of our own README
    names["at"](bright=0.9, vivid=0.1)
    assert names["pipeline"].get_list_adapters()


def test_the_report_holds_every_answer(sweep: SweepStore) -> None:
    document = report_document(sweep)
    [box] = document["composed"]
    assert box["models"] == ["bright", "vivid"]
    assert [point["weights"] for point in box["points"]][1:] == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert all(point["picture"] for point in box["points"])
    assert document["boxes"] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("export", "BOX", "DIR", "--multiplier", "bright=0.9"),
            r"weights of the models of trial \w+ \(bright, vivid\), .* 1 together; got bright=0.9, together 0.9",
        ),
        (
            ("pick", "--multiplier", "bright=1.2", "--multiplier", "vivid=-0.2"),
            r"each at least 0 .* got bright=1.2, vivid=-0.2",
        ),
        (("pick", "--multiplier", "brigt=1"), r"composes no model 'brigt'; did you mean 'bright'\?"),
        (
            ("pick", "--at-least", "brightness=1"),
            r"no KL to a pretrained model to pick by: leave out --at-least",
        ),
        (
            ("sample", "BOX", "--at-least", "brightness=1"),
            r"answers weights of its models: write --multiplier",
        ),
        (("export", "FIXED", "DIR", "--multiplier", "bright=1"), r"weights that stand still \(weighted\)"),
        (("export", "FIXED", "DIR", "--grid", "2"), r"weights that stand still \(weighted\): --grid"),
        (("sample", "BOX", "--out", "DIR"), r"answers all weights of its models: say which"),
        (
            ("export", "BOX", "DIR", "--format", "kohya"),
            r"adapter for all weights of a composition is no plain LoRA: .*; --multiplier MODEL=WEIGHT gives a",
        ),
    ],
)
def test_what_it_cannot_answer_is_said(
    sweep: SweepStore, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    names = {
        "BOX": of_method(sweep, "frontier")["trial_id"],
        "FIXED": of_method(sweep, "weighted")["trial_id"],
        "DIR": str(tmp_path / "out"),
    }
    said = ask(sweep, *(names.get(part, part) for part in arguments), code=2)
    assert re.search(expected, " ".join(re.sub(r"[│╭╰─╮╯]", " ", said).split())), said
