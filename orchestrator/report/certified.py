"""``cdsweep certify``: what one policy's own paths prove of it.

Symbols as in ``frontier.paths.certificate``: ``w = exp(λ'r − log p/q)`` averages to Z(λ) for any policy, so

* its distance from the optimum of its multipliers is ``E_c log Z_c − E[log w]``, >= 0, and 0 iff log w is constant;
* the multipliers of a policy of unknown training are those at which its log w varies least, to second order those
  that maximise the dual at its own rewards;
* the least KL at its rewards is at least the best dual value of its own samples, of the pretrained model's and of
  those of a sweep's trials, at 95 %; the exact one where it is known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.errors import UsageError
from orchestrator.frontier.paths import FEWEST, Certificate, Certifier, OwnPaths, PathSamples
from orchestrator.frontier.problems import LeastKL, exact_problem
from orchestrator.frontier.sampled import path_samples
from orchestrator.frontier.trials import real
from trainers.config import TrialConfig
from trainers.types import Interval

FloatArray = NDArray[np.float64]

_SPARE = 1.3
"""Times as many samples as would just be enough, where more are drawn."""
PROVEN = "proven"


class NoOverlapError(UsageError):
    """The weights of a policy's paths are worth too few samples."""

    def __init__(self, message: str, needed: int) -> None:
        """Take what is said, and about how many samples would do."""
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True, kw_only=True)
class Certified:
    """What is known of a policy."""

    images: int
    kl: Interval
    rewards: Mapping[str, Interval]
    multipliers: Mapping[str, float]
    """Nats per reward unit: those it was trained with, or else those that suit it best."""
    lower_bound: float | None
    """Nats: the least KL at its mean rewards is at least this; None where the samples carry no bound."""
    kind: str | None
    """How sure: ``proven`` or ``95%``."""
    ess: float
    """Effective samples of its own weights at its multipliers."""
    distance: float
    """Nats from the optimum of its multipliers."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``cdsweep certify``, but for what was certified."""
        return {
            "images": self.images,
            "kl": self.kl.mean,
            "kl_low": _finite(self.kl.low),
            "kl_high": _finite(self.kl.high),
            "rewards": {name: found.mean for name, found in self.rewards.items()},
            "rewards_low": {name: _finite(found.low) for name, found in self.rewards.items()},
            "rewards_high": {name: _finite(found.high) for name, found in self.rewards.items()},
            "multipliers": dict(self.multipliers),
            "lower_bound": self.lower_bound,
            "kind": self.kind,
            "excess": None if self.lower_bound is None else self.kl.mean - self.lower_bound,
            "ess": self.ess,
            "distance": self.distance,
            "notes": list(self.notes),
        }


def weighable(table: pa.Table) -> bool:
    """Whether rows of ``evaluations/`` have log ratios, all of them."""
    return table.num_rows > 0 and bool(np.isfinite(real(table, "log_ratio")).all())


def fixed_prices(row: Mapping[str, Any], config: TrialConfig) -> dict[str, float] | None:
    """Return λ of a finished trial, nats per reward unit: weights, or multipliers; None where it has none of these."""
    names = [reward.name for reward in config.rewards]
    if config.method == "weighted":
        return {name: row.get(f"weight_{name}") or 0.0 for name in names}
    if config.objective.kind != "kl" or any(c.kind == "kl" for c in config.constraints):
        return None  # there the KL has a price of its own
    found = dict.fromkeys(names, 0.0)
    for constraint in config.constraints:
        if (price := row.get(f"multiplier_{constraint.name}")) is None:
            return None
        found[constraint.target] += price
    return found


def certified_trial(
    row: Mapping[str, Any],
    table: pa.Table,
    config: TrialConfig,
    others: Sequence[pa.Table],
) -> Certified | None:
    """Say what a finished trial's own evaluation proves of it; None where it keeps no log ratios.

    Args:
        row: Of ``trials/``.
        table: Its rows of ``evaluations/``.
        config: Of the trial.
        others: See ``certified``.

    Raises:
        NoOverlapError: See ``certified``.
    """
    if not weighable(table):
        return None
    names = [reward.name for reward in config.rewards]
    return certified(
        table,
        config,
        _interval(row, "kl"),
        {name: _interval(row, f"reward_{name}") for name in names},
        multipliers=fixed_prices(row, config),
        others=others,
        exact=exact_problem(config),
    )


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    low, high = (
        float("nan") if row[f"{name}_{end}"] is None else row[f"{name}_{end}"] for end in ("low", "high")
    )
    return Interval(mean=row[name], low=low, high=high)


