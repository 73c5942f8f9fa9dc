"""Do certified bounds hold, and how far apart are they? Sweeps of deliberately bad trials, with known optima.

    python benchmarks/certificates.py [--problems 8] [--thorough] [--families …]

A problem's samples are an exact Gaussian mixture, carried over from the end of K Gaussian steps by increasing maps, one
coordinate after the other, so that paths have steps like a sampler's, the pretrained model is exactly the mixture, and
the least KL of images is known in closed form. That of paths is at least that; bounds are held against it. A policy
adds a control to every step; the best one is known on a grid. Each trial of a sweep is a bad copy of it:

    10 %, 30 %, 100 %   of the training: too weak a control for prices raised in turn, and smooth errors
    half width          the best control that is affine in the state
    wrong multipliers   prices reported up to twice or half of those the control is for

A sweep is the pretrained model's samples and twelve such trials, drawn in turn, at thresholds that the certified search
asks for. Bounds are looked at for the thresholds that the sweep asked for, where the search says that the gap is
largest, and at some others of the box:

    lower    95 % from path weights (``frontier.paths``), of each row of thresholds on its own
    tangents what a search reports without them: K_k + λ_k'(b − R_k), widened by a standard error
    upper    95 % from the same weights, of the best mixture, simultaneous over trials
    met      the same with a trial within tolerance counted as meeting its thresholds, widened by a standard error

and printed for each family: shares that are on the wrong side of the exact least KL; the median over sweeps of the
largest gap at those thresholds that mixtures are sure to reach, as certified, as the search reports it for the box, and
as it truly is; and that of the ratio of the first two. ``--thorough`` looks at 40 problems of each family.
``benchmarks/certificates_trained.py`` trains its trials, on one problem.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from certified_search import random_rewards
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.special import ndtr

from orchestrator.frontier.bounds import Bounds, Box, FrontierPoint
from orchestrator.frontier.paths import Certifier, Mixtures, PathSamples
from orchestrator.frontier.problems.exact import ExactProblem, reward_form
from orchestrator.frontier.solvers.concave import Evaluation, maximise
from orchestrator.search.certified import CertifiedSearch, TrialRecord
from trainers.config import MixtureConfig, RewardConfig

FloatArray = NDArray[np.float64]

STEPS = 8
TRIALS = 12
EXTRA = 6
"""Thresholds of the box that the sweep did not ask for."""
EDGE = 5.5
"""End of the grid, in standard deviations of the Gaussian that the steps end at."""
DEVIATIONS, TOLERANCE = 1.0, 0.05
"""Of the search, standard errors; of feasibility, σ."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Problems of one kind."""

    dimension: int
    rewards: int
    prompts: int
    each: int
    """Samples of a prompt and trial; of the pretrained model four times as many."""


