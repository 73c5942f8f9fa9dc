"""Samples of the pretrained model, drawn once per sweep by as many workers as the cluster holds.

Thresholds in σ and relative units refer to them, first multipliers come from them, and evaluations are paired
with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from orchestrator.errors import PlacementError, SpecError
from orchestrator.execution.cluster.placement import Placement, Room
from orchestrator.execution.cluster.places import SweepPlaces, sharing_places
from orchestrator.execution.trials.device import assigned
from orchestrator.execution.trials.leaning import leaning_job
from orchestrator.execution.trials.paths import absolute
from orchestrator.execution.trials.trial import worker_resources
from orchestrator.execution.trials.warm import nearest
from orchestrator.plan import Plan, PlannedTrial, make_job, resolve_thresholds
from orchestrator.report.images import strip
from orchestrator.results import layout
from orchestrator.results.sample_cache import CachedSamples, SampleCache, samples_key
from orchestrator.results.schema import prompts_of, rounds_of, samples_of, samples_table
from orchestrator.results.store import SweepStore
from orchestrator.search.box_rounds import trained_in_rounds
from orchestrator.spec import ResourcesSpec, prompt_warnings
from trainers.config import BaselineStatistics, TrialConfig, TrialJob
from trainers.failures import OutOfMemory
from trainers.reward_parameters import SERVED
from trainers.types import Evaluation, FloatArray

_SECONDS_BETWEEN_LOOKS = 2.0
_FLAT = 1e-6
"""Spread of a reward, as a share of its size, that is rounding of float32 and no spread."""
_SHARES = 8
"""Workers at most: each loads the pipeline, which takes longer than a few chunks of samples."""
_WORTH = 96
"""Images for which it is worth a worker of its own to load what draws them."""


class Jobs:
    """Makes a planned trial ready to run: thresholds resolved, multipliers started from the sweep's samples."""

    def __init__(self, store: SweepStore, baseline: BaselineStatistics, *, continuable: bool = False) -> None:
        """Read the samples, if the sweep has any; ``continuable`` jobs leave behind what another round goes on from."""
        self._baseline, self._store, self._continuable = baseline, store, continuable
        table = None if baseline.samples is None else store.baseline_samples()
        self._train = None if table is None else (samples_of(table, "train"), prompts_of(table, "train"))

    def _finished(self) -> list[dict[str, Any]]:
        """Return the rows of all finished trials, by id; the store reads each once."""
        rows: list[dict[str, Any]] = self._store.trials().to_pylist()
        return rows

    def __call__(self, trial: PlannedTrial) -> TrialJob:
        """Return the job of a trial; of one that has finished, to be trained for another round."""
        job = make_job(trial, self._baseline)
        config = trial.config
        if self._continuable and (config.method == "constrained" or trained_in_rounds(config)):
            row = self._store.trial(trial.trial_id)
            rounds = 1 if row is None else rounds_of(row) + 1
            job = job.model_copy(update={"continuable": True, "rounds": rounds})
            if rounds > 1 and config.frontier is not None:
                job = leaning_job(job, self._store)
        if config.model.composition is not None:
            return job
        if self._train is not None:
            from trainers.alignment.start import start_of

            job = start_of(job, *self._train)
        if config.training.warm_start and config.method == "constrained":
            found = nearest(job, self._finished())
            if found is not None:
                base = found.trial_id if found.adapted else None
                return job.model_copy(update={"start": found.multipliers, "base": base})
        return job


def ensure_baseline(
    plan: Plan,
    config: TrialConfig,
    store: SweepStore,
    placement: Placement,
    console: Console,
    *,
    fresh: bool = False,
) -> BaselineStatistics:
    """Return the statistics of the pretrained model; sample it first if the sweep has not yet.

    With ``fresh`` samples that another sweep has drawn are not used.

    Raises:
        SpecError: model, rewards or units of thresholds cannot be used; says why.
    """
    served = _served(config)
    if store.has_baseline():
        known = BaselineStatistics.model_validate(store.baseline())
        _must_be_same(known.versions, served)
        return known
    drawn = draw_samples(config, plan.resources, SampleCache(store.storage), placement, console, fresh=fresh)
    baseline = BaselineStatistics.model_validate(drawn.baseline)
    resolve_thresholds(config, baseline)  # in units that the samples may show to be none
    if drawn.image is not None:
        store.write_file(layout.PRETRAINED_IMAGE, drawn.image)
    document = plan.to_json(baseline=baseline)
    store.write_baseline(drawn.table, drawn.baseline, document)
    return baseline


