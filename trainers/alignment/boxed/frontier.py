"""One residual for every threshold of a box: what each sample of a batch is asked for.

    thresholds b, spread evenly over the box or more densely in places, one per sample
      -> multipliers λ(b), numbers at the nodes of the box with hats between (``duality.box``)
      -> the Lagrangian's coefficients of that sample, and the tilt of its optimum, which the residual is a function of

Thresholds are drawn, not multipliers: a family over multipliers would have to be solved for those of a threshold, and
its noise is largest where its curvature is smallest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainers.config import TrialJob
from trainers.duality.box import Box, moved, scaled_gaps
from trainers.duality.lagrangian import KL, Coefficients, Lagrangian
from trainers.models.base import Draw
from trainers.types import FloatArray

_PARTITION_SAMPLES = 2048


def box_of(job: TrialJob) -> Box | None:
    """Return the box of a job's thresholds; None where they stand still."""
    if job.config.frontier is None:
        return None
    names = [constraint.name for constraint in job.config.constraints]
    loosest = [job.thresholds[name] for name in names]
    tightest = [job.tightest.get(name, job.thresholds[name]) for name in names]
    # A sample of a mixture costs next to nothing, so batches are large.
    coarse = job.config.model.mixture is None
    return Box(loosest=np.array(loosest), tightest=np.array(tightest), coarse=coarse)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the samples of a draw are asked for."""

    draw: Draw
    """With their tilts."""
    coefficients: Coefficients
    thresholds: FloatArray | None = None
    """``[batch, m]``, units of the quantities; None where all have the same."""


class Frontier:
    """The problem at every threshold of a box."""

    def __init__(
        self,
        job: TrialJob,
        box: Box,
        lagrangian: Lagrangian,
        sampled: Mapping[str, FloatArray] | None = None,
    ) -> None:
        """Take the box, and what is optimised in it.

        Args:
            job: Of the trial.
            box: Of its thresholds.
            lagrangian: At the loosest of them.
            sampled: Rewards of the pretrained model, ``[n]`` each, of groups over all prompts; None where nothing is
                trained any more.
        """
        self.box, self.lagrangian = box, lagrangian
        self.acting = job.config.acting
        self.deviations = np.array([job.baseline.rewards[name].std for name in self.acting])
        """``[R]``, σ of the rewards that act."""
        columns = [(sampled or {}).get(name, np.zeros(0))[:_PARTITION_SAMPLES] for name in self.acting]
        self._sampled = np.stack(columns, axis=1) / self.deviations  # [n, R]
        self._sampled = self._sampled[~np.isnan(self._sampled).any(axis=1)]  # some scores could not be had
        # Another sequence for every seed.
        self._shift = float(np.random.default_rng(job.config.seed).uniform())

    def lean(self, density: Sequence[float] | None) -> None:
        """Draw thresholds with a density ``[N]`` from now on; None: evenly."""
        self.box = replace(self.box, density=None if density is None else np.array(density))

    @property
    def density(self) -> list[float] | None:
        """``[N]``, of the thresholds that are drawn; None: they are spread evenly."""
        return None if self.box.density is None else self.box.density.tolist()

    def ask(self, multipliers: FloatArray, draw: Draw, number: int, batch: int, first: int) -> Asked:
        """Return what the samples of a draw are asked for.

        Args:
            multipliers: ``[N m]``, of the primal at the nodes.
            draw: Of training.
            number: Of its batch in the trial, over all steps.
            batch: Samples of the whole batch, of all workers.
            first: Place of the draw's first sample in it.
        """
        begin = number * batch + first
        thresholds = self.box.drawn(begin, begin + len(draw), self._shift)
        coefficients = self.coefficients(multipliers, thresholds)
        tilts = self.tilts(coefficients, len(draw))
        asked = replace(coefficients, log_partition=self._log_partition(tilts))
        noise = draw.noise
        tilted = replace(draw, tilt=torch.as_tensor(tilts, dtype=noise.dtype, device=noise.device))
        return Asked(draw=tilted, coefficients=asked, thresholds=thresholds)

    def coefficients(self, multipliers: FloatArray, thresholds: FloatArray) -> Coefficients:
        """Return the coefficients at thresholds ``[n, m]``, those of each."""
        return self.lagrangian.coefficients(self.box.at(multipliers, thresholds).T)

    def tilts(self, coefficients: Coefficients, count: int) -> FloatArray:
        """Return the tilts ``[count, R]`` of the optima of coefficients, nats per σ."""
        found = coefficients.tilt()
        columns = [np.broadcast_to(np.asarray(found.get(name, 0.0)), (count,)) for name in self.acting]
        return np.asarray(np.stack(columns, axis=1) * self.deviations)

    def tilt(self, multipliers: FloatArray) -> FloatArray:
        """Return the tilt ``[R]`` of the optimum of multipliers ``[m]``, nats per σ."""
        found: FloatArray = self.tilts(self.lagrangian.coefficients(multipliers), 1)[0]
        return found

    def gaps(
        self, thresholds: FloatArray, values: Mapping[str, Tensor], about: Mapping[str, Tensor]
    ) -> FloatArray:
        """Return local means of scaled violations at the nodes, ``[N m]``.

        Args:
            thresholds: ``[batch, m]``.
            values: KL and rewards of the samples, ``[batch]`` each.
            about: Which of the samples each is about, ``[batch]`` each: of others nothing is missing.
        """
        constraints = self.lagrangian.constraints
        columns = [values[c.quantity].double().cpu().numpy() for c in constraints]
        found = scaled_gaps(constraints, thresholds, np.stack(columns, axis=1))
        known = ~np.isnan(found)  # scores that could not be had tell nothing, wherever they are missing
        within = np.stack([about[c.quantity].cpu().numpy() for c in constraints], axis=1)
        weights = within.sum(axis=0) / np.maximum((known & within).sum(axis=0), 1)
        return self.box.local_means(thresholds, np.where(known, found, 0.0) * np.where(within, weights, 1.0))

    def value(self, means: Mapping[str, float], gaps: FloatArray, multipliers: FloatArray) -> float:
        """Return the mean of ``L`` over what is drawn, for local means of violations and multipliers ``[N m]``."""
        lagrangian = self.lagrangian
        objective = (
            means[KL]
            if lagrangian.objective == KL
            else -means[lagrangian.objective] / lagrangian.objective_scale
        )
        terms = (gaps * multipliers).reshape(len(self.box.masses), -1).sum(axis=1)
        return float(objective + self.box.masses @ terms)

    @property
    def middle(self) -> Lagrangian:
        """The Lagrangian at the mean of the thresholds that are drawn: its violations are the means over them."""
        return moved(self.lagrangian, self.box.masses @ self.box.nodes)

    @property
    def units(self) -> list[float]:
        """What a tolerance is a share of at every node, ``[N m]`` scaled violations (``Constraint.unit``)."""
        return [c.unit for node in self.box.nodes for c in moved(self.lagrangian, node).constraints]

    def design(self, points: int) -> FloatArray:
        """Return thresholds ``[points, m]`` for an evaluation: the loosest, the tightest, and others between."""
        between = self.box.spread(0, max(points - 2, 0))
        return np.vstack([self.box.loosest, self.box.tightest, between])[:points]

    def _log_partition(self, tilts: FloatArray) -> FloatArray:
        """Return about ``log E_q exp(t·r/σ)`` at tilts ``[n, R]``, from samples of the pretrained model, ``[n]``."""
        exponents = tilts @ self._sampled.T  # [n, samples]
        top = exponents.max(axis=1)
        return np.asarray(top + np.log(np.exp(exponents - top[:, None]).mean(axis=1)))


def leaning(job: TrialJob, thresholds: FloatArray, gaps: FloatArray) -> TrialJob:
    """Return the job of another round, whose thresholds are drawn where gaps are largest.

    Args:
        job: Of a trial for a box of thresholds.
        thresholds: ``[p, m]``, where gaps are known, in the order of the constraints.
        gaps: ``[p]``, one unit for all.
    """
    box = box_of(job)
    density = None if box is None else box.denser(thresholds, gaps)
    return job.model_copy(update={"density": None if density is None else tuple(density.tolist())})


def at_nodes(box: Box | None, lagrangian: Lagrangian) -> Sequence[Lagrangian]:
    """Return the Lagrangian at every node of a box; without one, as it is."""
    return (lagrangian,) if box is None else [moved(lagrangian, node) for node in box.nodes]
