"""What a composition of networks has beside its weights: retention, point-wise KLs, one adapter in its place."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trainers.composition.measure import Measured
from trainers.composition.networks.alone import MODEL, retention
from trainers.composition.networks.distil import distil, student_kls
from trainers.composition.networks.groups import PathMeasure
from trainers.composition.networks.judges import Judges
from trainers.composition.networks.paths import CORRECTED, PathProduct, PathSum
from trainers.composition.networks.pipelines import PipelineChains, build_chains
from trainers.composition.networks.pointwise import pointwise_kls
from trainers.config import CompositionConfig, TrialConfig
from trainers.estimates import intervals
from trainers.failures import Diverged, OutOfMemory
from trainers.trial_io import TrialIO
from trainers.types import FloatArray, Interval
from trainers.workers.collective import Collective
from trainers.workers.memory import fits

_POINTWISE_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class NetworkTrial:
    """The chains of a trial's networks, what judges their samples, and what measures both together."""

    config: TrialConfig
    composition: CompositionConfig
    chains: PipelineChains
    judges: Judges
    measure: PathMeasure

    @classmethod
    def build(cls, config: TrialConfig, device: str = "cpu") -> "NetworkTrial":
        """Load the networks onto a device.

        Raises:
            ValueError: they cannot be used, or do not go together; says why.
        """
        composition = config.model.composition
        assert composition is not None, "a composition"
        chains, judges = build_chains(config, device), Judges(config.rewards)
        measure: PathMeasure = (
            PathSum(chains, judges)
            if composition.direction == "forward"
            else PathProduct(chains, judges, driver=composition.sampler)
        )
        return cls(config=config, composition=composition, chains=chains, judges=judges, measure=measure)

    def extras(self, weights: FloatArray, measured: Measured, io: TrialIO) -> dict[str, Any]:
        """Return further fields of the outcome of a composition at ``weights`` ``[m]``."""
        fields: dict[str, Any] = {"retention": self._retention(measured, io), "notes": ()}
        if self.composition.direction == "reverse":
            seed = self.config.evaluation.seed
            sampler = self.composition.sampler
            driver = None if sampler in {CORRECTED, "score"} else sampler
            found = pointwise_kls(self.chains, weights, _POINTWISE_SAMPLES, seed, driver=driver)
            names = [model.name for model in self.composition.models]
            fields["pointwise"] = intervals(names, *found, _POINTWISE_SAMPLES - 1)
        if self.composition.distillation is not None:
            try:
                fields |= self._distilled(weights)
            except (Diverged, OutOfMemory) as error:
                fields |= {"status": "failed", "error": str(error)}
        fields["notes"] += self.measure.batches.notes(Collective())
        return fields

    def _retention(self, measured: Measured, io: TrialIO) -> dict[str, Interval]:
        pretrained = io.reference()
        if pretrained is None:
            return {}
        size = self.measure.size
        kept = dict(zip(self.judges.names, measured.scores, strict=True))
        found = {}
        for model in self.composition.models:
            alone = io.reference(MODEL + model.name)
            share = None if alone is None else retention(kept, alone, pretrained, model.rewards, size)
            if share is not None:
                found[model.name] = share
        return found

    def _distilled(self, weights: FloatArray) -> dict[str, Any]:
        """Train the one adapter, and measure it on its own samples.

        Raises:
            Diverged: it has no adapter to measure.
            OutOfMemory: a batch does not fit.
        """
        config = self.composition.distillation
        assert config is not None, "asked for"
        models, evaluation = self.composition.models, self.config.evaluation
        self.chains.student(config.lora, self.config.seed)
        train = partial(
            distil,
            self.chains,
            weights,
            config,
            direction=self.composition.direction,
            corrected=self.composition.sampler == CORRECTED,
            offsets=np.array([self.composition.offsets.get(model.name, 0.0) for model in models]),
            seed=self.config.seed,
        )
        if (trained := fits(train)) is None:
            raise OutOfMemory(
                f"out of memory in the distillation: lower distillation.batch (now {config.batch})"
            )
        student = PathProduct(self.chains, self.judges, driver="student")
        own = student(weights, np.zeros(self.judges.count), evaluation.images, evaluation.seed, held_out=True)
        near = own.kl, own.kl_error, own.degrees
        if self.composition.direction == "forward":
            # to the adapter, as of the OR
            near = *student_kls(self.chains, evaluation.images, evaluation.seed), evaluation.images - 1
        kls = intervals([f"kl_{model.name}" for model in models], *near)
        named = [f"reward_{name}" for name in self.judges.names]
        rewards = intervals(named, own.rewards, own.reward_error, own.degrees)
        quarter = max(1, len(trained.losses) // 4)
        note = (
            f"distilled in {len(trained.losses)} steps: from {np.mean(trained.losses[:quarter]):.3g} nats apart "
            f"in the first quarter to {np.mean(trained.losses[-quarter:]):.3g} in the last"
        )
        return {"distilled": kls | rewards, "adapter": self.chains.student_files(), "notes": (note,)}
