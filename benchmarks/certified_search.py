"""How many trials does a frontier need? The certified search, a grid, and Optuna on weights; trials are exact optima.

    python benchmarks/certified_search.py [--problems 5] [--seeds 3] [--trials 100] [--gp-trials 40]

Random Gaussian mixtures with linear and quadratic rewards; the box of thresholds reaches from the pretrained means to
rewards that cost 1.5 to 3 nats together. A trial is an exact optimum, so that a method is judged by where it asks. Its
figure is the worst excess over 200 random thresholds of the box: KL of what its trials offer minus the least KL.

    grid alone   81 (9 x 9) or 125 (5 x 5 x 5) constrained trials; each threshold takes the cheapest that meets it
    grid mixed   the same trials, and the pretrained model, mixed as the certified search mixes its own
    certified    thresholds asked one at a time; its trials are mixed
    greedy       with ``--greedy``: knows the exact frontier, and goes where mixtures are farthest above it
    tpe, ...     Optuna with one objective for every reward and one for the KL, weights from 0.01 to 10 nats per σ; its
                 trials are mixed as well

Printed are the trials that each method needs to reach the two figures of the grid and a tenth of a nat, medians over
problems and seeds (a seed draws thresholds and seeds samplers); and the certified gap relative to the true one, which
is the largest excess at those thresholds and at the places of the twenty largest gaps.

``--out-of-reach`` moves the far corner to rewards that cost 3 nats each alone: trials stop at 6 nats, thresholds
that need more than 4 are not judged. Optuna's Gaussian processes take seconds per trial, more with every trial, and
stop early; about an hour of one core in all.
"""

import argparse
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray

from orchestrator.frontier.bounds.bounds import Bounds, Box, FrontierPoint
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.search.certified import CertifiedSearch, TrialRecord
from trainers.config import MixtureConfig, RewardConfig

FloatArray = NDArray[np.float64]

THRESHOLDS = 200
SIDES = {2: 9, 3: 5}
"""Levels of the grid for each number of constraints."""
FINE_SIDES = {2: 33, 3: 11}
"""The same, of the thresholds among which ``greedy`` looks."""
FEW_NATS = 0.1
STOPPED_AT, JUDGED_TO = 6.0, 4.0
"""Nats, with a corner out of reach."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One problem and its box."""

    problem: ExactProblem
    box: Box
    pretrained: FrontierPoint

    def tilted(self, multipliers: FloatArray) -> FrontierPoint:
        """The optimum at these prices, nats per reward unit."""
        named = dict(zip(self.problem.names, multipliers.tolist(), strict=True))
        rewards = np.array(list(self.problem.tilted_means(named).values()))
        kl = float(multipliers @ rewards) - self.problem.log_partition(named)
        return FrontierPoint(rewards=rewards, kl=max(kl, 0.0), multipliers=multipliers)

    def least(self, thresholds: FloatArray) -> tuple[float, FloatArray]:
        """Least KL, nats, and its multipliers ``[m]``."""
        optimum = self.problem.least_kl(dict(zip(self.problem.names, thresholds.tolist(), strict=True)))
        return optimum.kl, np.array([max(optimum.tilt[name], 0.0) for name in self.problem.names])

    def trial(self, thresholds: FloatArray) -> FrontierPoint:
        """A constrained trial: the optimum, or as far as ``STOPPED_AT`` nats go towards it."""
        kl, multipliers = self.least(thresholds)
        if kl <= STOPPED_AT:
            return self.tilted(multipliers)
        inside, outside, start = 0.0, 1.0, self.pretrained.rewards
        while outside - inside > 1e-6:
            middle = 0.5 * (inside + outside)
            cheap = self.least(start + middle * (thresholds - start))[0] <= STOPPED_AT
            inside, outside = (middle, outside) if cheap else (inside, middle)
        return self.tilted(self.least(start + inside * (thresholds - start))[1])


def draw(seed: int, count: int, *, out_of_reach: bool) -> Setting:
    """Draw problems until prices of up to 4 nats per σ cost 1.5 to 3 nats and lift every reward by 0.2 σ."""
    rng = np.random.default_rng([seed, count])
    while True:
        problem = random_problem(rng, count)
        statistics = problem.baseline().rewards.values()
        mean = np.array([reward.mean for reward in statistics])
        std = np.array([reward.std for reward in statistics])
        setting = Setting(
            problem=problem,
            box=Box(low=mean, high=mean + std, spread=std),
            pretrained=FrontierPoint.pretrained(mean),
        )
        corner = setting.tilted(rng.uniform(0, 4, count) / std)
        if not (1.5 <= corner.kl <= 3.0 and (corner.rewards > mean + 0.2 * std).all()):
            continue
        high = corner.rewards
        if out_of_reach:
            high = np.array([problem.greatest_reward(name, 3.0).rewards[name] for name in problem.names])
            if setting.least(high)[0] <= STOPPED_AT:
                continue
        return Setting(
            problem=problem, box=Box(low=mean, high=high, spread=std), pretrained=setting.pretrained
        )


