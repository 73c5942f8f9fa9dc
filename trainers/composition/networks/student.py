"""The one adapter in the place of a composition: how it is trained, measured, and opened again."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from trainers.adapters.files import FRONTIER_LORA
from trainers.composition.networks.alone import Reference, retentions
from trainers.composition.networks.distil import Distilled, distil, student_kls
from trainers.composition.networks.judges import Judges
from trainers.composition.networks.paths import CORRECTED, PathProduct, group_size
from trainers.composition.networks.pipelines import PipelineChains, build_chains
from trainers.composition.networks.progress import InTrial
from trainers.composition.outcome import evaluated
from trainers.composition.state import Ascent
from trainers.config import PARTICLES, CompositionConfig, TrialConfig
from trainers.duality.spread import simplex_design
from trainers.estimates import intervals
from trainers.failures import OutOfMemory
from trainers.trial_io import TrialIO
from trainers.types import Answer, FloatArray, largest
from trainers.workers.memory import fits


@dataclass(frozen=True, kw_only=True)
class Student:
    """An adapter beside the models that it is taught by; of the method ``frontier`` a function of their weights."""

    config: TrialConfig
    composition: CompositionConfig
    chains: PipelineChains
    judges: Judges

    @classmethod
    def fresh(cls, config: TrialConfig, chains: PipelineChains, judges: Judges) -> "Student":
        """Add one to the models.

        Raises:
            ValueError: it does not fit their network, or its form does not fold.
        """
        composition = config.model.composition
        assert composition is not None, "a composition"
        assert composition.distillation is not None, "asked for"
        form = None if config.frontier is None else config.frontier.form
        chains.student(composition.distillation.lora, config.seed, form=form)
        return cls(config=config, composition=composition, chains=chains, judges=judges)

    @classmethod
    def opened(cls, config: TrialConfig, files: Mapping[str, bytes], device: str = "cpu") -> "Student":
        """Return that of a finished trial, beside its models.

        Args:
            config: Of the trial.
            files: Of its adapter.
            device: Where networks compute.

        Raises:
            ValueError: the models cannot be used, or the files are not those of such a trial; says why.
        """
        student = cls.fresh(config, build_chains(config, device), Judges(config.rewards))
        student.chains.load_student(
            {FRONTIER_LORA: files[FRONTIER_LORA]} if FRONTIER_LORA in files else files
        )
        return student

    @property
    def _forward(self) -> bool:
        return self.composition.direction == "forward"

    @property
    def names(self) -> list[str]:
        """Of the models, in the order of weights."""
        return [model.name for model in self.composition.models]

    def train(self, weights: FloatArray, io: TrialIO, state: Ascent) -> Distilled:
        """Train it at weights ``[m]``, or at all.

        Raises:
            Diverged: it has no adapter to measure.
            OutOfMemory: a batch does not fit.
        """
        config = self.composition.distillation
        assert config is not None, "asked for"
        train = partial(
            distil,
            self.chains,
            weights,
            config,
            direction=self.composition.direction,
            corrected=self.composition.sampler == CORRECTED,
            offsets=np.array([self.composition.offsets.get(name, 0.0) for name in self.names]),
            seed=self.config.seed,
            spread=self.config.frontier is not None,
            progress=InTrial(io, state, self.config.training.checkpoint_every),
        )
        if (trained := fits(train)) is None:
            raise OutOfMemory(
                f"out of memory in the distillation: lower distillation.batch (now {config.batch})"
            )
        return trained

    def design(self, weights: FloatArray) -> FloatArray:
        """Return the weights ``[n, m]`` at which it is evaluated: those given first, or these alone."""
        if self.config.frontier is None:
            return weights[None]
        return simplex_design(weights, self.config.frontier.points)

    def answer(self, weights: FloatArray, reference: Reference) -> Answer:
        """Measure it at weights ``[m]`` of the simplex, by its own samples on held-out prompts.

        Args:
            weights: ``λ``.
            reference: Rewards of the models alone, and of the pretrained one, on the same noise.
        """
        evaluation = self.config.evaluation
        # In groups as those of the models alone.
        size = group_size(self.chains.count) if self._forward else PARTICLES
        student = PathProduct(self.chains, self.judges, driver="student", particles=size)
        own = student(weights, np.zeros(self.judges.count), evaluation.images, evaluation.seed, held_out=True)
        near = own.kl, own.kl_error, own.degrees
        if self._forward:
            # to the adapter, as of the OR
            found = student_kls(self.chains, weights, evaluation.images, evaluation.seed)
            near = *found, evaluation.images - 1
        kls = intervals(self.names, *near)
        drawn = evaluated(own, self.judges.names, evaluation.seed)
        return Answer(
            thresholds={},
            multipliers=dict(zip(self.names, weights.tolist(), strict=True)),
            kl=largest(kls.values()),
            rewards=intervals(self.judges.names, own.rewards, own.reward_error, own.degrees),
            violations={},
            feasible=True,
            images=own.scores.shape[1],
            constituents=kls,
            retention=retentions(self.composition, drawn.rewards, reference, size),
            evaluation=drawn,
        )

    def folded(self, weights: FloatArray) -> dict[str, bytes]:
        """Return the files of the plain LoRA that it is at weights ``[m]``."""
        return self.chains.folded_student(torch.as_tensor(weights, dtype=torch.float32))