def draw_samples(
    config: TrialConfig,
    resources: ResourcesSpec,
    cache: SampleCache,
    placement: Placement,
    console: Console,
    *,
    fresh: bool = False,
) -> CachedSamples:
    """Sample the pretrained model of a trial, or find the samples in the cache; ``fresh`` ones take their place there.

    Raises:
        SpecError: model or rewards cannot be used; says why.
    """
    key, served = samples_key(config), _served(config)
    found = None if fresh else cache.get(key)
    if found is not None and found.baseline.get("versions", {}) == served:
        date = f"{found.drawn_at:%Y-%m-%d %H:%M} UTC"
        console.print(f"using samples drawn on {date} (--fresh samples again)", soft_wrap=True)
        return found
    from trainers.problem import statistics

    console.print(f"sampling {_sampled(config)}", soft_wrap=True)
    said = set(prompt_warnings(config.model, config.prompts))
    samples, floor = _sample(config, resources, placement, console)
    for line in prompt_warnings(
        config.model, config.prompts
    ):  # a tokenizer of the hub may have come meanwhile
        if line not in said:
            console.print(f"warning: {line}", soft_wrap=True)
    _check_missing(samples, config, console)
    _check(samples["train"])
    shown = samples["evaluate"].images
    drawn = CachedSamples(
        table=samples_table(config, samples),
        baseline=statistics(samples, floor).model_dump(mode="json"),
        image=None if shown is None else strip(shown),
    )
    cache.put(key, drawn)
    return drawn


def _served(config: TrialConfig) -> dict[str, str]:
    """Return the versions of the rewards that servers give, each of which is asked; those are not the samples' key.

    Raises:
        SpecError: One does not answer, or has no such reward.
    """
    asked = [reward for reward in config.scored if reward.kind in SERVED]
    if not asked:
        return {}
    from trainers.rewards.base import build_rewards, versions

    try:
        return versions(build_rewards(asked))
    except ValueError as error:
        raise SpecError(str(error)) from error


