"""Plans of one adapter for every threshold: one trial for each seed, its box, and what it does not go with."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from support.models.compositions import SPEC as COMPOSED
from support.models.networks import ADAPTERS
from support.reported import write_sweep
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.commands.describe import described
from orchestrator.errors import SpecError
from orchestrator.execution.progress import Progress
from orchestrator.plan import Plan, describe, labels, make_job, make_plan
from orchestrator.report.outcome import read_outcome
from orchestrator.report.page.document import report_document
from orchestrator.report.terminal.tables import plan_table
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import (
    BaselineStatistics,
    DistillationConfig,
    FrontierConfig,
    LoraConfig,
    RewardStatistics,
)

SPEC = """
name: whole
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.6, 0.2, 1.0]}, unit: sigma}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: +10%, unit: relative}
methods:
  - constrained
  - frontier: {steps: 800}
seeds: [0, 1]
training: {steps: 100}
"""
ALONE = SPEC.replace("  - constrained\n", "").replace("{grid: [0.6, 0.2, 1.0]}", "{range: [0.2, 1.0]}")
BASELINE = BaselineStatistics(
    rewards={"right": RewardStatistics(mean=0.2, std=1.5), "near": RewardStatistics(mean=-2.0, std=0.8)},
    samples=None,
)


def test_trials_for_one_box_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    """In the plan, where they run, where they are described and compared, and in the report."""
    text = SPEC.replace("{steps: 800}", "{steps: 800}\n  - frontier: {steps: 800, points: 5, rounds: 2}")
    plan = make_plan(parse_spec(text))
    boxes = [trial for trial in plan.trials if trial.config.frontier is not None]
    known = {trial.trial_id: (trial.config.frontier.points, trial.config.seed) for trial in boxes}
    told = {(9, 0): "points 9 rounds 1 seed 0", (5, 1): "points 5 rounds 2 seed 1"}
    found = {known[name]: label for name, label in labels(plan.trials).items() if name in known}
    for place, label in told.items():
        assert found[place] == f"frontier right≥0.2…1σ near≥0.1× {label}"
    console = Console(width=200, file=io.StringIO())
    console.print(plan_table(plan.to_json()))
    lines = [
        line for line in console.file.getvalue().splitlines() if line.startswith(("frontier,", "frontier  "))
    ]
    assert [line.split("  ")[0] for line in lines] == [
        "frontier, points 5, rounds 2",
        "frontier, points 9, rounds 1",
    ]
    progress = Progress(plan, frozenset())
    for name in known:
        progress.update(name, "running")
    store = write_sweep(tmp_path, text)
    shown = {record["id"]: record["label"] for record in report_document(store, images=False)["trials"]}
    for name, place in known.items():
        assert shown[name] == found[place] == described(store, name)["label"]
        assert read_outcome(store).settings[name] == found[place].rpartition(" seed ")[0]
    assert sorted(line["label"] for line in progress.heartbeat()) == sorted(found.values())
    said = CliRunner().invoke(app, ["frontier", "demo", "--storage", str(tmp_path)]).stdout.splitlines()
    for name, (points, _) in known.items():
        rows = [row for row, line in enumerate(said) if line.startswith(name)]
        assert all(said[row + 1].startswith(f"points {points}") for row in rows)
    assert any(line.startswith("points 5") for line in said)


def test_one_trial_for_each_seed_has_the_box_of_all_thresholds() -> None:
    plan = make_plan(parse_spec(SPEC))
    assert [trial.config.method for trial in plan.trials] == ["constrained"] * 6 + ["frontier"] * 2
    trial = plan.trials[-1]
    config = trial.config
    assert (config.seed, config.training.steps, config.frontier) == (1, 800, FrontierConfig(points=9))
    assert [(c.bound, c.tightest) for c in config.constraints] == [(0.2, 1.0), (0.1, None)]
    assert describe(config) == "frontier right≥0.2…1σ near≥0.1× seed 1"
    job = make_job(trial, BASELINE)
    assert job.thresholds == pytest.approx({"right": 0.5, "near": -1.8})
    assert job.tightest == pytest.approx({"right": 1.7})
    document = plan.to_json(baseline=BASELINE)["trials"][-1]
    assert document["tightest"] == pytest.approx({"right": 1.7})
    assert Plan.from_json(plan.to_json()) == plan
    assert make_plan(parse_spec(dump_spec(parse_spec(SPEC)))) == plan


def test_its_range_needs_no_search_and_is_the_hull_of_a_grid() -> None:
    """The same box, written otherwise, is the same trial; trials of other methods keep the ids they have without it."""
    alone = make_plan(parse_spec(ALONE))
    assert [trial.trial_id for trial in alone.trials] == [
        t.trial_id for t in make_plan(parse_spec(SPEC)).trials[-2:]
    ]
    without = make_plan(parse_spec(SPEC.replace("  - frontier: {steps: 800}\n", "")))
    assert without.trials == make_plan(parse_spec(SPEC)).trials[:6]


def test_a_budget_moves_down() -> None:
    text = ALONE.replace(
        "methods:", "  - {kl: pretrained, at_most: {grid: [0.5, 2]}}\nobjective: {reward: near}\nmethods:"
    )
    [config, _] = [trial.config for trial in make_plan(parse_spec(text)).trials]
    assert (config.constraints[2].bound, config.constraints[2].tightest) == (2.0, 0.5)
    assert config.acting == ("near", "right")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{range: [0.2, 1.0]}", "0.2", r"methods\.0\.frontier.*answers for all thresholds.*none moves"),
        ("{steps: 800}", "{rank: 4}", r"methods\.0\.frontier\.rank = 4.*a mixture has no layers"),
        ("{steps: 800}", "{form: mine}", r"methods\.0\.frontier\.form = .mine..*a mixture has no layers"),
        ("{steps: 800}", "{step: 800}", r"unknown key 'step'.*steps"),
        ("{steps: 800}", "{points: 0}", r"methods\.0\.frontier\.points"),
        ("frontier:", "frontiers:", r"'constrained', \{weighted: .*\} or \{frontier: \{\}\}.*frontier"),
        ("methods:\n", "methods:\n  - constrained\n", r"a range is searched by search: \{kind: certified"),
    ],
)
def test_what_it_does_not_go_with_is_said_at_plan(old: str, new: str, expected: str) -> None:
    assert old in ALONE
    with pytest.raises(SpecError, match=f"(?s){expected}"):
        parse_spec(ALONE.replace(old, new))


PIPELINE = """
name: whole
model: {pretrained: embedded}
prompts: {train: shapes, evaluate: shapes-held-out}
constraints:
  - {reward: saturation, at_least: {range: [0.2, 1.0]}, unit: sigma}
  - {reward: clip, at_least: 0.1, unit: sigma}