def random_problem(rng: np.random.Generator, count: int) -> ExactProblem:
    """Two to four Gaussians; rewards are linear and quadratic in turn."""
    dimension, parts = count, int(rng.integers(2, 5))
    roots = 0.45 * rng.normal(size=(parts, dimension, dimension))
    covariances = roots @ np.swapaxes(roots, 1, 2) + 0.08 * np.eye(dimension)
    mixture = MixtureConfig(
        weights=tuple(rng.dirichlet(np.full(parts, 3.0)).tolist()),
        means=tuple(map(tuple, rng.uniform(-2, 2, (parts, dimension)).tolist())),
        covariances=tuple(tuple(map(tuple, matrix)) for matrix in covariances.tolist()),
    )
    return ExactProblem(mixture, random_rewards(rng, count, dimension))


def random_rewards(rng: np.random.Generator, count: int, dimension: int) -> list[RewardConfig]:
    """Linear and quadratic ones in turn."""
    rewards = []
    for index in range(count):
        if index % 2:
            center = tuple(rng.uniform(-1.5, 1.5, dimension).tolist())
            parameters = {"center": center, "scale": float(rng.uniform(0.2, 0.8))}
            rewards.append(RewardConfig(name=f"near{index}", kind="quadratic", parameters=parameters))
        else:
            direction = rng.normal(size=dimension)
            parameters = {"direction": tuple((direction / np.linalg.norm(direction)).tolist())}
            rewards.append(RewardConfig(name=f"along{index}", kind="linear", parameters=parameters))
    return rewards


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Random thresholds and their least KL."""

    setting: Setting
    thresholds: FloatArray
    """``[n, m]``"""
    least: FloatArray
    """``[n]``, nats."""

    @classmethod
    def of(cls, setting: Setting, seed: int, most: float) -> "Judge":
        """Draw thresholds of the box that cost at most ``most`` nats."""
        rng = np.random.default_rng(seed)
        thresholds: list[FloatArray] = []
        least: list[float] = []
        while len(least) < THRESHOLDS:
            place = setting.box.unscaled(rng.uniform(size=len(setting.box.low)))
            kl = setting.least(place)[0]
            if kl <= most:
                thresholds.append(place)
                least.append(kl)
        return cls(setting=setting, thresholds=np.array(thresholds), least=np.array(least))

    def mixed(self, points: list[FrontierPoint]) -> float:
        """Worst excess of mixtures, nats."""
        bounds = Bounds([self.setting.pretrained, *points], self.setting.box)
        return float((bounds.upper(self.thresholds) - self.least).max())

    def alone(self, points: list[FrontierPoint]) -> float:
        """Worst excess of single trials, nats."""
        rewards = np.array([point.reaches(0.0) for point in points])
        short = self.thresholds[:, None] - rewards > 1e-6 * self.setting.box.widths
        kl = np.where(short.any(axis=2), np.inf, [point.kl for point in points])
        return float((kl.min(axis=1) - self.least).max())

    def needed(self, points: list[FrontierPoint], target: float) -> float:
        """Fewest of the first trials whose mixtures are within ``target`` nats; infinite if all are too few."""
        if self.mixed(points) > target:
            return np.inf
        few, enough = 0, len(points)
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self.mixed(points[:middle]) <= target else (middle, enough)
        return float(enough)


def certified(setting: Setting, trials: int, judges: list[Judge]) -> tuple[list[FrontierPoint], FloatArray]:
    """Trials of the search, and the ratio of its gap to the true one after each: ``[trials]``."""
    search = CertifiedSearch(setting.box, setting.pretrained, tolerance=1e-6, max_trials=trials, exact=True)
    points: list[FrontierPoint] = []
    ratios = []
    while (asked := search.ask()) is not None:
        points.append(setting.trial(asked))
        gap = search.tell(TrialRecord(thresholds=asked, point=points[-1]))
        bounds = Bounds([setting.pretrained, *points], setting.box)
        places = bounds.turning_points(bounds.reached())
        places = places[np.argsort(-bounds.gaps(places))[:20]]
        excess = bounds.upper(places) - np.array([setting.least(place)[0] for place in places])
        reached = [judge.thresholds[np.isfinite(bounds.upper(judge.thresholds))] for judge in judges]
        known = [judge.least[np.isfinite(bounds.upper(judge.thresholds))] for judge in judges]
        excess = np.append(excess, bounds.upper(np.concatenate(reached)) - np.concatenate(known))
        ratios.append(gap.gap / float(excess.max(initial=1e-12)))
    return points, np.array(ratios)


def lattice(box: Box, sides: Mapping[int, int]) -> FloatArray:
    """Thresholds of the box at evenly spaced levels, ends included: ``[n, m]``."""
    count = len(box.low)
    axis = np.linspace(0, 1, sides[count])
    return np.array([box.unscaled(np.array(place)) for place in itertools.product(axis, repeat=count)])


def greedy(setting: Setting, trials: int) -> list[FrontierPoint]:
    """Trials, each at the threshold of a fine grid where mixtures are farthest above the least KL."""
    places = lattice(setting.box, FINE_SIDES)
    least = np.array([setting.least(place)[0] for place in places])
    points = [setting.trial(setting.box.high)]
    while len(points) < trials:
        upper = Bounds([setting.pretrained, *points], setting.box).upper(places)
        points.append(setting.trial(places[int(np.argmax(upper - least))]))
    return points


def on_weights(
    setting: Setting, sampler: optuna.samplers.BaseSampler, trials: int
) -> Iterator[FrontierPoint]:
    """Trials of a multi-objective study."""
    names = setting.problem.names
    study = optuna.create_study(directions=["maximize"] * len(names) + ["minimize"], sampler=sampler)
    std = setting.box.spread
    for _ in range(trials):
        trial = study.ask()
        weights = np.array([trial.suggest_float(name, 0.01, 10.0, log=True) for name in names])
        point = setting.tilted(weights / std)
        study.tell(trial, [*(point.rewards / std).tolist(), point.kl])
        yield point


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def compare(count: int, arguments: argparse.Namespace) -> None:
    """Run every method on the problems with ``count`` constraints and print the table."""
    grid_size = SIDES[count] ** count
    print(f"\n{count} constraints, grid of {grid_size}; worst excess in nats")
    print("problem seed  corner  grid alone  grid mixed | trials to reach: grid alone, grid mixed, 0.1 nats")
    needs: dict[str, list[list[float]]] = {}
    ratios = []
    for problem in range(arguments.first, arguments.first + arguments.problems):
        setting = draw(problem, count, out_of_reach=arguments.out_of_reach)
        corner = setting.least(setting.box.high)[0]
        most = JUDGED_TO if arguments.out_of_reach else np.inf
        judges = [Judge.of(setting, seed, most) for seed in range(arguments.seeds)]
        grid = [setting.trial(place) for place in lattice(setting.box, SIDES)]
        found, ratio = certified(setting, arguments.trials, judges)
        ratios.append(ratio)
        known = {"greedy": greedy(setting, arguments.trials)} if arguments.greedy else {}
        for seed, judge in enumerate(judges):
            targets = [judge.alone(grid), judge.mixed(grid), FEW_NATS]
            row = {
                name: [judge.needed(points, target) for target in targets]
                for name, points in {"certified": found, **known}.items()
            }
            for name in arguments.samplers:
                trials = arguments.gp_trials if name == "gp" else arguments.trials
                points = list(on_weights(setting, SAMPLERS[name](seed), trials))
                row[name] = [judge.needed(points, target) for target in targets]
            for name, needed in row.items():
                needs.setdefault(name, []).append(needed)
            shown = "  ".join(f"{name} " + " ".join(map(_count, needed)) for name, needed in row.items())
            print(
                f"{problem:7d} {seed:4d} {corner:7.2f} {targets[0]:11.3f} {targets[1]:11.4f} | {shown}",
                flush=True,
            )
    print(f"medians over {arguments.problems} problems and {arguments.seeds} seeds:")
    for name, values in needs.items():
        middle = np.median(np.array(values), axis=0)
        limit = arguments.gp_trials if name == "gp" else arguments.trials
        text = [_count(value) if np.isfinite(value) else f"> {limit}" for value in middle]
        print(f"  {name:>9}: grid alone {text[0]:>5}, grid mixed {text[1]:>5}, 0.1 nats {text[2]:>5} trials")
    lengths = [len(ratio) for ratio in ratios]
    tenth = [ratio[9] for ratio in ratios if len(ratio) > 9]
    least = min(float(ratio[np.isfinite(ratio)].min()) for ratio in ratios)
    print(
        f"  certified gap / true gap: never below {least:.4f} after any of {min(lengths)} to {max(lengths)} trials; "
        f"after 10 trials {np.median(tenth):.2f} (median), {max(tenth):.2f} (worst)"
    )


def _count(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "-"


def main() -> None:
    """Print one table for two constraints and one for three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first problem")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--constraints", type=int, nargs="+", default=[2, 3], choices=SIDES)
    parser.add_argument(
        "--trials", type=int, default=100, help="of the certified search, TPE and NSGA-II at most"
    )
    parser.add_argument("--gp-trials", type=int, default=40, help="of Gaussian processes at most")
    parser.add_argument("--samplers", nargs="*", default=["tpe", "nsga2", "gp"], choices=SAMPLERS)
    parser.add_argument("--greedy", action="store_true", help="a search that knows the exact frontier, too")
    parser.add_argument("--out-of-reach", action="store_true", help="a far corner that nothing reaches")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    began = time.monotonic()
    for count in arguments.constraints:
        compare(count, arguments)
    print(f"\n{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
