"""Weights chosen by Optuna: bounds and budget, what is told, what a crash leaves, and that it is a search at all."""

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.errors import StorageError, UsageError
from orchestrator.search.weights import WeightedResult, WeightSearch
from orchestrator.spec.records.searches import WeightSearchSpec

SAMPLERS = ["tpe", "nsga2", "gp", "random"]
REWARDS = ("right", "near")
CONSTRAINTS = ("near", "kl")
Weights = Mapping[str, float]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "studies" / "journal.log"


def search_of(
    storage: Path | str, sampler: str = "tpe", trials: int = 6, seed: int = 0, **changes: Any
) -> WeightSearch:
    settings = WeightSearchSpec.model_validate(
        {"sampler": sampler, "trials": trials, "low": 0.01, "high": 10.0}
    )
    fields: dict[str, Any] = {"sweep": "demo", "problem": "0123abcd", "seed": seed} | changes
    return WeightSearch(
        settings,
        fields.pop("rewards", REWARDS),
        fields.pop("constraints", CONSTRAINTS),
        storage=storage,
        **fields,
    )


def result_of(weights: Weights, trial_id: str = "") -> WeightedResult:
    """What a trial of a made-up problem ends with."""
    right, near = weights["right"], weights["near"]
    rewards = {"right": math.log1p(right) - 0.1 * near, "near": math.log1p(near) - 0.1 * right}
    kl = 0.5 * (rewards["right"] ** 2 + rewards["near"] ** 2) + 0.01 * right * near
    return WeightedResult(
        weights=weights,
        trial_id=trial_id,
        kl=kl,
        rewards=rewards,
        violations={"near": 0.2 - rewards["near"], "kl": kl - 3.0},
    )


def study_of(search: WeightSearch, path: Path) -> optuna.Study:
    """The study as optuna-dashboard opens a journal file."""
    return optuna.load_study(study_name=search.name, storage=JournalStorage(JournalFileBackend(str(path))))


def rest_of(search: WeightSearch) -> list[dict[str, float]]:
    """Run what is left of a search, one trial after the other."""
    asked = []
    while (weights := search.ask()) is not None:
        asked.append(weights)
        search.tell(result_of(weights))
    return asked


def keys(trials: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [tuple(weights[name] for name in REWARDS) for weights in trials]


# What is asked, and what is told ----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_to_bounds_and_budget(journal: Path, sampler: str) -> None:
    trials = 12 if sampler == "gp" else 30
    search = search_of(journal, sampler, trials)
    running: list[dict[str, float]] = []
    asked = []
    while not search.exhausted:  # three at a time, as on a cluster
        weights = search.ask()
        assert weights is not None
        assert set(weights) == set(REWARDS)
        assert all(0.01 <= weight <= 10.0 for weight in weights.values())
        asked.append(weights)
        running.append(weights)
        if len(running) == 3:
            search.tell(result_of(running.pop(0)))
    assert search.ask() is None
    assert len(set(keys(asked))) == trials, "nothing is proposed twice"
    for weights in running:
        search.tell(result_of(weights))
    assert search.ask() is None
    complete = study_of(search, journal).get_trials(states=[TrialState.COMPLETE])
    assert {tuple(trial.params[name] for name in REWARDS) for trial in complete} == set(keys(asked))


def test_seeds_have_studies_of_their_own(journal: Path) -> None:
    first, second = (rest_of(search_of(journal, seed=seed)) for seed in (0, 1))
    assert not set(keys(first)) & set(keys(second))
    assert rest_of(search_of(journal.with_name("other.log"))) == first


def test_the_study_is_what_the_dashboard_shows(journal: Path) -> None:
    search = search_of(journal, trials=3)
    results = []
    for index in range(3):
        weights = search.ask()
        assert weights is not None
        results.append(result_of(weights, f"trial-{index}"))
        search.tell(results[-1])
    study = study_of(search, journal)
    assert study.study_name == "demo: tpe 0.01 to 10.0, seed 0"
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["right", "near", "kl"]
    for trial, result in zip(study.trials, results, strict=True):
        assert trial.params == result.weights
        assert trial.values == [result.rewards["right"], result.rewards["near"], result.kl]
        assert trial.constraints == result.violations
        assert trial.user_attrs == {"trial_id": result.trial_id}


def test_only_trials_that_meet_the_constraints_are_best(journal: Path) -> None:
    search = search_of(journal, trials=4)
    for index, violation in enumerate([-0.1, 0.1, 0.0, 0.3]):
        weights = search.ask()
        assert weights is not None
        figures = {"right": float(index), "near": -float(index)}
        search.tell(
            WeightedResult(
                weights=weights, kl=1.0, rewards=figures, violations={"near": violation, "kl": -1.0}
            )
        )
    assert [trial.number for trial in study_of(search, journal).best_trials] == [0, 2]


@pytest.mark.parametrize(
    "change",
    [{"kl": None}, {"kl": math.nan}, {"kl": math.inf}, {"rewards": {"right": math.nan, "near": 0.0}}],
    ids=str,
)
def test_a_failure_costs_a_trial_and_is_not_proposed_again(journal: Path, change: dict[str, Any]) -> None:
    search = search_of(journal, trials=4)
    weights = search.ask()
    assert weights is not None
    fields = vars(result_of(weights)) | change
    search.tell(WeightedResult(**fields))
    others = rest_of(search)
    assert len(others) == 3
    assert weights not in others
    study = study_of(search, journal)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] + ["COMPLETE"] * 3
    assert rest_of(search_of(journal, trials=4)) == []


