"""An adapter from anywhere, sampled as a trial's evaluation samples its own, in this process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from orchestrator.errors import PlacementError, UsageError
from orchestrator.execution.trials.device import own
from orchestrator.frontier.trials import real
from orchestrator.report.certified import Certified, NoOverlapError, certified
from trainers.config import TrialConfig
from trainers.failures import OutOfMemory
from trainers.types import Evaluation, FloatArray, Interval

MOST = 16
"""Times the images of an evaluation that are drawn unasked."""


@dataclass(frozen=True, kw_only=True)
class MeasuredAdapter:
    """What an adapter came to."""

    kl: Interval
    """Path-wise, nats."""
    rewards: Mapping[str, Interval]
    """As in the row of a trial: with the pretrained model as control variate where it has more samples."""
    evaluation: Evaluation
    """``reference`` has the pretrained model's rewards, on the same noise at least."""


def measure_adapter(
    config: TrialConfig,
    adapter: Mapping[str, bytes],
    *,
    images: int,
    reference: Mapping[str, FloatArray] | None = None,
) -> MeasuredAdapter:
    """Sample an adapter on the held-out prompts and the noise of an evaluation, and score it.

    Args:
        config: Of a trial on the pipeline that it is for.
        adapter: Its files, a plain LoRA of any ranks.
        images: Samples; the first ones are those of a shorter evaluation.
        reference: Rewards of the pretrained model on the same sequence of prompts and noise, ``[N]`` each; without
            them it is sampled too.

    Raises:
        UsageError: Model, adapter or rewards cannot be used, or a reward is not finite; says why.
        PlacementError: The memory does not hold one image.
    """
    from trainers.evaluate import evaluate, mean_interval
    from trainers.models.build import build_policy
    from trainers.rewards.base import build_rewards
    from trainers.workers.collective import Collective

    try:
        policy = build_policy(config, own(), adapter=adapter)
        rewards = build_rewards(config.rewards, config.prompts)
        drawn = partial(
            evaluate,
            policy,
            rewards,
            samples=images,
            seed=config.evaluation.seed,
            collective=Collective(),
            batch=config.evaluation.batch,
        )
        found = drawn()
        known = reference if reference is not None else drawn(reference=True).rewards
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OutOfMemory as error:
        raise PlacementError(str(error)) from error
    whole = replace(found, reference=known)
    return MeasuredAdapter(
        kl=mean_interval(whole, "kl"),
        rewards={name: mean_interval(whole, name) for name in whole.rewards},
        evaluation=whole,
    )


def certify_adapter(
    config: TrialConfig,
    adapter: Mapping[str, bytes],
    *,
    images: int | None,
    pretrained: pa.Table | None,
    others: Sequence[pa.Table],
    multipliers: Mapping[str, float] | None = None,
    least: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Certified:
    """Measure an adapter, and say what its samples prove of it.

    Args:
        config: Of a trial on the pipeline that it is for.
        adapter: Its files.
        images: Samples; by default those of an evaluation, and more where these carry no bound, within reason.
        pretrained: Samples of the pretrained model on the held-out prompts; without them it is sampled too.
        others: Of a sweep's trials.
        multipliers: λ that it was trained with, nats per reward unit; None where that is not known.
        least: Samples at least, where their number is not given.
        say: Hears that more are drawn.

    Raises:
        NoOverlapError: See ``certified``.
        UsageError: See ``measure_adapter``.
        PlacementError: See ``measure_adapter``.
    """
    usual = config.evaluation.images
    known = (
        None if pretrained is None else {r.name: real(pretrained, f"reward_{r.name}") for r in config.rewards}
    )
    count = images or max(usual, least)
    while True:
        found = measure_adapter(config, adapter, images=count, reference=known)
        drawn = _table(found.evaluation, found.evaluation.rewards, log_ratio=True)
        base = (
            _table(found.evaluation, found.evaluation.reference or {}) if pretrained is None else pretrained
        )
        try:
            return certified(
                drawn, config, found.kl, found.rewards, multipliers=multipliers, others=[base, *others]
            )
        except NoOverlapError as error:
            if images is not None or error.needed > MOST * usual:
                raise
            say(f"{count} images are too few to carry a bound: drawing {error.needed}")
            count = error.needed


def _table(evaluation: Evaluation, rewards: Mapping[str, FloatArray], *, log_ratio: bool = False) -> pa.Table:
    """Return samples as ``evaluations/`` has them, of the adapter or of the pretrained model on the same noise.

    Raises:
        UsageError: A reward or the KL is not finite.
    """
    columns: dict[str, FloatArray] = {f"reward_{name}": values for name, values in rewards.items()}
    if log_ratio:
        assert evaluation.log_ratio is not None, "of a rollout"
        columns |= {"kl": evaluation.kl, "log_ratio": evaluation.log_ratio}
    gaps = {f"reward_{name}" for name in evaluation.gaps}
    for name, values in columns.items():
        finite = np.isfinite(values) | (np.isnan(values) & (name in gaps))
        if not finite.all():
            raise UsageError(
                f"{name} is not finite on {int((~finite).sum())} of {len(values)} samples: the adapter "
                "may hold numbers that are none, or half precision overflows (training.precision, or the reward's own)"
            )
    return pa.table({"prompt": list(evaluation.prompts or ()), "seed": evaluation.seeds, **columns})
