"""Fixed weights chosen by Optuna: the search that thresholds make unnecessary, done as well as it can be.

    ask() -> weights -> a trial -> tell(result)

A study has one objective for every reward (maximise) and one for the KL (minimise); violations of the thresholds are
its constraints. It lives in a journal file or a database, where optuna-dashboard reads it.

Each proposal is drawn by a new sampler whose seed follows from the seed of the search and the number of trials in the
study, so that it depends on nothing but the study: a search that died goes on as if it had not, and repeats no draw.
"""

import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from orchestrator.errors import UsageError
from orchestrator.search.studies import open_storage, shown
from orchestrator.spec import WeightSearchSpec

_IDENTITY = "cdsweep"
_TRIAL_ID = "trial_id"
_REPEATS = "repeats"
_PATIENCE = 100
"""Proposals in a row that were there before; after so many there is nothing left to propose."""

Key = tuple[float, ...]
"""Weights in the order of the rewards."""


@dataclass(frozen=True, kw_only=True)
class WeightedResult:
    """What a trial with fixed weights ended with."""

    weights: Mapping[str, float]
    """By reward, nats per σ, exactly as they were asked."""
    trial_id: str = ""
    """Stands in the study, for those who look at it."""
    kl: float | None = None
    """Nats; None of a trial that failed."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """σ above the pretrained mean."""
    violations: Mapping[str, float] = field(default_factory=dict)
    """By constraint, at most 0 where it is met; σ of its reward, or nats."""

    @property
    def usable(self) -> bool:
        """Whether the trial ran and ended with finite figures."""
        figures = (*self.rewards.values(), *self.violations.values())
        return self.kl is not None and all(map(math.isfinite, (self.kl, *figures)))


class WeightSearch:
    """One study of one search and seed."""

    def __init__(
        self,
        settings: WeightSearchSpec,
        rewards: Sequence[str],
        constraints: Sequence[str],
        *,
        sweep: str,
        problem: str,
        seed: int,
        storage: str | Path,
        finished: Iterable[WeightedResult] = (),
        started: Iterable[Mapping[str, float]] = (),
    ) -> None:
        """Begin a study, or go on with the one in the storage.

        Args:
            settings: Sampler, number of trials and bounds.
            rewards: Names of the rewards, of which each has a weight.
            constraints: Names of the constraints, which every result has a violation of.
            sweep: Name of the sweep: a database may hold studies of many.
            problem: What the trials have in common, such as the hash of a config; a study of another is refused.
            seed: Of the sampler, and of the trials.
            storage: A journal file, or the URL of a database.
            finished: Results of this search so far. Those that the study has not heard of, be it that the driver died
                first or that the study is lost, are told to it.
            started: Weights of all trials of this search so far; those without a result are proposed again.

        Raises:
            StorageError: The storage cannot be opened.
            UsageError: It has a study of this name about something else.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # progress is the sweep's to show
        self.settings, self.seed = settings, seed
        self.rewards, self.constraints = tuple(rewards), tuple(constraints)
        self.name = f"{sweep}: {settings.sampler} {settings.low} to {settings.high}, seed {seed}"
        self._distributions: dict[str, BaseDistribution] = {
            name: FloatDistribution(settings.low, settings.high, log=True) for name in rewards
        }
        self._storage = open_storage(storage)
        self._study = self._open_study(problem, shown(storage))
        self._running: dict[Key, Trial] = {}
        self._ended: dict[Key, FrozenTrial] = {}
        self._unfinished: deque[Key] = deque()
        self._spent = False
        results = list(finished)
        every = [*started, *(result.weights for result in results)]
        for weights in every:
            self._check("weights", weights, self.rewards)
        self._restore(
            {self._key(result.weights): result for result in results},
            dict.fromkeys(self._key(weights) for weights in every),
        )

    @property
    def exhausted(self) -> bool:
        """Whether ``ask`` has nothing more to propose."""
        return self._spent or not (self._unfinished or self._asked < self.settings.trials)

    def ask(self) -> dict[str, float] | None:
        """Return the weights of the next trial, nats per σ, or None when all have been asked for.

        After a crash the trials that were running then come first, so that they can go on from their checkpoints.
        """
        if self._unfinished:
            return self._weights(self._unfinished.popleft())
        if self.exhausted:
            return None
        for _ in range(_PATIENCE):
            self._study.sampler = self._sampler()
            trial = self._study.ask(self._distributions)
            key = self._key(trial.params)
            if key not in self._running and key not in self._ended:
                self._running[key] = trial
                return self._weights(key)
            self._repeat(key, trial)
        self._spent = True
        return None

    def tell(self, result: WeightedResult) -> None:
        """Let the study know how a trial ended; figures that are not finite count as a failure.

        Raises:
            ValueError: These weights were not asked for, or a reward or constraint is missing.
        """
        self._check("weights", result.weights, self.rewards)
        key = self._key(result.weights)
        if key in self._ended:
            return
        if key not in self._running:
            raise ValueError(f"{self.name}: the weights {dict(result.weights)} were not asked for")
        trial = self._running[key]
        if result.trial_id:
            trial.set_user_attr(_TRIAL_ID, result.trial_id)
        if result.usable and result.kl is not None:
            self._check("rewards", result.rewards, self.rewards)
            self._check("violations", result.violations, self.constraints)
            _constrain(trial, {name: result.violations[name] for name in self.constraints})
            self._study.tell(trial, [*(result.rewards[name] for name in self.rewards), result.kl])
        else:
            self._study.tell(trial, state=TrialState.FAIL)
        del self._running[key]
        self._ended[key] = self._study.get_trials(deepcopy=False)[trial.number]
        if key in self._unfinished:
            self._unfinished.remove(key)

    def fail(self, weights: Mapping[str, float], trial_id: str = "") -> None:
        """Let the study know that a trial failed; its weights are not proposed again."""
        self.tell(WeightedResult(weights=weights, trial_id=trial_id))

    @property
    def _asked(self) -> int:
        return len(self._running) + len(self._ended)

    def _sampler(self) -> BaseSampler:
        """Return the sampler of the next proposal."""
        draws = len(self._study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self.seed, draws]).generate_state(1)[0])
        match self.settings.sampler:
            case "tpe":
                return TPESampler(seed=seed)
            case "nsga2":
                # Optuna's 50 is random search until 50 trials are over. On eight exact problems with two and three
                # rewards 8 was nearer to the frontier after 12 to 24 trials, and no farther after 40; 5 was farther.
                population = min(50, max(8, self.settings.trials // 5))
                return NSGAIISampler(seed=seed, population_size=population)
            case "gp":
                return GPSampler(seed=seed)
            case "random":
                return RandomSampler(seed=seed)

    def _open_study(self, problem: str, where: str) -> optuna.Study:
        """Return the study of this name, a new one if there is none.

        Raises:
            UsageError: It is about something else.
        """
        directions = [StudyDirection.MAXIMIZE] * len(self.rewards) + [StudyDirection.MINIMIZE]
        study = optuna.create_study(
            storage=self._storage, study_name=self.name, directions=directions, load_if_exists=True
        )
        identity = {
            "problem": problem,
            "rewards": list(self.rewards),
            "constraints": list(self.constraints),
        }
        if study.directions == directions and not study.get_trials(deepcopy=False):
            study.set_user_attr(_IDENTITY, identity)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([*self.rewards, "kl"])
        found: dict[str, Any] = study.user_attrs.get(_IDENTITY, {})
        other = [name for name, value in identity.items() if found.get(name) != value]
        if other:
            raise UsageError(
                f"the study {self.name!r} in {where} is of another spec, with other {' and '.join(other)}: "
                "give this sweep another name or storage"
            )
        return study

    # After a crash -----------------------------------------------------------------------------------

    def _restore(self, results: Mapping[Key, WeightedResult], started: Iterable[Key]) -> None:
        """Take up what the study knows, and tell it what it missed."""
        trials = self._study.get_trials(deepcopy=False)
        drawn = [trial for trial in trials if set(trial.params) == set(self.rewards)]
        for found in drawn:
            if found.state.is_finished() and _REPEATS not in found.user_attrs:
                self._ended[self._key(found.params)] = found
        for found in drawn:
            if found.state == TrialState.RUNNING:
                key = self._key(found.params)
                if key in self._running or key in self._ended:
                    self._repeat(key, self._live(found))
                else:
                    self._running[key] = self._live(found)
        for found in trials:
            if found.state == TrialState.RUNNING and len(found.params) < len(self.rewards):
                self._study.tell(found.number, state=TrialState.FAIL)  # the driver died while it was drawn
        self._enter([key for key in started if key not in self._running and key not in self._ended])
        for key in [key for key in self._running if key in results]:
            self.tell(results[key])
        self._unfinished.extend(self._running)

    def _enter(self, keys: Sequence[Key]) -> None:
        """Bring trials into the study that it does not have."""
        for key in keys:
            self._study.enqueue_trial(self._weights(key), skip_if_exists=True)
        for _ in self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            self._study.sampler = self._sampler() if self.settings.sampler == "nsga2" else RandomSampler()
            trial = self._study.ask(self._distributions)
            # Drawn in vain, as the weights are given, but it is how the genetic algorithm gives a trial its generation.
            _ = trial.relative_params
            self._running[self._key(trial.params)] = trial

    def _live(self, trial: FrozenTrial) -> Trial:
        """Return a running trial of another process as one that can be written to."""
        study_id = self._storage.get_study_id_from_name(self.name)
        return Trial(
            self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        )

    def _repeat(self, key: Key, trial: Trial) -> None:
        """End a trial whose weights were there before, as genetic algorithms make them: nothing is run twice."""
        before = self._ended.get(key)
        trial.set_user_attr(_REPEATS, self._running[key].number if before is None else before.number)
        if before is not None and before.state == TrialState.COMPLETE:
            _constrain(trial, before.constraints)
            self._study.tell(trial, before.values)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _check(self, what: str, given: Mapping[str, float], known: Sequence[str]) -> None:
        if set(given) != set(known):
            raise ValueError(f"{self.name}: {what} must be of {', '.join(known)}, got {', '.join(given)}")

    def _key(self, weights: Mapping[str, Any]) -> Key:
        return tuple(float(weights[name]) for name in self.rewards)

    def _weights(self, key: Key) -> dict[str, float]:
        return dict(zip(self.rewards, key, strict=True))


def _constrain(trial: Trial, violations: Mapping[str, float]) -> None:
    known = trial.constraints  # some are there already if the driver died here
    for name, violation in violations.items():
        if name not in known:
            trial.set_constraint(name, violation)