def test_fail(journal: Path) -> None:
    search = search_of(journal, trials=1)
    weights = search.ask()
    assert weights is not None
    search.fail(weights, "0123abcd")
    [trial] = study_of(search, journal).trials
    assert (trial.state, trial.user_attrs) == (TrialState.FAIL, {"trial_id": "0123abcd"})


def test_a_result_is_told_once(journal: Path) -> None:
    search = search_of(journal, trials=2)
    weights = search.ask()
    assert weights is not None
    search.tell(result_of(weights))
    search.fail(weights)
    assert [trial.state.name for trial in study_of(search, journal).trials] == ["COMPLETE"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"right": 1.0, "near": 1.0}}, "were not asked for"),
        ({"weights": {"right": 1.0}}, "weights must be of right, near, got right"),
        ({"rewards": {"right": 1.0}}, "rewards must be of right, near, got right"),
        ({"violations": {"near": 1.0, "right": 1.0}}, "violations must be of near, kl, got near, right"),
    ],
    ids=str,
)
def test_results_that_do_not_fit(journal: Path, change: dict[str, Any], message: str) -> None:
    search = search_of(journal)
    weights = search.ask()
    assert weights is not None
    with pytest.raises(ValueError, match=message):
        search.tell(WeightedResult(**(vars(result_of(weights)) | change)))
    search.tell(result_of(weights))
    assert [trial.state.name for trial in study_of(search, journal).trials] == ["COMPLETE"]


# After a crash ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(journal: Path, sampler: str) -> None:
    trials = 12 if sampler == "gp" else 24
    expected = rest_of(search_of(journal.with_name("straight.log"), sampler, trials))
    order = np.random.default_rng(0)
    asked: list[dict[str, float]] = []
    finished: list[WeightedResult] = []
    search = search_of(journal, sampler, trials)
    for _ in range(trials):
        weights = search.ask()
        assert weights is not None
        if order.random() < 0.3:  # the driver dies while the trial runs, which goes on first
            search = search_of(journal, sampler, trials, finished=finished)
            assert search.ask() == weights
        asked.append(weights)
        finished.append(result_of(weights))
        if order.random() < 0.3:  # the driver dies after the result is stored
            search = search_of(journal, sampler, trials, finished=finished)
        else:
            search.tell(finished[-1])
    assert asked == expected
    assert search.exhausted