def _must_be_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check versions of rewards.

    Raises:
        SpecError: One has become another.
    """
    from trainers.rewards.base import must_be_same

    try:
        must_be_same(before, now)
    except ValueError as error:
        raise SpecError(str(error)) from error


def _sampled(config: TrialConfig) -> str:
    """Say what is sampled."""
    composition, count = config.model.composition, config.evaluation.baseline_images
    if composition is None:
        used = config.evaluation.as_deployed
        more = "" if used is None else f", {config.evaluation.images} of these by {used.words}"
        return f"the pretrained model: {count} images of the training prompts, {count} held out{more}"
    alone = [model.name for model in composition.models if model.rewards and model.prompt is None]
    models = "".join(f", {name} alone" for name in alone)
    return f"the pretrained model{models}: {config.evaluation.images} images each"


def _sample(
    config: TrialConfig, resources: ResourcesSpec, placement: Placement, console: Console
) -> tuple[dict[str, Evaluation], float | None]:
    """Sample in shares side by side, and put them together; returns the floor of the KL too.

    Raises:
        PlacementError: No node can hold a worker, and none comes; or a worker's memory holds no sample.
    """
    import ray

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    needs = worker_resources(resources)
    shares = min(_SHARES, placement.workers, _worthwhile(config))
    task: Any = ray.remote(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=3)(_share)
    placed = absolute(config).model_dump_json()
    try:
        with sharing_places(config):
            pending = drawn = [task.remote(placed, rank, shares) for rank in range(shares)]
            room = Room(resources, searched=False, say=say)
            while pending:
                _, pending = ray.wait(pending, num_returns=len(pending), timeout=_SECONDS_BETWEEN_LOOKS)
                room.watch(running=len(pending), waiting=0)
                if room.error is not None:
                    raise room.error
            parts = ray.get(drawn)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise SpecError(str(error.cause)) from error
        if isinstance(error.cause, OutOfMemory):
            raise PlacementError(str(error.cause)) from error
        raise
    drawn_parts = [part for part, _ in parts]
    for part in drawn_parts[1:]:
        _must_be_same(drawn_parts[0]["train"].versions, part["train"].versions)
    samples = {name: merged([part[name] for part in drawn_parts]) for name in drawn_parts[0]}
    for note in dict.fromkeys(note for drawn in samples.values() for note in drawn.notes):
        say(f"note: {note}")
    return samples, parts[0][1]


def _worthwhile(config: TrialConfig) -> int:
    """Return the most workers that are worth their start; points of a mixture are drawn before a second one is up."""
    parts = config.model.parts.values()
    if all(part.pretrained is None for part in parts):
        return 1
    images = 2 * config.evaluation.baseline_images
    if config.model.composition is not None:
        images = len(parts) * config.evaluation.images
    return max(1, images // _WORTH)


def _check_missing(samples: Mapping[str, Evaluation], config: TrialConfig, console: Console) -> None:
    """Tell of scores that could not be had, and refuse rewards where they are too many.

    Raises:
        SpecError: with the reward, and how many.
    """
    served = [reward for reward in config.scored if reward.kind in SERVED]
    allowed = {reward.name: float(reward.parameters.get("missing", 0.0)) for reward in served}
    groups = {
        r.name: config.prompts.group(r.where)
        for r in config.rewards
        if r.where and config.prompts is not None
    }
    for of, drawn in samples.items():
        for name in drawn.rewards.keys() & allowed.keys():
            values, share = drawn.rewards[name], allowed[name]
            if (group := groups.get(name)) is not None:
                values = values[[prompt in group for prompt in drawn.prompts or ()]]
            if not (gone := int(np.isnan(values).sum())):
                continue
            line = f"reward {name!r} has no score for {gone} of {len(values)} samples of the pretrained model ({of})"
            if gone > share * len(values):
                raise SpecError(f"{line}, and at most a share of {share:g} may be missing")
            console.print(f"note: {line}", soft_wrap=True)


def _check(drawn: Evaluation) -> None:
    """Refuse rewards that nothing can be measured by.

    Raises:
        SpecError: with the reward, and why.
    """
    for name, scores in drawn.rewards.items():
        values = scores[~np.isnan(scores)] if name in drawn.gaps else scores
        if not np.isfinite(values).all():
            raise SpecError(
                f"reward {name!r} is not finite on {int((~np.isfinite(values)).sum())} of {len(values)} samples of the "
                "pretrained model; half precision overflows (training.precision, or the reward's own)"
            )
        if len(values) < 2 or values.std(ddof=1) <= _FLAT * np.abs(values).max():
            raise SpecError(
                f"reward {name!r} has no spread over {len(values)} samples of the pretrained model beyond rounding "
                f"(all are {values[0]:.6g}), and thresholds and multipliers are in units of it: raise "
                "evaluation.baseline_images, or choose another reward"
            )


def _share(config: str, rank: int, shares: int) -> tuple[dict[str, Evaluation], float | None]:
    """Sample one share, in a worker; the first measures the floor of the KL."""
    import math

    import ray
    import torch

    from trainers.alignment.kl_floor import measured_floor
    from trainers.problem import sample_pretrained
    from trainers.rewards.served.places import sharing
    from trainers.workers.collective import Shard

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    torch.set_num_threads(max(1, math.floor(cpus)))
    trial, device = TrialConfig.model_validate_json(config), assigned()
    floor = measured_floor(trial, device) if rank == 0 else None
    with sharing(SweepPlaces()):
        return sample_pretrained(trial, Shard(rank, shares), device), floor


def merged(parts: Sequence[Evaluation]) -> Evaluation:
    """Put shares together: each has zeros in the rows of the others."""
    first = parts[0]
    speeds: list[FloatArray] = [part.velocity for part in parts if part.velocity is not None]
    embeddings: list[FloatArray] = [part.embeddings for part in parts if part.embeddings is not None]
    rewards: Mapping[str, FloatArray] = {
        name: sum((part.rewards[name] for part in parts[1:]), first.rewards[name]) for name in first.rewards
    }
    return replace(
        first,
        rewards=rewards,
        noise={},  # of these samples nobody asks
        embeddings=sum(embeddings[1:], embeddings[0]) if len(embeddings) == len(parts) else None,
        velocity=sum(speeds[1:], speeds[0]) if len(speeds) == len(parts) else None,
        images=next((part.images for part in parts if part.images is not None), None),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
