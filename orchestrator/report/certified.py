"""``cdsweep certify``: what one policy's own paths prove of it.

Symbols as in ``frontier.sampled.certificate``: ``w = exp(λ'r − log p/q)`` averages to Z(λ) for any policy, so

* its distance from the optimum of its multipliers is ``E_c log Z_c − E[log w]``, >= 0, and 0 iff log w is constant;
* the multipliers of a policy of unknown training are those that maximise the dual at its own rewards, under which its
  log w varies least;
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
from orchestrator.frontier.problems import LeastKL, exact_problem
from orchestrator.frontier.sampled import Certificate, Certifier, PathSamples
from orchestrator.frontier.trials import real
from trainers.config import TrialConfig
from trainers.types import Interval

FloatArray = NDArray[np.float64]

ENOUGH = 30.0
"""Effective samples that carry a bound."""
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
class Drawn:
    """Samples of one policy, ``n`` rows, as ``evaluations/`` has them."""

    rewards: Mapping[str, FloatArray]
    """``[n]`` each, reward units."""
    units: NDArray[np.int64]
    """``[n]``, numbers of the noise; samples of one depend on each other."""
    prompts: Sequence[str | None]
    """``[n]``; None where the model has none."""
    log_ratio: FloatArray | None = None
    """``[n]``, nats; None of the pretrained model."""

    @property
    def weighable(self) -> bool:
        """Whether there are samples, all with their log ratios."""
        return self.log_ratio is not None and len(self.units) > 0 and bool(np.isfinite(self.log_ratio).all())

    def of(self, prompts: Mapping[str | None, int], names: Sequence[str]) -> PathSamples:
        """Return those on some prompts, numbered, as a source of certificates."""
        rows = np.array([prompt in prompts for prompt in self.prompts])
        return PathSamples(
            rewards=np.column_stack([self.rewards[name] for name in names])[rows],
            log_ratio=None if self.log_ratio is None else self.log_ratio[rows],
            prompts=np.array([prompts[prompt] for prompt in self.prompts if prompt in prompts]),
            units=self.units[rows],
        )


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
    pareto_k: float
    """Of their tail."""
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
            "pareto_k": _finite(self.pareto_k),
            "distance": self.distance,
            "notes": list(self.notes),
        }


def drawn_of(table: pa.Table, config: TrialConfig, *, of: str | None = None) -> Drawn:
    """Return rows of ``evaluations/``, or of one set of the pretrained model's samples.

    Args:
        table: ``prompt``, ``seed``, ``reward_NAME`` and of a trial ``log_ratio``, NaN where a row has none.
        config: Of any trial of the sweep.
        of: The set.
    """
    rows = table if of is None else table.filter(pc.equal(table["set"], of))
    units = rows["seed"].to_numpy()
    return Drawn(
        rewards={reward.name: real(rows, f"reward_{reward.name}") for reward in config.rewards},
        # Of a mixture neighbours share their noise, with opposite sign.
        units=np.arange(len(units)) // 2 if config.model.mixture is not None else units,
        prompts=rows["prompt"].to_pylist(),
        log_ratio=real(rows, "log_ratio") if of is None else None,
    )


def fixed_prices(row: Mapping[str, Any], config: TrialConfig) -> dict[str, float] | None:
    """Return λ of a finished trial, nats per reward unit: weights, or multipliers; None where it has none of these."""
    if config.objective.kind != "kl":
        return None
    kind = "weight" if config.method == "weighted" else "multiplier"
    named = [(c.name, c.target) for c in config.constraints if c.kind == "reward"]
    if kind == "weight":
        named = [(reward.name, reward.name) for reward in config.rewards]
    found = dict.fromkeys((reward.name for reward in config.rewards), 0.0)
    for column, reward in named:
        price = row.get(f"{kind}_{column}")
        if price is None and kind == "multiplier":
            return None
        found[reward] += price or 0.0
    return found


def certified_trial(
    row: Mapping[str, Any],
    table: pa.Table,
    config: TrialConfig,
    pretrained: Drawn | None,
    others: Sequence[Drawn],
) -> Certified | None:
    """Say what a finished trial's own evaluation proves of it; None where it keeps no log ratios.

    Args:
        row: Of ``trials/``.
        table: Its rows of ``evaluations/``.
        config: Of the trial.
        pretrained: Samples of the pretrained model.
        others: Of the sweep's other trials.

    Raises:
        NoOverlapError: See ``certified``.
    """
    drawn = drawn_of(table, config)
    if not drawn.weighable:
        return None
    names = [reward.name for reward in config.rewards]
    return certified(
        drawn,
        _interval(row, "kl"),
        {name: _interval(row, f"reward_{name}") for name in names},
        multipliers=fixed_prices(row, config),
        others=[*others, *([] if pretrained is None else [pretrained])],
        exact=exact_problem(config),
    )


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    low, high = (
        float("nan") if row[f"{name}_{end}"] is None else row[f"{name}_{end}"] for end in ("low", "high")
    )
    return Interval(mean=row[name], low=low, high=high)


def certified(
    drawn: Drawn,
    kl: Interval,
    rewards: Mapping[str, Interval],
    *,
    multipliers: Mapping[str, float] | None = None,
    others: Sequence[Drawn] = (),
    exact: LeastKL | None = None,
) -> Certified:
    """Say what samples of a policy, and of others on the same chain, prove of it.

    Args:
        drawn: Its own, with log ratios.
        kl: Its mean KL.
        rewards: Its mean rewards, at which the least KL is bounded.
        multipliers: λ that it was trained with, nats per reward unit; None where that is not known.
        others: Of the pretrained model, and of trials.
        exact: What knows the least KL exactly, if something does.

    Raises:
        NoOverlapError: Its paths hardly overlap with those of the pretrained model.
    """
    names = tuple(rewards)
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(drawn.prompts))}
    own = drawn.of(prompts, names)
    reached = np.array([rewards[name].mean for name in names])
    alone = _certifier([own])
    found = alone.certificate(reached)
    _refuse_apart(found, drawn, kl)
    if multipliers is not None:
        (found,) = alone.at([[multipliers[name] for name in names]], reached)
    sources = [own, *(other.of(prompts, names) for other in others if {*other.prompts} & {*prompts})]
    best = _certifier(sources).certificate(reached)
    lower, kind = (best.lower, best.kind) if best.carried else (None, None)
    if exact is not None:
        least = exact.least_kl(dict(zip(names, reached.tolist(), strict=True)))
        lower, kind = (least.kl, PROVEN) if least.reachable else (lower, kind)
    return Certified(
        images=len(drawn.units),
        kl=kl,
        rewards=rewards,
        multipliers=dict(zip(names, np.maximum(found.tilt, 0.0).tolist(), strict=True)),
        lower_bound=lower,
        kind=kind,
        ess=found.ess,
        pareto_k=found.pareto_k,
        distance=_distance(found, own, reached),
        notes=tuple(_notes(found, best, drawn, carried=lower is not None)),
    )


def _certifier(sources: Sequence[PathSamples]) -> Certifier:
    """Return what is asked; with a single image of a prompt of all prompts together, the bound of which is looser."""
    try:
        return Certifier(sources)
    except ValueError:
        return Certifier([replace(source, prompts=None) for source in sources])


def _distance(found: Certificate, own: PathSamples, reached: FloatArray) -> float:
    """Return ``E_c log Z_c − E[λ'r − log p/q]``: the first by what the certificate's estimate is a difference to."""
    log_partition = float(found.tilt @ reached) - found.estimate
    weights = np.asarray(own.rewards) @ found.tilt - np.asarray(own.log_ratio)
    return max(log_partition - float(weights.mean()), 0.0)


def _refuse_apart(found: Certificate, drawn: Drawn, kl: Interval) -> None:
    count = len(drawn.units)
    if found.ess < ENOUGH:
        needed = math.ceil(_SPARE * ENOUGH / found.ess * count)
        raise NoOverlapError(
            f"no overlap: at the multipliers that suit it best the path weights of {count} samples are worth "
            f"{found.ess:.1f} effective ones, and {ENOUGH:.0f} are needed. Its KL is {kl.mean:.4g} nats; what the "
            f"least would be at its rewards takes about {needed} samples (--images)",
            needed,
        )


def _notes(found: Certificate, best: Certificate, drawn: Drawn, *, carried: bool) -> list[str]:
    notes = []
    count, prompts = len(drawn.units), len(set(drawn.prompts))
    if count < 2 * prompts:
        notes.append(
            f"{count} images of {prompts} prompts: with two of each, as by --images {2 * prompts}, bound and distance "
            "are tighter"
        )
    if not found.carried:
        notes.append(f"the distance from the optimum of its multipliers is rough ({found.reason})")
    if not carried:
        notes.append(f"no lower bound ({best.reason}); --images draws more")
    return notes


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
