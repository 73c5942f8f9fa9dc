"""What a composition of networks has beside its weights: retention, point-wise KLs, one adapter in its place."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.composition.measure import Measured
from trainers.composition.networks.alone import retentions
from trainers.composition.networks.groups import PathMeasure
from trainers.composition.networks.judges import Judges
from trainers.composition.networks.paths import CORRECTED, PathProduct, PathSum
from trainers.composition.networks.pipelines import PipelineChains, build_chains
from trainers.composition.networks.pointwise import pointwise_kls
from trainers.composition.networks.student import Student
from trainers.composition.state import Ascent
from trainers.config import CompositionConfig, TrialConfig
from trainers.estimates import intervals
from trainers.failures import Diverged, OutOfMemory
from trainers.trial_io import TrialIO
from trainers.types import FloatArray
from trainers.workers.collective import Collective

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

    def extras(self, weights: FloatArray, measured: Measured, io: TrialIO, state: Ascent) -> dict[str, Any]:
        """Return further fields of the outcome of a composition at ``weights`` ``[m]``."""
        kept = dict(zip(self.judges.names, measured.scores, strict=True))
        retained = retentions(self.composition, kept, io.reference, self.measure.size)
        fields: dict[str, Any] = {"retention": retained, "notes": ()}
        if self.composition.direction == "reverse":
            seed = self.config.evaluation.seed
            sampler = self.composition.sampler
            driver = None if sampler in {CORRECTED, "score"} else sampler
            found = pointwise_kls(self.chains, weights, _POINTWISE_SAMPLES, seed, driver=driver)
            names = [model.name for model in self.composition.models]
            fields["pointwise"] = intervals(names, *found, _POINTWISE_SAMPLES - 1)
        if self.composition.distillation is not None:
            try:
                fields |= self._distilled(weights, io, state)
            except (Diverged, OutOfMemory) as error:
                fields |= {"status": "failed", "error": str(error)}
        fields["notes"] += self.measure.batches.notes(Collective())
        return fields

    def _distilled(self, weights: FloatArray, io: TrialIO, state: Ascent) -> dict[str, Any]:
        """Train the one adapter, and measure it on its own samples.

        Raises:
            Diverged: it has no adapter to measure.
            OutOfMemory: a batch does not fit.
        """
        student = Student.fresh(self.config, self.chains, self.judges)
        trained = student.train(weights, io, state)
        first, *others = (student.answer(asked, io.reference) for asked in student.design(weights))
        quarter = max(1, len(trained.losses) // 4)
        note = (
            f"distilled in {len(trained.losses)} steps: from {np.mean(trained.losses[:quarter]):.3g} nats apart "
            f"in the first quarter to {np.mean(trained.losses[-quarter:]):.3g} in the last"
        )
        named = {f"kl_{name}": found for name, found in first.constituents.items()}
        named |= {f"reward_{name}": found for name, found in first.rewards.items()}
        return {
            "distilled": named,
            "adapter": self.chains.student_files(),
            "answers": () if self.config.frontier is None else (first, *others),
            "notes": (note,),
        }