class Died(BaseException):
    pass


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_death_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    """The driver dies after each operation on the study in turn: no trial is lost, none is run twice."""
    append, trials = JournalFileBackend.append_logs, 5
    survived = False
    for moment in itertools.count(1):
        path, left = tmp_path / f"{moment}.log", itertools.count(-moment)
        run: list[tuple[float, ...]] = []
        finished: dict[tuple[float, ...], WeightedResult] = {}

        def dying(backend: JournalFileBackend, logs: list[dict[str, Any]], left: Any = left) -> None:
            append(backend, logs)
            if next(left) == -1:
                raise Died

        monkeypatch.setattr(JournalFileBackend, "append_logs", dying)
        for _ in range(2):
            try:
                search = search_of(path, sampler, trials, finished=finished.values())
                running: list[dict[str, float]] = []
                while (weights := search.ask()) is not None or running:
                    if weights is not None:
                        run += keys([weights])
                        running.append(weights)
                    if len(running) == 2 or weights is None:
                        done = running.pop(0)
                        [key] = keys([done])
                        assert key not in finished, "a finished trial is run again"
                        finished[key] = result_of(done)
                        search.tell(finished[key])
                survived = True
                break
            except Died:
                survived = False
        assert len(finished) == trials
        assert set(run) == set(finished), "a trial that was started is lost"
        assert len(run) <= trials + 2, "only what was running is started again"
        states = [trial.state for trial in study_of(search, path).get_trials()]
        assert states.count(TrialState.COMPLETE) == trials
        assert TrialState.RUNNING not in states
        if survived and next(left) < 0:
            break  # it lived to the end
    assert moment > 30


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_is_lost_is_made_again(journal: Path, sampler: str) -> None:
    search = search_of(journal, sampler, 12)
    finished = []
    for _ in range(10):
        weights = search.ask()
        assert weights is not None
        finished.append(result_of(weights))
        search.tell(finished[-1])
    finished[3] = WeightedResult(weights=finished[3].weights)
    journal.unlink()
    search = search_of(journal, sampler, 12, finished=finished)
    study = study_of(search, journal)
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 9
    assert {trial.params["near"]: trial.constraints for trial in study.trials if trial.values} == {
        result.weights["near"]: result.violations for result in finished if result.kl is not None
    }
    others = rest_of(search)
    assert len(others) == 2
    assert not set(keys(others)) & set(keys([dict(result.weights) for result in finished]))


def test_a_lost_population_is_found_again(journal: Path) -> None:
    search = search_of(journal, "nsga2", 12)
    finished = [result_of(weights) for weights in rest_of(search)]
    journal.unlink()
    search = search_of(journal, "nsga2", 20, finished=finished)
    seen = {name: {result.weights[name] for result in finished} for name in REWARDS}
    children = rest_of(search)
    inherited = [weights[name] in seen[name] for weights in children for name in REWARDS]
    assert any(inherited), "children take weights over from their parents, random draws do not"


def test_more_trials_may_be_asked_for_later(journal: Path) -> None:
    first = rest_of(search_of(journal, trials=4))
    more = rest_of(search_of(journal, trials=6))
    assert len(more) == 2
    assert [*first, *more] == rest_of(search_of(journal.with_name("other.log"), trials=6))


def test_a_line_that_was_cut_off_is_dropped(journal: Path) -> None:
    first = rest_of(search_of(journal, trials=3))
    content = journal.read_bytes()
    journal.write_bytes(content + b'{"op_code":4,"worker_id":"0')
    more = rest_of(search_of(journal, trials=5))
    assert len(more) == 2
    assert journal.read_bytes().startswith(content)
    assert len(study_of(search_of(journal, trials=5), journal).trials) == 5
    assert not set(keys(first)) & set(keys(more))


class Stubborn(optuna.samplers.RandomSampler):
    """Proposes two points in turn."""

    def sample_independent(self, study: optuna.Study, trial: Any, param_name: str, *_: Any) -> float:
        return 1.0 if trial.number % 2 else 2.0


def test_what_was_there_before_is_not_run_again(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightSearch, "_sampler", lambda _: Stubborn())
    search = search_of(journal, trials=5)
    first, second = search.ask(), search.ask()
    assert first == {"right": 2.0, "near": 2.0}
    assert second == {"right": 1.0, "near": 1.0}
    search.tell(result_of(first))
    assert not search.exhausted
    assert search.ask() is None
    assert search.exhausted, "there is nothing else to propose"
    search.tell(result_of(second))
    copies = study_of(search, journal).trials[2:]
    for trial in copies:
        if trial.params == first:  # is told what is known, for the sampler to go on
            assert trial.values == study_of(search, journal).trials[0].values
            assert trial.constraints == result_of(first).violations
        else:
            assert trial.state == TrialState.FAIL
    assert {tuple(trial.params.values()) for trial in copies} == {(1.0, 1.0), (2.0, 2.0)}
    again = search_of(journal, trials=5)
    assert (len(again._running), len(again._ended)) == (0, 2)


def test_a_repetition_does_not_end_the_trial_that_it_repeats(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightSearch, "_sampler", lambda _: Stubborn())
    search = search_of(journal, trials=5)
    asked = [search.ask(), search.ask(), search.ask()]
    assert asked[2] is None
    again = search_of(journal, trials=5)
    assert [again.ask(), again.ask()] == asked[:2]


# A search at all --------------------------------------------------------------------------------------