FAMILIES = {
    "1-D, 2 rewards": Family(dimension=1, rewards=2, prompts=1, each=512),
    "2-D, 2 rewards": Family(dimension=2, rewards=2, prompts=1, each=512),
    "2-D, 3 rewards": Family(dimension=2, rewards=3, prompts=1, each=512),
    "1-D, 2 rewards, 32 prompts × 8": Family(dimension=1, rewards=2, prompts=32, each=8),
    "2-D, 2 rewards, 16 prompts × 32": Family(dimension=2, rewards=2, prompts=16, each=32),
}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How bad a trial is."""

    strength: float
    """Of the control."""
    raised: float
    """Factor on the prices, by which training makes up for it."""
    error: float
    """Size of smooth errors of the control."""
    affine: bool = False
    misreported: float = 0.1
    """Standard deviation of the logarithm of what the multipliers are reported by."""


QUALITIES = (
    Quality(strength=0.55, raised=1.7, error=0.35),
    Quality(strength=0.75, raised=1.3, error=0.25),
    Quality(strength=0.97, raised=1.03, error=0.08),
    Quality(strength=1.0, raised=1.0, error=0.08, affine=True),
    Quality(strength=0.9, raised=1.1, error=0.15, misreported=0.7),
)


class World:
    """A problem: a mixture for each prompt, rewards, and Gaussian steps that end at it."""

    def __init__(self, family: Family, seed: int) -> None:
        """Draw one."""
        rng = np.random.default_rng([seed, family.dimension, family.rewards, family.prompts])
        self.family = family
        side = 161 if family.dimension == 1 else 61
        axis = np.linspace(-EDGE, EDGE, side)
        self.axis = axis
        grid = np.stack(np.meshgrid(*[axis] * family.dimension, indexing="ij"), axis=-1)  # [G.., d]
        while True:
            mixtures, rewards = _drawn(rng, family)
            self.mixtures, self.rewards = mixtures, rewards
            self.exact = [ExactProblem(mixture, rewards) for mixture in mixtures]
            self.names = self.exact[0].names
            self.mean, second = np.zeros(len(rewards)), np.zeros(len(rewards))
            for problem in self.exact:
                for place, known in enumerate(problem.baseline().rewards.values()):
                    self.mean[place] += known.mean / len(mixtures)
                    second[place] += (known.std**2 + known.mean**2) / len(mixtures)
            self.std = np.sqrt(second - self.mean**2)
            corner = rng.uniform(0.3, 3.0, len(rewards)) / self.std
            value, means = self.log_partition(corner)
            kl = float(corner @ means) - value
            if 1.0 <= kl <= 3.0 and (means > self.mean + 0.2 * self.std).all():
                break
        self.box = Box(low=self.mean, high=means, spread=self.std)
        flat = grid.reshape(-1, family.dimension)
        self.table = np.stack(
            [self.scored(flat, np.full(len(flat), prompt)) for prompt in range(family.prompts)]
        ).reshape(family.prompts, *grid.shape[:-1], -1)  # [P, G.., m]
        self.noise = rng.standard_normal((STEPS, family.prompts, 4 * family.each, family.dimension))
        self.rng = rng

    def log_partition(self, tilt: FloatArray) -> tuple[float, FloatArray]:
        """E_c log Z_c and the expected rewards there."""
        named = dict(zip(self.names, tilt.tolist(), strict=True))
        values = [problem.log_partition(named) for problem in self.exact]
        means = [list(problem.tilted_means(named).values()) for problem in self.exact]
        return float(np.mean(values)), np.mean(means, axis=0)

    def least(self, thresholds: FloatArray) -> tuple[float, FloatArray]:
        """Least KL of images, nats, and its multipliers ``[m]``."""

        def dual(point: FloatArray) -> Evaluation:
            tilts = point / self.std
            value, means = self.log_partition(tilts)
            step = 1e-4
            columns = [
                (self.log_partition(tilts + step * unit / self.std)[1] - means) / step / self.std
                for unit in np.eye(len(point))
            ]
            hessian = np.stack(columns)
            return Evaluation(
                value=float(tilts @ thresholds) - value,
                gradient=(thresholds - means) / self.std,
                hessian=-0.5 * (hessian + hessian.T),
            )

        point, value, _ = maximise(
            dual, np.zeros(len(thresholds)), value_limit=50.0, point_limit=1e3, tolerance=1e-9
        )
        return value, point / self.std

    def scored(self, states: FloatArray, prompts: NDArray[np.int64]) -> FloatArray:
        """Rewards ``[n, m]`` of the images that states ``[n, d]`` are carried to."""
        images = np.empty_like(states)
        for prompt in np.unique(prompts).tolist():
            rows = prompts == prompt
            images[rows] = _carried(self.mixtures[prompt], states[rows])
        found = []
        for reward in self.rewards:
            direction, curvature, center = reward_form(reward, self.family.dimension)
            away = images - center
            found.append(images @ direction - 0.5 * np.einsum("ni,ij,nj->n", away, curvature, away))
        return np.stack(found, axis=1)

    def controls(self, tilt: FloatArray) -> list[FloatArray]:
        """The best control of every step on the grid, ``[P, G.., d]``, for λ ``[m]``: ∇ log E[exp(λ'r) | state]."""
        logs = self.table @ tilt
        top = logs.max()
        weights = np.exp(logs - top)
        spacing = self.axis[1] - self.axis[0]
        found = []
        for step in range(STEPS):
            remaining = 1.0 - step / STEPS
            kernel = np.exp(-0.5 * (self.axis[:, None] - self.axis) ** 2 / remaining)
            kernel /= kernel.sum(axis=1, keepdims=True)
            smooth = weights
            for place in range(self.family.dimension):
                smooth = np.moveaxis(np.tensordot(kernel, smooth, axes=(1, 1 + place)), 0, 1 + place)
            logs = np.log(np.maximum(smooth, 1e-300))
            slopes = [np.gradient(logs, spacing, axis=1 + place) for place in range(self.family.dimension)]
            found.append(np.stack(slopes, axis=-1))
        return found

    def draw(self, each: int, control: "Control | None" = None) -> tuple[PathSamples, FloatArray]:
        """Samples, the first of each prompt's noise, and their ½‖u‖² ``[n]``."""
        count, size = self.family.prompts, self.family.dimension
        prompts = np.repeat(np.arange(count), each)
        state = np.zeros((len(prompts), size))
        ratio, kl = np.zeros(len(prompts)), np.zeros(len(prompts))
        root = STEPS**-0.5
        for step in range(STEPS):
            noise = self.noise[step, :, :each].reshape(-1, size)
            moved = np.zeros_like(state) if control is None else root * control.at(step, state, prompts)
            state = state + root * (moved + noise)
            kl += 0.5 * (moved**2).sum(axis=1)
            ratio += 0.5 * (moved**2).sum(axis=1) + (moved * noise).sum(axis=1)
        samples = PathSamples(
            rewards=self.scored(state, prompts),
            log_ratio=None if control is None else ratio,
            path_kl=None if control is None else kl,
            prompts=prompts,
            units=np.tile(np.arange(each), count),
        )
        return samples, kl


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """A bad copy of the best control."""

    world: World
    tables: list[FloatArray]
    quality: Quality
    waves: FloatArray
    """``[w, d, d + 2]``: wave vectors, speeds and phases."""

    def at(self, step: int, state: FloatArray, prompts: NDArray[np.int64]) -> FloatArray:
        """Control ``[n, d]`` at states ``[n, d]``."""
        if self.quality.affine:
            best = self._affine[step][prompts]
            best = np.einsum("nij,nj->ni", best[:, :, :-1], state) + best[:, :, -1]
        else:
            places = (np.clip(state, -EDGE, EDGE) + EDGE) / (self.world.axis[1] - self.world.axis[0])
            coordinates = np.vstack([prompts, places.T])
            best = np.stack(
                [
                    map_coordinates(self.tables[step][..., place], coordinates, order=1, mode="nearest")
                    for place in range(state.shape[1])
                ],
                axis=1,
            )
        angles = np.einsum("wij,nj->nwi", self.waves[:, :, :-2], state)
        angles = angles + self.waves[:, :, -2] * (step / STEPS) + self.waves[:, :, -1]
        return self.quality.strength * best + self.quality.error * np.sin(angles).sum(axis=1)

    @cached_property
    def _affine(self) -> list[FloatArray]:
        """Least squares of each step's control over the Gaussian of its states: ``[P, d, d + 1]``."""
        world, fits = self.world, []
        size = world.family.dimension
        grid = np.stack(np.meshgrid(*[world.axis] * size, indexing="ij"), axis=-1).reshape(-1, size)
        design = np.column_stack([grid, np.ones(len(grid))])
        for step, table in enumerate(self.tables):
            weights = np.exp(-0.25 * (grid**2).sum(axis=1) / max(step / STEPS, 0.02))
            flat = table.reshape(world.family.prompts, -1, size)
            fits.append(
                np.stack(
                    [
                        np.linalg.lstsq(weights[:, None] * design, weights[:, None] * one, rcond=None)[0].T
                        for one in flat
                    ]
                )
            )
        return fits


def _drawn(rng: np.random.Generator, family: Family) -> tuple[list[MixtureConfig], list[RewardConfig]]:
    """Two or three Gaussians, moved for every prompt; rewards are linear and quadratic in turn."""
    size, parts = family.dimension, int(rng.integers(2, 4))
    roots = 0.4 * rng.normal(size=(parts, size, size))
    covariances = roots @ np.swapaxes(roots, 1, 2) + 0.1 * np.eye(size)
    means, weights = rng.uniform(-1.5, 1.5, (parts, size)), rng.dirichlet(np.full(parts, 3.0))
    mixtures = []
    for prompt in range(family.prompts):
        moved = means + (0.4 * rng.normal(size=size) if prompt else 0.0)
        shares = weights * rng.uniform(0.5, 1.5, parts) if prompt else weights
        mixtures.append(
            MixtureConfig(
                weights=tuple((shares / shares.sum()).tolist()),
                means=tuple(map(tuple, moved.tolist())),
                covariances=tuple(tuple(map(tuple, matrix)) for matrix in covariances.tolist()),
            )
        )
    return mixtures, random_rewards(rng, family.rewards, size)


def _carried(mixture: MixtureConfig, states: FloatArray) -> FloatArray:
    """Images ``[n, d]`` of Gaussian states: the quantiles of one coordinate after the other, given those before."""
    means, covariances = np.array(mixture.means), np.array(mixture.covariances)  # [C, d], [C, d, d]
    logs = np.tile(np.log(mixture.weights), (len(states), 1))  # [n, C]
    images = np.empty_like(states)
    for place in range(states.shape[1]):
        before = covariances[:, :place, :place]
        center, variance = np.tile(means[:, place], (len(states), 1)), covariances[:, place, place].copy()
        if place:
            gain = np.linalg.solve(before, covariances[:, :place, place][..., None])[..., 0]  # [C, place]
            center = center + np.einsum("cj,ncj->nc", gain, images[:, None, :place] - means[:, :place])
            variance -= np.einsum("cj,cj->c", gain, covariances[:, :place, place])
        spread = np.sqrt(variance)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        wanted = ndtr(states[:, place])
        low = (center - 9 * spread).min(axis=1)
        high = (center + 9 * spread).max(axis=1)
        for _ in range(42):
            middle = 0.5 * (low + high)
            below = (shares * ndtr((middle[:, None] - center) / spread)).sum(axis=1) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        images[:, place] = 0.5 * (low + high)
        logs = logs - 0.5 * ((images[:, place, None] - center) / spread) ** 2 - np.log(spread)
    return images


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One sweep."""

    wrong: dict[str, list[bool]]
    """By bound, for each row of thresholds."""
    gaps: tuple[float, float]
    """Largest one, certified and as the search reports it, nats."""
    true_gap: float
    refused: int
    ess: float
    seconds: float


def mean_point(
    samples: PathSamples,
    kl: FloatArray,
    multipliers: FloatArray | None,
    thresholds: FloatArray | None,
    slack: FloatArray,
) -> FrontierPoint:
    """What an evaluation says of a trial: strata of prompts."""
    rewards, prompts = np.asarray(samples.rewards), np.asarray(samples.prompts)
    table = np.column_stack([rewards, kl])
    counts = np.bincount(prompts)
    means = np.stack([np.bincount(prompts, column) for column in table.T], axis=1) / counts[:, None]
    residuals = table - means[prompts]
    errors = np.sqrt((residuals**2 / (counts * (counts - 1.0))[prompts, None]).sum(axis=0)) / len(counts)
    mean = means.mean(axis=0)
    met = None
    if thresholds is not None and (mean[:-1] - 1.645 * errors[:-1] >= thresholds - slack).all():
        met = thresholds
    return FrontierPoint(
        rewards=mean[:-1],
        kl=float(mean[-1]),
        multipliers=multipliers,
        reward_errors=errors[:-1],
        kl_error=float(errors[-1]),
        met=met,
    )


def sweep(name: str, seed: int) -> Verdict:
    """Run one sweep of bad trials, and judge its bounds."""
    family = FAMILIES[name]
    world = World(family, seed)
    slack = TOLERANCE * world.std
    own, nothing = world.draw(4 * family.each)
    pretrained = mean_point(own, nothing, np.zeros(family.rewards), None, slack)
    search = CertifiedSearch(world.box, pretrained, tolerance=1e-3, max_trials=TRIALS, deviations=DEVIATIONS)
    sources, points, asked_for = [own], [pretrained], []
    while (asked := search.ask()) is not None:
        quality = QUALITIES[len(asked_for) % len(QUALITIES)]
        tilt = quality.raised * world.least(asked)[1]
        waves = world.rng.uniform(-2, 2, (3, family.dimension, family.dimension + 2))
        control = Control(world=world, tables=world.controls(tilt), quality=quality, waves=waves)
        drawn, kl = world.draw(family.each, control)
        reported = tilt * np.exp(quality.misreported * world.rng.standard_normal(family.rewards))
        point = mean_point(drawn, kl, reported, asked, slack)
        search.tell(TrialRecord(thresholds=asked, point=point))
        sources.append(drawn)
        points.append(point)
        asked_for.append(asked)
    others = world.box.unscaled(world.rng.uniform(size=(EXTRA, family.rewards)))
    rows = np.concatenate([np.array(asked_for), others, search.gap.thresholds[None]])
    least = np.array([world.least(row)[0] for row in rows])
    began = time.perf_counter()
    certifier = Certifier(sources)
    proofs = [certifier.certificate(row) for row in rows]
    seconds = (time.perf_counter() - began) / len(rows)
    reported = Bounds(points, world.box, deviations=DEVIATIONS)
    lower, tangents = np.array([proof.lower for proof in proofs]), reported.lower(rows)
    mixtures = Mixtures(sources)
    mixed = [mixtures.at(row, proof.tilt) for row, proof in zip(rows, proofs, strict=True)]
    upper, met = np.array([each.upper for each in mixed]), reported.upper(rows)
    both = np.isfinite(upper)
    excess = np.array([each.estimate for each in mixed]) - least
    return Verdict(
        wrong={
            "lower": (lower > least + 1e-6).tolist(),
            "tangents": (tangents > least + 1e-6).tolist(),
            "upper": (upper < least - 1e-6).tolist(),
            "met": (met < least - 1e-6).tolist(),
        },
        gaps=(
            float((upper - lower)[both].max(initial=0.0)),
            search.gap.gap,
        ),
        true_gap=float(excess[both].max(initial=0.0)),
        refused=sum(not proof.carried for proof in proofs),
        ess=float(np.median([proof.ess for proof in proofs])),
        seconds=seconds,
    )


def _line(name: str, found: list[Verdict]) -> str:
    shares = [
        f"{np.mean([wrong for each in found for wrong in each.wrong[kind]]):9.1%}" for kind in found[0].wrong
    ]
    certified, search = (np.array([each.gaps[place] for each in found]) for place in (0, 1))
    ratio = float(np.median(certified / np.maximum(search, 1e-9)))
    figures = (
        f"{np.median(certified):10.3f}{np.median(search):9.3f}{np.median([each.true_gap for each in found]):9.3f}"
        f"{ratio:7.2f}{np.median([each.ess for each in found]):7.0f}{sum(each.refused for each in found):8}"
        f"{1000 * np.median([each.seconds for each in found]):6.0f}"
    )
    return f"{name:34}{len(found):7}{''.join(shares)}{figures}"


def main() -> None:
    """Print a line for each family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=8, help="of each family")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--thorough", action="store_true", help="40 problems of each family")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    problems = 40 if arguments.thorough else arguments.problems
    seeds = range(arguments.first, arguments.first + problems)
    began = time.monotonic()
    print(
        f"{'':34}{'':7}{'on the wrong side of the least KL':^36}{'largest gap, nats (medians)':>35}\n"
        f"{'family':34}{'sweeps':>7}{'lower':>9}{'tangents':>9}{'upper':>9}{'met':>9}{'certified':>10}{'search':>9}"
        f"{'true':>9}{'ratio':>7}{'ESS':>7}{'refused':>8}{'ms':>6}",
        flush=True,
    )
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for name in arguments.families:
            print(_line(name, list(pool.map(sweep, [name] * len(seeds), seeds))), flush=True)
    print(f"\n{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
