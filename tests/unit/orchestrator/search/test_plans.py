"""Searches of a sweep with the exact solver in place of training: what is asked, what a crash leaves, when it ends."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from scipy.optimize import linprog
from support.searched import GRID, RANDOM, SPEC, TPE, Sweep, spec_of
from support.tiers import exhaustive, further

from orchestrator.plan import PlannedTrial, base_config, make_plan
from orchestrator.results import layout
from orchestrator.search.base import Row, SearchContext
from orchestrator.search.certified_plan import CertifiedPlan, threshold_box
from orchestrator.search.grid import GridSearch
from orchestrator.search.weight_plan import WeightPlan
from orchestrator.spec.load import parse_spec
from orchestrator.spec.records.models import SweepSpec


def certified(sweep: Sweep, **options: Any) -> CertifiedPlan:
    search = sweep.drive(AfterThePlan, **options)
    assert isinstance(search, CertifiedPlan)
    return search


class AfterThePlan(CertifiedPlan):
    """A certified search behind the unfinished trials of its plan, as ``build_search`` puts it."""

    def __init__(self, context: SearchContext) -> None:
        """Begin with the plan."""
        super().__init__(context)
        self.planned = GridSearch(context)

    def propose(self) -> PlannedTrial | None:
        return self.planned.propose() or super().propose()

    @property
    def exhausted(self) -> bool:
        return self.planned.exhausted and super().exhausted


# Certified searches ------------------------------------------------------------------------------------


def test_it_ends_at_its_tolerance_and_every_threshold_is_answered_within_it() -> None:
    sweep = Sweep(spec_of(), None)
    search = certified(sweep)
    assert search.reason == "tolerance"
    assert search.gap.gap <= 0.05
    assert 3 <= len(sweep.started) <= 16
    assert len(set(sweep.started)) == len(sweep.started)
    names = list(sweep.baseline.rewards)
    box = threshold_box(sweep.spec, base_config(sweep.spec), sweep.baseline)
    rng = np.random.default_rng(0)
    points = [(0.0, np.array([sweep.baseline.rewards[name].mean for name in names]))]
    points += [(r["kl"], np.array([r[f"reward_{name}"] for name in names])) for r in sweep.rows.values()]
    costs, rewards = np.array([kl for kl, _ in points]), np.array([reached for _, reached in points])
    for place in box.unscaled(rng.uniform(size=(40, 2))):
        # An upper bound of one's own: the cheapest mixture that reaches b.
        whole = np.ones((1, len(costs)))
        cheapest = linprog(costs, A_ub=-rewards.T, b_ub=-place + 1e-7, A_eq=whole, b_eq=[1.0])
        least = sweep.problem.least_kl(dict(zip(names, place, strict=True))).kl
        assert least - 1e-6 <= cheapest.fun <= least + 0.05 + 1e-6


def test_ranges_are_in_the_unit_of_their_threshold() -> None:
    sweep = Sweep(spec_of(), None)
    right, near = sweep.baseline.rewards["right"], sweep.baseline.rewards["near"]
    box = threshold_box(sweep.spec, base_config(sweep.spec), sweep.baseline)
    low = [right.mean + 0.05 * right.std, near.mean + 0.1 * abs(near.mean)]
    high = [right.mean + 0.6 * right.std, near.mean + 0.55 * abs(near.mean)]
    assert box.low == pytest.approx(low)
    assert box.high == pytest.approx(high)
    assert box.spread == pytest.approx([right.std, near.std])
    certified(sweep)
    assert sweep.thresholds()[0] == pytest.approx(high), "the far corner comes first"
    assert (sweep.thresholds() >= np.array(low) - 1e-5).all()
    assert (sweep.thresholds() <= np.array(high) + 1e-5).all()
    written = [
        {c.name: (c.bound, c.unit) for c in trial.config.constraints} for trial in sweep.of("constrained")
    ]
    assert written[0] == {"right": (0.6, "sigma"), "near": (0.55, "relative")}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{range: [0.05, 0.6]}, unit: sigma", "{range: [0.31234567891, 0.91234567891]}, unit: absolute"),
        (
            "{range: [+10%, +55%]}, unit: relative",
            "{range: [-1.51234567891, -0.91234567891]}, unit: absolute",
        ),
        ("{range: [+10%, +55%]}, unit: relative", "+30%, unit: relative"),
    ],
)
def test_the_far_corner_is_reached_whatever_digits_and_units_it_is_written_in(old: str, new: str) -> None:
    sweep = Sweep(spec_of(old=old, new=new), None)
    certified(sweep, most=1)
    box = threshold_box(sweep.spec, base_config(sweep.spec), sweep.baseline)
    assert np.abs(box.scaled(sweep.thresholds()[0]) - box.scaled(box.high)).max() < 1e-7
    search = certified(sweep)
    assert search.reason == "tolerance"
    assert search.gap.unreached == 0


@pytest.mark.parametrize(
    ("seeds", "at_once"),
    [("[0]", 1), ("[4, 7]", 3), *further(("[0]", 3), ("[4, 7]", 1))],
)
def test_after_a_crash_it_goes_on_as_if_nothing_had_happened(seeds: str, at_once: int) -> None:
    spec = spec_of(old="seeds: [0]", new=f"seeds: {seeds}")
    whole = Sweep(spec, None)
    reason = certified(whole, at_once=at_once).reason
    assert reason == "tolerance"
    assert {trial.config.seed for trial in whole.of("constrained")} == set(spec.seeds)
    gap = certified(whole).gap.gap
    for most in range(len(whole.started)):
        sweep = Sweep(spec, None)
        certified(sweep, at_once=at_once, most=most)
        left = [name for name in sweep.started if name not in sweep.rows]
        before = len(sweep.started)
        again = certified(sweep, at_once=at_once)
        assert sweep.started[before : before + len(left)] == left, "what was interrupted comes first"
        assert list(dict.fromkeys(sweep.started)) == whole.started
        assert again.reason == reason
        assert again.gap.gap == pytest.approx(gap)


def test_a_seed_that_was_not_planned_before_the_crash_is_run_after_it() -> None:
    spec = spec_of(old="seeds: [0]", new="seeds: [0, 1]")
    sweep = Sweep(spec, None)
    certified(sweep, most=0)
    assert len(sweep.plan.trials) == 1, "the driver died after the first seed of the first thresholds"
    again = Sweep(spec, None)
    again.plan, again.rows = sweep.plan, {sweep.started[0]: sweep.trained(sweep.plan.trials[0])}
    certified(again, most=1)
    first, second = again.plan.trials[:2]
    assert [c.bound for c in second.config.constraints] == [c.bound for c in first.config.constraints]
    assert (first.config.seed, second.config.seed) == (0, 1)


def test_seeds_of_a_setting_count_once_and_their_mean_is_its_point() -> None:
    spec = spec_of(old="seeds: [0]", new="seeds: [0, 1, 2]")
    sweep = Sweep(spec, None, fails=lambda trial: trial.config.seed == 1)
    search = certified(sweep)
    alone = Sweep(spec_of(), None)
    assert search.reason == certified(alone).reason == "tolerance"
    assert len(sweep.started) == 3 * len(alone.started), "the seeds that did not fail say enough"
    assert search.gap.trials == len(alone.started)
    table = search.table()
    assert table.num_rows == len(alone.started)
    assert table["trials"].to_pylist() == list(range(1, 1 + table.num_rows))
    assert table["gap"].to_pylist()[-1] == pytest.approx(search.gap.gap)
    assert {"threshold_right", "threshold_near", "lower", "upper", "unreached", "kind"} <= set(
        table.column_names
    )


def test_a_box_that_is_trained_in_rounds_counts_once_and_as_it_is_in_the_end() -> None:
    sweep = Sweep(spec_of("  - frontier: {rounds: 2}\n"), None)
    [box] = sweep.plan.trials
    search = CertifiedPlan(sweep.context())
    first = {**sweep.trained(box), "kl": 9.0, "rounds": 1}
    search.observe(box, first)
    assert search.gap.trials == 0
    search.observe(box, {**first, "kl": 0.5, "rounds": 2})
    assert search.gap.trials == 1
    again = CertifiedPlan(replace(sweep.context(), finished={box.trial_id: {**first, "rounds": 2}}))
    assert again.gap.trials == 1


def test_failed_trials_are_not_tried_again_and_the_search_ends() -> None:
    corner: list[str] = []

    def first(trial: PlannedTrial) -> bool:
        corner.append(trial.trial_id)
        return trial.trial_id == corner[0]

    sweep = Sweep(spec_of(), None, fails=first)
    search = certified(sweep)
    assert len(set(sweep.started)) == len(sweep.started)
    assert search.reason is not None
    assert len(sweep.started) > 1, "one failure does not end it"
    box = threshold_box(sweep.spec, base_config(sweep.spec), sweep.baseline)
    apart = np.abs(box.scaled(sweep.thresholds()[1:]) - box.scaled(sweep.thresholds()[0])).max(axis=1)
    assert (apart > 0.04).all()

    every = Sweep(spec_of(), None, fails=lambda _: True)
    search = certified(every)
    assert search.reason in {"nothing left", "max_trials"}
    assert len(every.started) <= 16
    assert search.table()["gap"].to_pylist()[-1] is None, "an unknown gap is null"
    assert "not known yet" in (search.note or "")


def test_trials_that_leave_no_row_count_as_failed() -> None:
    search = CertifiedPlan(Sweep(spec_of(), None).context())
    trial = search.propose()
    assert trial is not None
    search.observe(trial, None)
    other = search.propose()
    assert other is None or other.trial_id != trial.trial_id
    assert search.gap.trials == 1


def test_the_most_trials_are_of_each_seed() -> None:
    spec = spec_of(old="max_trials: 16}\nseeds: [0]", new="max_trials: 2}\nseeds: [0, 1]")
    sweep = Sweep(spec, None)
    assert certified(sweep).reason == "max_trials"
    assert len(sweep.started) == 4
    assert sweep.plan.searched == 0
    assert sweep.plan.most == make_plan(spec).most


# All searches of a sweep -------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3])
def test_all_searches_share_a_sweep(tmp_path: Path, at_once: int) -> None:
    spec = spec_of(GRID, TPE, RANDOM, old="seeds: [0]", new="seeds: [0, 1]")
    sweep = Sweep(spec, tmp_path)
    search = sweep.drive(at_once=at_once)
    assert len(set(sweep.started)) == len(sweep.started)
    assert sweep.started[:4] == [trial.trial_id for trial in make_plan(spec).trials], "the plan comes first"
    origins = [trial.origin for trial in sweep.of("weighted")]
    assert origins[:4] == [""] * 4
    assert {name: origins.count(name) for name in set(origins) - {""}} == {
        "tpe 0.05 to 4, seed 0": 6,
        "tpe 0.05 to 4, seed 1": 6,
        "random 0.04 to 4, seed 0": 4,
        "random 0.04 to 4, seed 1": 4,
    }
    assert "ended: tolerance" in (search.note or "")
    table = search.table()
    assert table is not None
    settings = len(sweep.of("constrained")) // 2
    assert table.num_rows == settings + len(sweep.of("weighted")), "weighted trials bound the frontier too"
    for trial in sweep.of("weighted"):
        assert trial.origin.endswith(f"seed {trial.config.seed}") or not trial.origin
    # Built again, it has nothing to add, and knows as much.
    before = list(sweep.started)
    again = sweep.drive(at_once=at_once)
    assert sweep.started == before
    assert again.table()["gap"].to_pylist()[-1] == pytest.approx(table["gap"].to_pylist()[-1])  # type: ignore[index]


def test_weighted_trials_of_grids_spare_constrained_ones() -> None:
    alone = Sweep(spec_of(), None)
    alone.drive()
    many = (
        "  - weighted: {weights: {right: {grid: [0.1, 0.3, 0.6, 1.0]}, near: {grid: [0.1, 0.4, 0.8, 1.5]}}}\n"
    )
    helped = Sweep(spec_of(many), None)
    helped.drive()
    assert len(helped.of("weighted")) == 16
    assert 1 <= len(helped.of("constrained")) < len(alone.of("constrained"))


@pytest.mark.parametrize("at_once", [1, 2])
def test_all_searches_after_a_crash(tmp_path: Path, at_once: int) -> None:
    spec = spec_of(GRID, TPE)
    for most in range(0, 12, 3):
        sweep = Sweep(spec, tmp_path / f"{at_once}-{most}")
        sweep.drive(at_once=at_once, most=most)
        left = [name for name in sweep.started if name not in sweep.rows]
        before = len(sweep.started)
        search = sweep.drive(at_once=at_once)
        assert sweep.started[before : before + len(left)] == left
        assert sorted(sweep.started[before + len(left) :]) == sorted(
            set(sweep.started) - set(sweep.started[:before])
        )
        assert len([trial for trial in sweep.of("weighted") if trial.origin]) == 6
        assert "ended: tolerance" in (search.note or "")
        assert set(sweep.rows) == set(sweep.trials)


# Searches of weights -----------------------------------------------------------------------------------


def weighted_spec(*methods: str) -> SweepSpec:
    """A sweep without a certified search."""
    text = SPEC.replace("search: {kind: certified, tolerance: 0.05, max_trials: 16}\n", "")
    text = text.replace("  - constrained\n", "".join(methods))
    text = text.replace("{range: [0.05, 0.6]}", "0.2").replace("{range: [+10%, +55%]}", "+20%")
    return parse_spec(text)


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
def test_a_weight_search_goes_on_after_a_crash(tmp_path: Path, lost: bool) -> None:
    spec = weighted_spec(TPE)
    whole = Sweep(spec, tmp_path / "whole")
    whole.drive()
    assert len(whole.started) == 6
    for most in range(7):
        sweep = Sweep(spec, tmp_path / str(most))
        sweep.drive(most=most)
        if lost:
            (tmp_path / str(most) / layout.STUDIES).unlink()
        sweep.drive()
        if lost:
            assert len(set(sweep.started)) == 6, "the budget is that of all runs"
        else:
            assert list(dict.fromkeys(sweep.started)) == whole.started
        assert set(sweep.rows) == set(sweep.trials)


def test_without_a_directory_the_study_is_made_again_from_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # another sweep of the same name and spec, in another bucket
        sweep = Sweep(weighted_spec(TPE), None)
        sweep.drive(at_once=2, most=2)
        sweep.drive(at_once=2)
        assert len(set(sweep.started)) == len(sweep.rows) == 6
    assert not list(tmp_path.iterdir()), "nothing is left where the command was started"


def test_the_study_has_results_in_sigma(tmp_path: Path) -> None:
    sweep = Sweep(weighted_spec(TPE), tmp_path, fails=lambda trial: trial.trial_id in names)
    names: list[str] = []
    sweep.drive(most=2)
    names += [name for name in sweep.started if name not in sweep.rows]
    assert len(names) == 1
    sweep.drive()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / layout.STUDIES)))
    (summary,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=summary, storage=storage).get_trials()
    told = {trial.user_attrs["trial_id"]: trial for trial in trials}
    assert set(told) == set(sweep.rows)
    known = sweep.baseline.rewards
    for name, trial in told.items():
        row = sweep.rows[name]
        if name in names:
            assert trial.state == TrialState.FAIL
            continue
        expected = [(row[f"reward_{r}"] - known[r].mean) / known[r].std for r in ("right", "near")]
        assert trial.values == pytest.approx([*expected, row["kl"]])
        assert {r: trial.params[r] / known[r].std for r in known} == pytest.approx(
            {r: row[f"weight_{r}"] for r in known}
        )
        assert dict(trial.constraints) == pytest.approx(
            {r: row[f"violation_{r}"] / known[r].std for r in known}
        )


def test_a_trial_that_two_searches_choose_is_run_once_and_told_to_both(tmp_path: Path) -> None:
    # The first draws of Parzen estimators are random ones, of the same seed and here within the same bounds.
    sweep = Sweep(weighted_spec(TPE, RANDOM.replace("0.04", "0.05")), tmp_path)
    sweep.drive(at_once=2)
    assert len(set(sweep.started)) == len(sweep.started) == 6
    storage = JournalStorage(JournalFileBackend(str(tmp_path / layout.STUDIES)))
    counts = {
        name.split()[1]: len(
            optuna.load_study(study_name=name, storage=storage).get_trials(states=[TrialState.COMPLETE])
        )
        for name in optuna.get_all_study_names(storage)
    }
    assert counts == {"tpe": 6, "random": 4}


def test_trials_of_others_are_not_told_to_a_study(tmp_path: Path) -> None:
    sweep = Sweep(weighted_spec(GRID, TPE), tmp_path)
    context = sweep.context()
    found = next(
        m.weighted.search for m in sweep.spec.methods if not isinstance(m, str) and m.weighted.search
    )
    search = WeightPlan(context, found, 0)
    for trial in context.plan.trials:
        search.observe(trial, sweep.trained(trial))
    proposed = search.propose()
    assert proposed is not None
    assert proposed.origin == search.name
    assert proposed.trial_id not in [trial.trial_id for trial in context.plan.trials]
    assert not search.exhausted


# Grids -------------------------------------------------------------------------------------------------


def test_a_grid_runs_what_is_missing_in_its_order() -> None:
    sweep = Sweep(weighted_spec("  - constrained\n", GRID), None)
    ids = [trial.trial_id for trial in sweep.plan.trials]
    assert len(ids) == 3
    sweep.drive(most=1)
    sweep.drive(most=1)
    search = sweep.drive()
    assert list(dict.fromkeys(sweep.started)) == ids
    assert search.table() is None
    assert search.note is None


# Rounds ------------------------------------------------------------------------------------------------


class Short(Sweep):
    """Trials that end a nat from their optimum, and half as far after two rounds."""

    def trained(self, trial: PlannedTrial) -> Row:
        before = self.rows.get(trial.trial_id)
        rounds = 1 if before is None else before["rounds"] + 1
        row = dict(super().trained(trial))
        more = {"rounds": rounds, "distance": 1.0 / rounds, "kl": row["kl"] + 1.0 / rounds}
        return {**row, **more, "distance_before": None if before is None else before["distance"]}

    def context(self) -> SearchContext:
        return replace(super().context(), continuable=frozenset(self.rows))


def rounds_spec(seeds: str) -> SweepSpec:
    return parse_spec(
        SPEC.replace("max_trials: 16", "max_trials: 9").replace("seeds: [0]", f"seeds: {seeds}")
    )


@pytest.mark.parametrize("seeds", ["[4, 7]", *exhaustive("[0]")])
def test_seeds_of_a_setting_are_trained_further_together_also_after_a_crash(seeds: str) -> None:
    whole = Short(rounds_spec(seeds), None)
    whole.again = True
    search = certified(whole)
    each = len(whole.spec.seeds)
    assert search.reason == "max_trials"
    assert len(whole.started) == 9 * each
    assert max(row["rounds"] for row in whole.rows.values()) > 1
    for most in range(1, 9 * each):
        broken = Short(rounds_spec(seeds), None)
        broken.again = True
        certified(broken, most=most)
        certified(broken)
        places: dict[Any, set[int]] = {}
        for trial in broken.of("constrained"):
            key = tuple(constraint.bound for constraint in trial.config.constraints)
            places.setdefault(key, set()).add(broken.rows[trial.trial_id]["rounds"])
        assert all(len(rounds) == 1 for rounds in places.values()), "no seed is a round behind the others"
        assert sum(row["rounds"] for row in broken.rows.values()) == 9 * each


def test_what_has_lost_its_state_is_not_continued() -> None:
    sweep = Short(rounds_spec("[0]"), None)
    sweep.again = True
    certified(sweep, most=2)
    lost = {name: row["rounds"] for name, row in sweep.rows.items()}

    class Lost(CertifiedPlan):
        def __init__(self, context: SearchContext) -> None:
            """Begin without the checkpoints of what has finished."""
            super().__init__(replace(context, continuable=frozenset()))

    sweep.drive(Lost)
    assert {name: sweep.rows[name]["rounds"] for name in lost} == lost
    assert len(sweep.rows) > len(lost)
