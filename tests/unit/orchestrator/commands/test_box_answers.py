"""``pick``, ``export`` and ``sample`` with a finished trial for a box of thresholds, on an exact mixture."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.asked import ask
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.commands import grids
from orchestrator.errors import UsageError
from orchestrator.execution.asking import put
from orchestrator.execution.sampling import replies
from orchestrator.execution.sampling.replies import Replied, of_sweep, opened, stored_answers
from orchestrator.execution.trials import answered
from orchestrator.execution.trials.ports import StorePort
from orchestrator.execution.trials.trial import record
from orchestrator.plan import make_job, make_plan
from orchestrator.report.page.document import report_document
from orchestrator.report.sweep import read_plan
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.alignment.boxed.answering import Answering
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {grid: [0.2, 1.0]}}
methods: [constrained, frontier: {points: 2}]
sampling: {steps: 8}
training: {steps: 100, batch_per_worker: 128, learning_rate: 1.0e-2}
evaluation: {images: 8192, baseline_images: 8192}
"""
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """Two trials and one for the box between, ``q = N(0, 1)``: ``E[x] >= b`` costs b²/2 at the price b."""
    store = SweepStore(str(tmp_path_factory.mktemp("results")), "whole")
    spec = parse_spec(SPEC)
    plan = make_plan(spec)
    store.create(dump_spec(spec), plan.to_json(), BASELINE.model_dump(mode="json"))
    for trial in plan.trials:
        job = make_job(trial, BASELINE)
        record(job, run_trial(job, LocalTrialIO()), store, started_at=datetime.now(UTC))
    return store


def box(sweep: SweepStore) -> str:
    (found,) = [row["trial_id"] for row in sweep.trials().to_pylist() if row["method"] == "frontier"]
    return str(found)


def test_pick_takes_the_answer_where_it_costs_less_than_mixtures(sweep: SweepStore) -> None:
    """Half of either trial costs (0.04 + 1) / 4 = 0.26 at 0.6, where the least is 0.18."""
    found = ask(sweep, "pick", "--at-least", "x=0.6")
    (member,) = found["mixture"]
    assert (member["trial_id"], member["probability"]) == (box(sweep), 1.0)
    assert found["kl"] == pytest.approx(0.18, abs=0.04)
    assert member["multipliers"]["x"] == pytest.approx(0.6, abs=0.06)
    assert found["rewards_bound"]["x"] >= 0.6
    assert found["rewards"]["x"] < 0.68
    (answer,) = of_sweep(sweep, read_plan(sweep), {})
    assert isinstance(answer, Replied)
    held = answer.measured(("x",)).held["x"]
    assert held == pytest.approx(0.15), "at its loosest less its tolerance, where it is not asked for"
    assert answer.reply.answer.feasible
    (asked,) = of_sweep(sweep, read_plan(sweep), {"x": 0.2})
    assert isinstance(asked, Replied)
    assert asked.measured(("x",)).held == {"x": 0.2}
    assert asked.reply.answer.kl.mean > answer.reply.answer.kl.mean


def test_the_frontier_shows_what_the_box_was_measured_at(sweep: SweepStore) -> None:
    found = ask(sweep, "frontier")
    first, last = found["answers"]
    assert [first["thresholds"]["x"], last["thresholds"]["x"]] == [0.2, 1.0]
    stored = sorted(sweep.answers(box(sweep)).to_pylist(), key=lambda row: row["kl"])
    assert [answer["kl"] for answer in found["answers"]] == [row["kl"] for row in stored]
    assert last["rewards"]["x"] == stored[1]["reward_x"]
    assert last["multipliers"]["x"] == pytest.approx(1.0, abs=0.15)
    shown = CliRunner().invoke(app, ["frontier", sweep.url(), "--no-plot"]).output
    table = shown[shown.index("measured over the boxes") :]
    for answer in found["answers"]:
        assert re.search(
            rf"{box(sweep)} +{answer['thresholds']['x']:.3f} .* {answer['kl']:.3f} ±.* met", table
        )