def exponents(search: WeightSearch, outcome: Callable[[np.ndarray], tuple[np.ndarray, float, float]]) -> Any:
    """Run a search of whose decimal logarithms ``[2]`` the outcome is: rewards, KL and one violation."""
    found = []
    while (weights := search.ask()) is not None:
        point = np.log10([weights[name] for name in REWARDS])
        rewards, kl, violation = outcome(point)
        search.tell(
            WeightedResult(
                weights=weights,
                kl=kl,
                rewards=dict(zip(REWARDS, rewards.tolist(), strict=True)),
                violations={"near": violation},
            )
        )
        found.append(point)
    return np.array(found)


MODELLED = [("tpe", 40, 20), ("nsga2", 80, 40), ("gp", 14, 4)]
"""Sampler, trials, and those of them that are looked at; the others are still drawn at random."""


@pytest.mark.parametrize(("sampler", "trials", "last"), MODELLED)
def test_it_goes_where_the_rewards_are_high_and_the_kl_low(
    journal: Path, sampler: str, trials: int, last: int
) -> None:
    def outcome(point: np.ndarray) -> tuple[np.ndarray, float, float]:
        miss = np.abs(point - 0.5)
        return -miss, float(miss.sum()), -1.0

    misses = [
        np.abs(exponents(search_of(journal, kind, trials, constraints=("near",)), outcome)[-last:] - 0.5)
        for kind in (sampler, "random")
    ]
    assert misses[0].mean() < 0.75 * misses[1].mean()


@pytest.mark.parametrize(("sampler", "trials", "last"), MODELLED)
def test_it_goes_where_the_constraints_are_met(journal: Path, sampler: str, trials: int, last: int) -> None:
    """Every point is on the front, so that only the constraint tells them apart; it holds for a sixth of them."""

    def outcome(point: np.ndarray) -> tuple[np.ndarray, float, float]:
        return point, float(point.sum()), 0.5 - float(point[0])

    met = [
        (exponents(search_of(journal, kind, trials, constraints=("near",)), outcome)[-last:, 0] >= 0.5).mean()
        for kind in (sampler, "random")
    ]
    assert met[0] >= 0.4 > met[1]


# Where it is kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"problem": "other"}, "other problem"),
        ({"constraints": ("near",)}, "other constraints"),
        ({"rewards": ("right", "far")}, "other rewards"),
        ({"rewards": ("right",), "problem": "other"}, "other problem and rewards"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["journal", "database"])
def test_a_study_of_another_spec(journal: Path, kind: str, change: dict[str, Any], named: str) -> None:
    journal.parent.mkdir()
    storage = journal if kind == "journal" else f"sqlite:///{journal.with_suffix('.db')}"
    first = rest_of(search_of(storage, trials=2))
    with pytest.raises(UsageError, match=f"'demo: tpe 0.01 to 10.0, seed 0' in .* of another spec.* {named}"):
        search_of(storage, trials=2, **change)
    search_of(storage, trials=2, sweep="another", **change)
    assert len(first) == 2
    assert search_of(storage, trials=2).exhausted


def test_an_empty_study_with_other_directions_is_another(journal: Path) -> None:
    search_of(journal)
    with pytest.raises(UsageError, match="of another spec"):
        search_of(journal, rewards=("right",))


def test_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    search = search_of(url, trials=4)
    weights = [search.ask(), search.ask()]
    assert None not in weights
    finished = [result_of(w) for w in weights if w]
    again = search_of(url, trials=4, finished=finished[:1])
    assert again.ask() == weights[1]
    again.tell(finished[1])
    assert len(rest_of(again)) == 2
    study = optuna.load_study(study_name=search.name, storage=url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert [trial.constraints for trial in study.trials[:2]] == [result.violations for result in finished]


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    search = search_of(Path("journal.log"), trials=2)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    rest_of(search)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below", "journal.log"]
    assert len(study_of(search, tmp_path / "journal.log").trials) == 2


def test_storages_that_cannot_be_opened(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.log"
    garbage.write_bytes(b"\x00\x01 not a journal\nat all\n")
    (tmp_path / "file").touch()
    for storage in (garbage, tmp_path, tmp_path / "file" / "journal.log", "sqlite:////no/such/place.db"):
        with pytest.raises(StorageError, match="cannot be opened") as caught:
            search_of(storage)
        assert str(storage) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_passwords_are_not_shown() -> None:
    with pytest.raises(StorageError, match=r"nosuchdb://me:\*\*\*@host/studies") as caught:
        search_of("nosuchdb://me:hunter2@host/studies")
    assert "hunter2" not in str(caught.value)
