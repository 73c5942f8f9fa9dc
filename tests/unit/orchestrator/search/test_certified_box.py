"""One adapter for the box in place of trials: what it is asked, after a crash too, and when it is trained further."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from orchestrator.plan import PlannedTrial, make_plan
from orchestrator.search.base import Question, Search, SearchContext
from orchestrator.search.several import build_search
from orchestrator.search.spending import Spending
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.2, 1.2]}}
methods:
  - frontier: {rounds: 3, points: 2}
search: {kind: certified, tolerance: 0.02, max_trials: 12}
seeds: [0, 1]
"""
"""``q = N(0, 1)``: ``E[x] >= b`` costs b²/2 nats at the price b."""
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)
LOW, HIGH = 0.2, 1.2

Row = dict[str, Any]


def answer(bound: float, away: float, wall: float | None = None) -> Row:
    """What an adapter answers that is so many nats from the optimum of its multipliers."""
    return {
        "threshold_x": bound,
        **{f"reward_x{end}": bound for end in ("", "_low", "_high")},
        **{f"kl{end}": bound**2 / 2 + away for end in ("", "_low", "_high")},
        "violation_x": 0.0,
        "multiplier_x": bound,
        "feasible": True,
        "distance": away,
        "gpu_seconds": wall,
    }


@dataclass
class Boxes:
    """A sweep whose adapters answer at once; ``rows`` and ``stored`` are all that a crash leaves."""

    away: Sequence[float] = (0.0, 0.0, 0.0)
    """Nats from the optimum after each round; more than before: the round is not kept."""
    text: str = SPEC
    failing: frozenset[int] = frozenset()
    """Seeds whose adapters come to nothing."""
    mute: frozenset[int] = frozenset()
    """Seeds whose adapters do not answer."""
    rows: dict[str, Row] = field(default_factory=dict)
    stored: dict[str, list[Row]] = field(default_factory=dict)
    done: list[tuple[int, float | str]] = field(default_factory=list)
    """Seed, and threshold that was answered, or round."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """Of the context beside."""

    def __post_init__(self) -> None:
        """Plan it."""
        self.spec = parse_spec(self.text)
        self.plan = make_plan(self.spec)

    def begin(self) -> Search:
        return build_search(
            SearchContext(
                spec=self.spec,
                plan=self.plan,
                baseline=BASELINE,
                finished=dict(self.rows),
                pretrained={"x": (0.0, 0.0)},
                continuable=frozenset(self.rows),
                answers=lambda name: list(self.stored[name]),
                **self.known,
            )
        )

    def run(self, search: Search, trial: PlannedTrial) -> None:
        """Do what is proposed, and tell the search."""
        name, seed = trial.trial_id, trial.config.seed
        if isinstance(trial, Question):
            bound = trial.thresholds["x"]
            assert bound not in [row["threshold_x"] for row in self.stored[name]], "it is known"
            self.done.append((seed, bound))
            row = None
            if seed not in self.mute:
                row = answer(bound, self.rows[name]["distance"], wall=36.0)
                self.stored[name].append(row)
                spent = {
                    key: self.rows[name].get(key, 0.0) + 36.0 for key in ("gpu_seconds", "asked_gpu_seconds")
                }
                self.rows[name] |= spent
            search.answered(trial, row)
            return
        self.rows[name] = self.ended(trial)
        search.observe(trial, self.rows[name])

    def ended(self, trial: PlannedTrial) -> Row:
        name, seed = trial.trial_id, trial.config.seed
        weighted = trial.config.method == "weighted"
        before = self.rows.get(name)
        rounds = 1 if before is None else before["rounds"] + 1
        status = "failed" if seed in self.failing else "succeeded"
        self.done.append((seed, "weighted" if weighted else f"round {rounds}"))
        away = self.away[rounds - 1]
        row = answer(0.5, away) | {"method": trial.config.method, "weight_x": 0.5, "seed": seed}
        asked = 0.0 if before is None else before["asked_gpu_seconds"]
        row |= {"status": status, "rounds": rounds, "distance_before": None, "asked_gpu_seconds": asked}
        row["gpu_seconds"] = 3600.0 * rounds + asked
        if before is not None and away >= before["distance"]:
            return before | {"rounds": rounds, "distance_before": before["distance"]}
        row["distance_before"] = None if before is None else before["distance"]
        self.stored[name] = [answer(LOW, away), answer(HIGH, away)]
        return row

    def drive(self, most: int | None = None) -> Search:
        """Run to the end, or until so much was done in all; then the driver is dead."""
        search = self.begin()
        while most is None or len(self.done) < most:
            if (trial := search.propose()) is None:
                assert search.exhausted, "it would wait for ever"
                return search
            assert not search.exhausted
            self.run(search, trial)
        return search

    def asked(self, seed: int = 0) -> list[float]:
        return [what for of, what in self.done if of == seed and isinstance(what, float)]

    def rounds(self, seed: int = 0) -> list[str]:
        return [what for of, what in self.done if of == seed and isinstance(what, str)]


def gap(search: Search) -> float:
    table = search.table()
    assert table is not None
    return float(table["gap"].to_pylist()[-1])


def true_gap(boxes: Boxes) -> float:
    """By how much mixtures of the answers of the first seed are above b²/2, at worst: the chords of a parabola."""
    [name, *_] = [trial.trial_id for trial in boxes.plan.trials]
    bounds = np.sort([0.0, *[row["threshold_x"] for row in boxes.stored[name]]])
    asked = np.linspace(LOW, HIGH, 2001)
    return float((np.interp(asked, bounds, bounds**2 / 2) - asked**2 / 2).max())


def test_one_trial_answers_until_the_gap_is_the_tolerance() -> None:
    boxes = Boxes()
    search = boxes.drive()
    assert boxes.rounds() == boxes.rounds(1) == ["round 1"], "one trial per seed"
    assert boxes.asked() == boxes.asked(1), "every seed is asked the same"
    assert all(LOW < bound < HIGH for bound in boxes.asked()), "its design was told at once"
    assert 0 < true_gap(boxes) <= gap(search) <= 0.02
    # Between two tangents of a parabola that touch at a distance of h the chord is h²/4 above where they meet.
    assert len(boxes.asked()) == 3
    assert search.note == (
        f"estimated gap {gap(search):.3f} nats after 5 answers (tolerance 0.02), ended: tolerance"
    )
    assert boxes.begin().propose() is None
    assert boxes.begin().exhausted


@pytest.mark.parametrize("dies", range(1, 9))
def test_a_driver_that_dies_anywhere_asks_for_nothing_again(dies: int) -> None:
    whole, torn = Boxes(), Boxes()
    last = whole.drive()
    torn.drive(most=dies)
    again = torn.drive()
    assert torn.done == whole.done
    assert gap(again) == gap(last)
    assert again.note == last.note


def test_what_runs_is_waited_for() -> None:
    boxes = Boxes()
    search = boxes.begin()
    first, second = search.propose(), search.propose()
    assert first is not None
    assert second is not None
    boxes.run(search, first)
    assert search.propose() is None
    assert not search.exhausted
    boxes.run(search, second)
    asked = [search.propose(), search.propose()]
    assert [type(each) for each in asked] == [Question, Question]
    assert search.propose() is None, "one place at a time: where the next is hangs on what this one is"
    boxes.run(search, asked[1] or second)
    assert search.propose() is None
    assert not search.exhausted


def test_where_the_adapter_is_the_limit_it_is_trained_further_and_asked_anew() -> None:
    boxes = Boxes(away=(0.05, 0.03, 0.001))
    search = boxes.drive()
    assert boxes.rounds() == boxes.rounds(1) == ["round 1", "round 2", "round 3"]
    assert [what for _, what in boxes.done[:6:2]] == ["round 1", "round 2", "round 3"], (
        "no answer of an adapter whose own thresholds stay open is worth its price"
    )
    assert gap(search) <= 0.02
    assert "and 3 rounds" in str(search.note)
    table = search.table()
    assert table is not None
    assert table["trials"].to_pylist() == list(range(1, len(table) + 1))
    there = len(boxes.stored[boxes.plan.trials[0].trial_id])
    assert len(table) == there, "those that were replaced are gone"
    assert f" after {there} answers " in str(search.note)
    assert boxes.begin().table() == table, "as whoever comes next knows it"
    assert boxes.begin().note == search.note
    assert len(boxes.asked()) == len(set(boxes.asked())) >= 3


def test_an_adapter_that_is_near_enough_is_not_trained_further() -> None:
    boxes = Boxes(away=(0.015, 0.0, 0.0))
    boxes.drive()
    assert boxes.rounds() == ["round 1"]


def test_a_round_that_came_to_nothing_better_is_the_last() -> None:
    boxes = Boxes(away=(0.05, 0.06, 0.0))
    search = boxes.drive()
    assert boxes.rounds() == ["round 1", "round 2"]
    assert str(search.note).endswith("ended: nothing left") or str(search.note).endswith("ended: max_trials")
    resumed = boxes.begin()
    assert resumed.propose() is None
    assert resumed.exhausted
    there = len(boxes.stored[boxes.plan.trials[0].trial_id])
    assert f" after {there} answers " in str(search.note), "none has been replaced, and none counts twice"
    assert resumed.note == search.note
    assert resumed.table() == search.table()


class Free(Boxes):
    """The loosest thresholds, of which the rows of ``trials/`` are, cost nothing: the adapter is not in them."""

    def run(self, search: Search, trial: PlannedTrial) -> None:
        if isinstance(trial, Question):
            super().run(search, trial)
            return
        row = self.rows[trial.trial_id] = self.ended(trial)
        before = None if row["rounds"] == 1 else 0.0
        search.observe(trial, row | {"distance": 0.0, "distance_before": before})


def test_a_row_at_no_price_does_not_say_that_a_round_was_in_vain() -> None:
    boxes = Free(away=(0.05, 0.03, 0.001))
    search = boxes.drive()
    assert boxes.rounds() == ["round 1", "round 2", "round 3"]
    assert gap(search) <= 0.02


def test_a_seed_that_is_a_round_behind_catches_up() -> None:
    boxes = Boxes(away=(0.05, 0.0, 0.0))
    boxes.drive(most=3)
    assert [what for _, what in boxes.done] == ["round 1", "round 1", "round 2"]
    boxes.drive()
    assert boxes.rounds() == boxes.rounds(1) == ["round 1", "round 2"]


def test_it_ends_when_answers_are_used_up() -> None:
    boxes = Boxes(text=SPEC.replace("max_trials: 12", "max_trials: 4"))
    search = boxes.drive()
    assert len(boxes.asked()) == 2, "those of the design count"
    assert str(search.note).endswith("after 4 answers (tolerance 0.02), ended: max_trials")


def test_a_seed_that_failed_is_not_asked() -> None:
    boxes = Boxes(failing=frozenset({0}))
    search = boxes.drive()
    assert not boxes.asked()
    assert gap(search) <= 0.02
    all_failed = Boxes(failing=frozenset({0, 1}))
    assert str(all_failed.drive().note).endswith("after 0 answers (tolerance 0.02), ended: nothing left")


def test_a_seed_that_does_not_answer_is_left_to_the_other() -> None:
    boxes = Boxes(mute=frozenset({1}))
    search = boxes.drive()
    assert gap(search) <= 0.02
    both = Boxes(mute=frozenset({0, 1}))
    assert str(both.drive().note).endswith("ended: nothing left")
    assert len(both.asked()) == len(set(both.asked()))


def test_trials_with_weights_count_beside_it() -> None:
    boxes = Boxes(text=SPEC.replace("methods:", "methods:\n  - weighted: {weights: equal}"))
    search = boxes.drive()
    assert boxes.rounds().count("weighted") == 1
    assert f"after {2 + len(boxes.asked())} answers" in str(search.note), "and a weighted trial is none"
    assert gap(search) <= 0.02
    further = Boxes(away=(0.05, 0.0, 0.0), text=boxes.text)
    table = further.drive().table()
    assert table is not None
    assert further.rounds().count("weighted") == 1
    assert table["trials"].to_pylist() == list(range(1, len(table) + 1)), (
        "it counts among those of every round"
    )
    assert further.begin().table() == table


def test_a_budget_ends_it() -> None:
    boxes = Boxes()
    boxes.drive(most=6)  # two adapters of an hour each, four answers of a hundredth
    ended = dict(boxes.rows)

    def left(hours: float) -> Search:
        spending = Spending(gpu_hours=hours, planned=list(ended), finished=ended)
        return replace(boxes, known={"spending": spending}).begin()

    assert left(2.03).exhausted
    assert str(left(2.03).note).endswith("ended: budget")
    assert left(2.05).propose() is not None
    for row in ended.values():  # answers that a round has replaced were bought all the same
        row |= {
            "gpu_seconds": row["gpu_seconds"] + 36.0,
            "asked_gpu_seconds": row["asked_gpu_seconds"] + 36.0,
        }
    assert left(2.05).exhausted
    assert left(2.07).propose() is not None
    further = Boxes(away=(0.05, 0.0, 0.0))
    further.drive(most=2)
    rounds = dict(further.rows)
    spent = replace(
        further, known={"spending": Spending(gpu_hours=3.5, planned=list(rounds), finished=rounds)}
    )
    assert spent.begin().exhausted, "another round of both would take two hours more"