methods:
  - frontier: {}
"""


def test_a_lora_has_columns_for_every_reward_that_acts() -> None:
    [trial] = make_plan(parse_spec(PIPELINE)).trials
    lora = trial.config.model.lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (6, None)
    assert trial.config.frontier == FrontierConfig(points=9, form="price")
    written = PIPELINE.replace("{pretrained: embedded}", "{pretrained: embedded, lora: {rank: 4, alpha: 2}}")
    [trial] = make_plan(parse_spec(written.replace("frontier: {}", "frontier: {rank: 5}"))).trials
    lora = trial.config.model.lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (5, 2.5)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{}", "{rank: 1}", r"methods\.0\.frontier\.rank = 1.*a column of the updates: at least 2"),
        ("{}", "{form: prise}", r"unknown form of an adapter 'prise'.*did you mean 'price'"),
        (
            "methods:",
            "training: {compile: true}\nmethods:",
            r"training\.compile.*those of the method frontier move",
        ),
        (
            "methods:",
            "evaluation: {as_deployed: {sampler: ode, steps: 4}}\nmethods:",
            r"evaluation\.as_deployed.*one for every threshold",
        ),
    ],
)
def test_what_a_lora_for_a_box_does_not_go_with_is_said_at_plan(old: str, new: str, expected: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){expected}"):
        parse_spec(PIPELINE.replace(old, new))


def test_a_box_has_at_most_six_sides() -> None:
    many = "".join(
        f"  - {{reward: {{linear: {{direction: [1.0, {n}.0]}}}}, name: r{n}, at_least: {{range: [0.1, 0.2]}}}}\n"
        for n in range(7)
    )
    with pytest.raises(SpecError, match=r"(?s)at most 6 moving thresholds, got 7: r0, r1"):
        parse_spec(ALONE[: ALONE.index("  - {reward")] + many + "methods:\n  - frontier: {}\n")


def test_the_table_of_a_plan_shows_both_ends_of_what_moves() -> None:
    plan = make_plan(parse_spec(ALONE))
    for document in (plan.to_json(), plan.to_json(baseline=BASELINE)):
        console = Console(file=io.StringIO(), width=100, color_system=None)
        console.print(plan_table(document))
        assert "right 0.2…1σ  near 0.1 relative" in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_estimator_that_keeps_rollouts_has_no_thresholds_for_each_sample() -> None:
    with pytest.raises(SpecError, match=r"(?s)methods\.0\.frontier.*training\.primal reused_rollouts cannot"):
        parse_spec(ALONE.replace("training: {steps: 100}", "training: {primal: reused_rollouts}"))


def test_a_composition_has_one_adapter_for_all_weights() -> None:
    text = ADAPTERS + "  - frontier: {}\ndistillation: {steps: 300}\nseeds: [0, 1]\n"
    plan = make_plan(parse_spec(text))
    *others, first, second = plan.trials
    assert [trial.config.method for trial in (*others, first, second)] == [
        *["constrained"] * 2,
        *["weighted"] * 2,
        *["frontier"] * 2,
    ]
    assert [(t.config.seed, t.config.frontier) for t in (first, second)] == [
        (0, FrontierConfig()),
        (1, FrontierConfig()),
    ]
    one, plain = (t.config.model.composition for t in (first, others[0]))
    assert one is not None
    assert plain is not None
    assert one.distillation == DistillationConfig(steps=300, lora=LoraConfig(rank=9))
    assert plain.distillation == DistillationConfig(steps=300)
    assert first.config.training == others[0].config.training
    assert describe(first.config) == "frontier and of vivid, bright, crisp seed 0"
    without = make_plan(parse_spec(text.replace("  - frontier: {}\n", "")))
    assert list(without.trials) == others
    assert Plan.from_json(plan.to_json()) == plan
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(plan_table(plan.to_json()))
    assert re.search(r"frontier +all +0, 1", console.file.getvalue())  # type: ignore[attr-defined]


def test_its_steps_and_columns_are_those_of_the_distillation() -> None:
    text = ADAPTERS + "  - frontier: {steps: 500, rank: 4}\ndistillation: {lora: {rank: 8, alpha: 2}}\n"
    composition = make_plan(parse_spec(text)).trials[-1].config.model.composition
    assert composition is not None
    assert composition.distillation == DistillationConfig(steps=500, lora=LoraConfig(rank=4, alpha=1.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ADAPTERS + "  - frontier: {}\n", r"methods\.2\.frontier.*write distillation: \{steps: 200\} too"),
        (
            ADAPTERS + "  - frontier: {rounds: 2}\ndistillation: {}\n",
            r"methods\.2\.frontier\.rounds = 2.*weights of a composition have none: leave it out",
        ),
        (
            ADAPTERS + "  - frontier: {rank: 2}\ndistillation: {}\n",
            r"methods\.2\.frontier\.rank = 2.*every model a column of the updates: at least 3",
        ),
        (
            ADAPTERS + "  - frontier: {form: prise}\ndistillation: {}\n",
            r"unknown form of an adapter 'prise'.*did you mean 'price'",
        ),
        (
            ADAPTERS
            + "  - frontier: {}\ndistillation: {}\nconstraints: [{reward: saturation, at_least: 0.4}]\n",
            r"methods\.2\.frontier.*weights of the models alone.*leave out constraints \(saturation\)",
        ),
        (
            COMPOSED.replace("  - weighted: {weights: equal}", "  - frontier: {}"),
            r"mixtures have no layers to adapt",
        ),
        (
            ADAPTERS + "  - frontier: {}\ndistillation: {}\ntraining: {compile: true}\n",
            r"training\.compile.*those of the method frontier move",
        ),
    ],
)
def test_what_one_for_all_weights_does_not_go_with_is_said_at_plan(text: str, expected: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){expected}"):
        parse_spec(text)