def certified(
    table: pa.Table,
    config: TrialConfig,
    kl: Interval,
    rewards: Mapping[str, Interval],
    *,
    multipliers: Mapping[str, float] | None = None,
    others: Sequence[pa.Table] = (),
    exact: LeastKL | None = None,
) -> Certified:
    """Say what samples of a policy, and of others on the same chain, prove of it.

    Args:
        table: Its own, as ``evaluations/`` has them, with log ratios.
        config: Of any trial on this chain.
        kl: Its mean KL.
        rewards: Its mean rewards, at which the least KL is bounded.
        multipliers: λ that it was trained with, nats per reward unit; None where that is not known.
        others: Of the pretrained model, which have no log ratios, and of trials.
        exact: What knows the least KL exactly, if something does.

    Raises:
        NoOverlapError: Its paths hardly overlap with those of the pretrained model, which alone tell the least KL.
    """
    names = tuple(rewards)
    reached = np.array([rewards[name].mean for name in names])
    own, *beside = path_sources([table, *others], config)
    assert own.log_ratio is not None, "of a policy"
    paths = OwnPaths.of(own.rewards, own.log_ratio, own.prompts)
    if exact is None:
        _refuse_apart(paths.ess(paths.suited()), table.num_rows, kl)
    tilt = paths.suited() if multipliers is None else np.array([multipliers[name] for name in names])
    ess = paths.ess(tilt)
    best = certifier_of([own, *beside]).certificate(reached)
    lower, kind = (best.lower, best.kind) if best.carried else (None, None)
    if exact is not None:
        least = exact.least_kl(dict(zip(names, reached.tolist(), strict=True)))
        lower, kind = (least.kl, PROVEN) if least.reachable else (lower, kind)
    return Certified(
        images=table.num_rows,
        kl=kl,
        rewards=rewards,
        multipliers=dict(zip(names, tilt.tolist(), strict=True)),
        lower_bound=lower,
        kind=kind,
        ess=ess,
        distance=paths.distance(tilt),
        notes=tuple(
            _notes(ess, best, (table.num_rows, len(pc.unique(table["prompt"]))), carried=lower is not None)
        ),
    )


def path_sources(tables: Sequence[pa.Table], config: TrialConfig) -> list[PathSamples]:
    """Return samples on the prompts of the first table as sources; only the pretrained model's have no log ratios.

    Args:
        tables: As ``evaluations/`` has them.
        config: Of any trial on this chain.
    """
    prompts = {text: number for number, text in enumerate(dict.fromkeys(tables[0]["prompt"].to_pylist()))}
    found = []
    for table in tables:
        known = table.filter(pc.is_in(table["prompt"], pa.array(prompts, table["prompt"].type)))
        source = path_samples(known, config, prompts)
        found.append(source if weighable(known) else replace(source, log_ratio=None))
    return found


def certifier_of(sources: Sequence[PathSamples]) -> Certifier:
    """Return what is asked; with a single image of a prompt of all prompts together, the bound of which is looser."""
    try:
        return Certifier(sources)
    except ValueError:
        return Certifier([replace(source, prompts=None) for source in sources])


def _refuse_apart(ess: float, count: int, kl: Interval) -> None:
    if ess < FEWEST:
        needed = math.ceil(_SPARE * FEWEST / max(ess, 1e-3) * count)
        raise NoOverlapError(
            f"no overlap: at the multipliers that suit it best the path weights of {count} samples are worth "
            f"{ess:.1f} effective ones, and {FEWEST:.0f} are needed. Its KL is {kl.mean:.4g} nats; what the "
            f"least would be at its rewards takes about {needed} samples (--images)",
            needed,
        )


def _notes(ess: float, best: Certificate, counts: tuple[int, int], *, carried: bool) -> list[str]:
    notes, (count, prompts) = [], counts
    if count < 2 * prompts:
        notes.append(
            f"{count} images of {prompts} prompts: with two of each, as by --images {2 * prompts}, bound and distance "
            "are tighter"
        )
    if ess < FEWEST:
        notes.append(
            f"the distance from the optimum of its multipliers is rough: {ess:.0f} effective samples, {FEWEST:.0f} are "
            "needed"
        )
    if not carried:
        notes.append(f"no lower bound ({best.reason}); --images draws more")
    return notes


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