def test_pick_takes_an_answer_that_improves_more_within_a_budget(sweep: SweepStore, tmp_path: Path) -> None:
    """A mixture within 0.25 nats reaches 0.2 + 0.8 (0.25 − 0.02) / 0.48 = 0.58; the answer 0.6 for 0.18."""
    shutil.copytree(sweep.storage, tmp_path / "results")
    store = SweepStore(str(tmp_path / "results"), sweep.name)
    (trial,) = [trial for trial in read_plan(store).trials if trial.trial_id == box(store)]
    job = make_job(trial, BASELINE)
    put({"x": 0.6}, job, StorePort(job, store), gpus=0.0)
    found = ask(store, "pick", "--kl-at-most", "0.25")
    (member,) = found["mixture"]
    assert member["trial_id"] == box(store)
    assert member["multipliers"]["x"] == pytest.approx(0.6, abs=0.06)
    assert found["kl"] == pytest.approx(0.18, abs=0.04)
    assert found["kl_bound"] <= 0.25
    dearer = ask(store, "pick", "--kl-at-most", "0.4")
    assert dearer["rewards_bound"]["x"] > 0.68, "a mixture reaches 0.83"


@pytest.mark.parametrize("status", ["failed", "infeasible"])
def test_a_trial_that_has_not_succeeded_is_not_asked(sweep: SweepStore, tmp_path: Path, status: str) -> None:
    """Its refusal would be told in place of why no other holds the thresholds; nor is taken what it left."""
    plan, asked = read_plan(sweep), {"x": 0.6}
    assert [type(found) for found in of_sweep(sweep, plan, asked)] == [Replied]
    assert [found.trial_id for found in stored_answers(sweep, plan, ("x",))] == [box(sweep)] * 2
    shutil.copytree(sweep.storage, tmp_path / "results")
    copied = SweepStore(str(tmp_path / "results"), sweep.name)
    table = copied.trials().filter(pc.field("trial_id") == box(sweep))
    place = table.column_names.index("status")
    written = table.set_column(place, table.schema.field(place), pa.array([status], table["status"].type))
    copied.forget([box(sweep)])
    assert copied.write_trial(written)
    assert list(of_sweep(copied, plan, asked)) == []
    assert copied.answers(box(sweep)).num_rows == 2
    assert list(stored_answers(copied, plan, ("x",))) == []


def test_a_point_is_exported_measured_as_a_plain_residual(sweep: SweepStore, tmp_path: Path) -> None:
    for name, arguments in (
        ("asked", (box(sweep), "--at-least", "x=0.6")),
        ("picked", ("pick", "--at-least", "x=0.6")),
        ("priced", (box(sweep), "--multiplier", "x=0.62")),
    ):
        trial, *options = arguments
        ask(sweep, "export", trial, str(tmp_path / name), *options)
        folder = tmp_path / name / (box(sweep) if name == "picked" else "")
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "answer.json",
            "control.safetensors",
        ]
        answer = json.loads((folder / "answer.json").read_text())
        assert answer["rewards"]["x"] == pytest.approx(0.62, abs=0.05)
        assert answer["kl"] == pytest.approx(answer["rewards"]["x"] ** 2 / 2, abs=0.02)
    ask(sweep, "export", box(sweep), str(tmp_path / "whole"))
    assert (tmp_path / "whole" / "multipliers.json").is_file()


def test_a_nearest_threshold_is_printed_so_that_it_can_be_asked_for(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a box that begins at a number of many digits, as in σ; both its ends are told as they can be asked for."""
    opening = replies.opened

    def of_many_digits(*of: Any) -> Any:
        answering = opening(*of)
        place = answering.frontier
        place.box = replace(place.box, loosest=np.array([0.2123789]), tightest=np.array([0.9876789]))
        return answering

    monkeypatch.setattr(replies, "opened", of_many_digits)
    plan = read_plan(sweep)
    with pytest.raises(UsageError, match=r"from 0.2123 to 0.9876; the nearest inside is x=0.2123, at"):
        replies.answered(sweep, plan, box(sweep), {"x": 0.1})
    with pytest.raises(UsageError, match=r"the nearest inside is x=0.9876, at"):
        replies.answered(sweep, plan, box(sweep), {"x": 1.5})
    for printed, held in ((0.2123, 0.2123789), (0.9876, 0.9876)):
        found = replies.answered(sweep, plan, box(sweep), {"x": printed})
        assert found.reply.answer.thresholds["x"] == pytest.approx(held, abs=1e-12)


def test_samples_of_all_answers_bound_the_least_kl_at_each(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a pipeline, whose least KL is not known: all 95 % bounds hold, and are near the exact one."""
    plan = read_plan(sweep)
    trial = next(trial for trial in plan.trials if trial.trial_id == box(sweep))
    answering = opened(sweep, trial)
    answers = [answering.reply(np.array([bound])).answer for bound in (0.2, 0.6, 1.0)]
    monkeypatch.setattr(answered, "exact_problem", lambda _: None)
    found = answered.least_at(make_job(trial, BASELINE), answers, None)
    for bound, least in zip((0.2, 0.6, 1.0), found, strict=True):
        assert least is not None
        assert least.kind == "95%"
        assert 0.8 * bound**2 / 2 - 0.01 < least.kl <= bound**2 / 2
        for other in (0.2, 0.6, 1.0):  # a tangent holds everywhere
            assert least.kl + least.slopes["x"] * (other - bound) <= other**2 / 2
    apart = replace(answers[1], evaluation=None)
    unpooled = answered.least_at(make_job(trial, BASELINE), [apart, answers[0], answers[2]], None)[0]
    assert unpooled is not None, "samples at other multipliers tell of the optimum between them"
    assert 0.12 < unpooled.kl <= 0.18


def test_too_few_samples_carry_no_bound_or_one_without_slope(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(sweep)
    trial = next(trial for trial in plan.trials if trial.trial_id == box(sweep))
    answer = opened(sweep, trial).reply(np.array([0.2])).answer
    monkeypatch.setattr(answered, "exact_problem", lambda _: None)
    found = []
    for count in (1, 2, 64, 128, 256):
        held = answer.evaluation
        assert held is not None
        assert held.log_ratio is not None
        few = replace(
            held,
            kl=held.kl[:count],
            log_ratio=held.log_ratio[:count],
            seeds=held.seeds[:count],
            rewards={"x": held.rewards["x"][:count]},
        )
        found += answered.least_at(make_job(trial, BASELINE), [replace(answer, evaluation=few)], None)
    assert found[:2] == [None, None]
    none = [least for least in found[2:] if least is not None and least.kl == 0.0]
    assert none, "the error is larger than the least KL of 0.02 nats"
    assert all(least.slopes == {"x": 0.0} for least in none)


def test_samples_of_a_point_lie_beside_those_of_the_mixture(sweep: SweepStore, tmp_path: Path) -> None:
    found = ask(sweep, "sample", box(sweep), "--at-least", "x=0.6", "--count", "2000", "--out", str(tmp_path))
    table = pq.read_table(found["file"]).to_pydict()
    assert np.mean(table["x_0"]) == pytest.approx(0.62, abs=0.08)
    assert np.mean(table["pretrained_x_0"]) == pytest.approx(0.0, abs=0.08)
    assert np.mean(table["kl"]) == pytest.approx(0.19, abs=0.04)
    assert table["reward_x"] == table["x_0"]


def test_a_grid_is_a_folder_for_each_point_that_holds_and_an_index(sweep: SweepStore, tmp_path: Path) -> None:
    ask(sweep, "export", box(sweep), str(tmp_path / "grid"), "--grid", "3")
    index = json.loads((tmp_path / "grid" / "grid.json").read_text())
    points = index["points"]
    assert len(points) + len(index["missed"]) == 3
    assert [point["thresholds"]["x"] for point in points] == pytest.approx([0.2, 0.6, 1.0][: len(points)])
    for point in points:
        folder = tmp_path / "grid" / point["folder"]
        assert json.loads((folder / "answer.json").read_text())["kl"] == point["kl"]
        assert (folder / "control.safetensors").is_file()
        assert point["rewards_low"]["x"] >= point["thresholds"]["x"] - 0.02
    assert [point["kl"] for point in points] == sorted(point["kl"] for point in points)
    assert "A slider" not in (tmp_path / "grid" / "README.md").read_text(), "diffusers loads no control"


def test_an_interrupted_grid_is_usable_and_goes_on(
    sweep: SweepStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every point is told as it is written, with an index that has all there are."""

    def exported(name: str, *options: str) -> Any:
        asked = ["export", sweep.name, box(sweep), str(tmp_path / name), "--grid", "3", *options]
        return CliRunner().invoke(app, [*asked, "--storage", sweep.storage])

    def index(name: str) -> Any:
        return json.loads((tmp_path / name / "grid.json").read_text())

    whole = exported("whole")
    assert whole.exit_code == 0, whole.output
    told = [line for line in whole.stderr.splitlines() if line.startswith("[")]
    assert [line.partition(":")[0] for line in told] == ["[1/3] x 0.2", "[2/3] x 0.6", "[3/3] x 1"]
    assert re.fullmatch(r"\[1/3\] x 0.2: KL 0.02\d nats, in 000", told[0])
    assert "have been measured so far" not in (tmp_path / "whole" / "README.md").read_text()

    answer, asked = Answering.reply, list[Any]()

    def interrupted(self: Answering, *of: Any, **options: Any) -> Any:
        asked.append(of)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(self, *of, **options)

    monkeypatch.setattr(Answering, "reply", interrupted)
    assert exported("cut").exit_code == 130
    left = index("cut")
    assert left["points"] == index("whole")["points"][:2]
    assert all((tmp_path / "cut" / p["folder"] / "control.safetensors").is_file() for p in left["points"])
    assert "2 of 3 points of the grid have been measured" in (tmp_path / "cut" / "README.md").read_text()

    again = exported("cut")
    assert again.exit_code == 0, again.output
    assert again.stderr.splitlines()[0] == "2 of 3 points are there"
    assert len(asked) == 4, "what is there is not measured again"
    assert index("cut") == index("whole")
    files = [
        sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*"))
        for name in ("cut", "whole")
    ]
    assert files[0] == files[1]
    assert again.stdout == whole.stdout.replace("whole", "cut")

    other = CliRunner().invoke(
        app,
        ["export", sweep.name, box(sweep), str(tmp_path / "cut"), "--grid", "2", "--storage", sweep.storage],
    )
    assert other.exit_code == 2
    assert "is not empty: it holds 000/README.md" in other.stderr
    assert index("cut") == index("whole")


def test_points_of_a_grid_that_later_looks_answer_better_are_written_again(
    sweep: SweepStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a pipeline: one costs less, another holds after all, a third does not even then."""
    told, written = list[str](), list[list[str]]()

    def improving(self: Answering, design: Any, **_: Any) -> Any:
        cheap, dear = self.reply(design[0]), self.reply(design[1])
        missed = replace(dear, held=False)
        for place, reply in ((0, dear), (1, missed), (2, missed), (0, cheap), (1, dear), (2, missed)):
            yield place, reply
            index = tmp_path / "grid" / "grid.json"
            written.append([point["folder"] for point in json.loads(index.read_text())["points"]])

    monkeypatch.setattr(Answering, "improving", improving)
    monkeypatch.setattr(grids, "say", told.append)
    ask(sweep, "export", box(sweep), str(tmp_path / "grid"), "--grid", "3")
    assert [line.partition(": ")[2].partition("nats, ")[2] or line[-13:] for line in told[1:]] == [
        "in 000",
        "does not hold",
        "does not hold",
        "in 000 again, which costs less",
        "in 001 after all",
    ]
    assert written == [["000"]] * 4 + [["000", "001"]] * 2
    index = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert len(index["missed"]) == 1
    assert index["points"][0]["kl"] < index["points"][1]["kl"]
    assert (
        json.loads((tmp_path / "grid" / "000" / "answer.json").read_text())["kl"] == index["points"][0]["kl"]
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("export", "BOX", "FILE", "--grid", "2"), "/there: it is a file"),
        (("export", "BOX", "DIR", "--at-least", "x=0.5", "--at-least", "x=0.6"), "twice"),
        (("export", "BOX", "DIR", "--multiplier", "x"), "takes CONSTRAINT=NATS"),
        (("sample", "BOX", "--at-least", "x=much", "--out", "DIR"), "takes REWARD=VALUE"),
    ],
)
def test_nothing_is_measured_for_what_is_written_wrong(
    sweep: SweepStore, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "there").touch()
    names = {"BOX": box(sweep), "DIR": str(tmp_path / "out"), "FILE": str(tmp_path / "there")}
    said = ask(sweep, *(names.get(part, part) for part in arguments), code=2)
    assert expected in said
    assert "measuring" not in said


def test_rewards_count_up_to_the_tightest_threshold_of_the_box(sweep: SweepStore, tmp_path: Path) -> None:
    """Also where no trial but that for the box has finished, whose row is at the loosest."""
    shutil.copytree(sweep.storage, tmp_path / "results")
    alone = SweepStore(str(tmp_path / "results"), sweep.name)
    alone.forget([t.trial_id for t in read_plan(sweep).trials if t.trial_id != box(sweep)])
    for store in (sweep, alone):
        found = ask(store, "frontier")
        assert found["counted_up_to"]["x"] == pytest.approx(1.0 - 0.05, abs=1e-6)
        assert found["analysis"]["reference_point"] == pytest.approx(found["reference_point"])
        told = report_document(store)["words"]["uncertain"]
        assert not any("least possible KL is not known" in line for line in told), "it is exact"


def test_every_trial_for_a_box_says_why_it_does_not_answer(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed may reach farther than the first."""
    monkeypatch.setattr(
        replies, "of_sweep", lambda *_: iter([UsageError("one falls short"), UsageError("two too")])
    )
    said = ask(sweep, "pick", "--at-least", "x=1.5", code=2)
    assert said.endswith("error: one falls short\ntwo too\n")


def test_the_report_has_what_was_measured_in_the_box(sweep: SweepStore) -> None:
    (found,) = report_document(sweep)["boxes"]
    assert found["id"] == box(sweep)
    assert [(c["name"], c["low"], c["high"]) for c in found["constraints"]] == [("x", 0.2, 1.0)]
    rows = sweep.answers(found["id"]).to_pylist()
    assert [point["thresholds"]["x"] for point in found["points"]] == [0.2, 1.0]
    for point, row in zip(found["points"], rows, strict=True):
        assert point["kl"] == pytest.approx([row["kl"], row["kl_low"], row["kl_high"]], rel=1e-5)
        assert point["rewards"]["x"][0] == pytest.approx(row["reward_x"], rel=1e-5)
        assert point["multipliers"]["x"] == pytest.approx(row["multiplier_x"])
        assert (point["feasible"], point["picture"]) == (row["feasible"], None)
        bound = point["thresholds"]["x"]
        assert point["least"] == {
            "kl": pytest.approx(bound**2 / 2, abs=1e-6),
            "kind": "proven",
            "slopes": {"x": pytest.approx(bound, abs=1e-4)},
        }
        assert row["lower_bound"] == pytest.approx(bound**2 / 2, abs=1e-6)
    pick = found["pick"]
    assert (pick["ids"][0], len(pick["ids"])) == ("pretrained", 3)
    assert pick["multipliers"][2] == [rows[1]["multiplier_x"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("export", "BOX", "DIR", "--at-least", "x=1.5"),
            r"x=1.5 lies outside .* x from 0.2 to 1; the nearest",
        ),
        (
            ("export", "BOX", "DIR", "--at-least", "x=0.1"),
            r"outside .* nearest inside is x=0.2, at a KL of 0.0",
        ),
        (
            ("pick", "--at-least", "x=1.5"),
            r"x=1.5 lies outside what trial BOX was trained for: .* at a KL of 0.5",
        ),
        (("export", "BOX", "DIR", "--at-least", "y=0.5"), r"no threshold on 'y'"),
        (
            ("export", "BOX", "DIR", "--multiplier", "x=9"),
            r"trained for multipliers of x from 0 to 1.\d+, got 9",
        ),
        (
            ("export", "BOX", "DIR", "--multiplier", "x=-1"),
            r"trained for multipliers of x from 0 to 1.\d+, got -1",
        ),
        (
            ("export", "BOX", "DIR", "--multiplier", "x=nan"),
            r"a multiplier is a finite number of at least 0, got x=nan",
        ),
        (("export", "BOX", "DIR", "--at-least", "x=0.5", "--multiplier", "x=1"), r"not both"),
        (("export", "BOX", "DIR", "--at-least", "x=0.5", "--format", "kohya"), r"is no plain LoRA"),
        (
            ("export", "CONSTRAINED", "DIR", "--at-least", "x=0.5"),
            r"thresholds that stand still .constrained.",
        ),
        (
            ("export", "BOX", "DIR", "--grid", "3", "--at-least", "x=0.5"),
            r"--grid goes with a trial .* alone",
        ),
        (
            ("export", "CONSTRAINED", "DIR", "--grid", "3"),
            r"thresholds that stand still .constrained.: --grid",
        ),
        (("sample", "BOX", "--out", "DIR"), r"answers many thresholds: say which"),
    ],
)
def test_what_a_box_cannot_answer_is_said_with_what_is_nearest(
    sweep: SweepStore, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    other = next(t["trial_id"] for t in sweep.trials().to_pylist() if t["method"] == "constrained")
    names = {"BOX": box(sweep), "DIR": str(tmp_path / "out"), "CONSTRAINED": str(other)}
    said = ask(sweep, *(names.get(part, part) for part in arguments), code=2)
    assert said.count("error: ") == 1

    assert re.search(expected.replace("BOX", names["BOX"]), " ".join(said.split())), said
