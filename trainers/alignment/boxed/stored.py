"""The residual of a trial for a box of thresholds as files, and back: its network, multipliers at nodes, and looks."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from trainers.adapters.files import LOOKS, MULTIPLIERS
from trainers.alignment.boxed.answering import Answering
from trainers.alignment.boxed.frontier import Frontier, box_of
from trainers.alignment.boxed.stored_looks import stored_looks
from trainers.alignment.lagrangian import build_lagrangian
from trainers.config import TrialJob
from trainers.models.build import build_policy
from trainers.rewards.base import build_rewards
from trainers.types import FloatArray
from trainers.workers.collective import Collective

if TYPE_CHECKING:
    from trainers.models.base import Conditional

_FORMAT = 1


def multipliers_file(frontier: Frontier, multipliers: FloatArray) -> dict[str, bytes]:
    """Return the file of multipliers ``[N m]`` at the nodes, per scaled violation."""
    nodes = frontier.box.nodes
    document = {
        "format": _FORMAT,
        "constraints": [constraint.name for constraint in frontier.lagrangian.constraints],
        "acting": list(frontier.acting),
        "deviations": frontier.deviations.tolist(),
        "thresholds": nodes.tolist(),
        "multipliers": multipliers.reshape(len(nodes), -1).tolist(),
    }
    return {MULTIPLIERS: (json.dumps(document, indent=1) + "\n").encode()}


def open_stored(
    job: TrialJob, files: Mapping[str, bytes], reference: Mapping[str, FloatArray] | None, device: str = "cpu"
) -> Answering:
    """Return what answers with the residual of a finished trial.

    Args:
        job: Of the trial.
        files: Of its adapter.
        reference: Rewards of the pretrained model on the noise of evaluations, ``[N]`` each.
        device: Where networks compute.

    Raises:
        ValueError: The files are not those of such a trial; says which.
    """
    box, lagrangian = box_of(job), build_lagrangian(job)
    if box is None:
        raise ValueError(f"trial {job.trial_id} has thresholds that stand still")
    policy = build_policy(job.config, device)
    networks = {name: data for name, data in files.items() if name.endswith(".safetensors") and name != LOOKS}
    policy.load_adapter(networks)
    frontier = Frontier(job, box, lagrangian)
    return Answering(
        job.config,
        frontier,
        _multipliers(frontier, files),
        cast("Conditional", policy),
        build_rewards(job.config.scored, job.config.prompts),
        collective=Collective(),
        reference=reference,
        looks=stored_looks(job.config, files),
    )


def _multipliers(frontier: Frontier, files: Mapping[str, bytes]) -> FloatArray:
    """Return multipliers ``[N m]`` at the nodes, of the stored file."""
    if MULTIPLIERS not in files:
        raise ValueError(f"there is no {MULTIPLIERS} beside the network, only {', '.join(sorted(files))}")
    try:
        document = json.loads(files[MULTIPLIERS])
        found, known = document["multipliers"], (document["format"], document["constraints"])
        multipliers = np.array(found, dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MULTIPLIERS} cannot be read: {error!r}") from error
    names = [constraint.name for constraint in frontier.lagrangian.constraints]
    if known != (_FORMAT, names) or multipliers.shape != (len(frontier.box.masses), len(names)):
        raise ValueError(
            f"{MULTIPLIERS} is of another trial: format and constraints {known} with {multipliers.shape} numbers, not "
            f"{(_FORMAT, names)} with {(len(frontier.box.masses), len(names))}"
        )
    if not (np.isfinite(multipliers).all() and (multipliers >= 0).all()):
        raise ValueError(f"{MULTIPLIERS} holds numbers that are no multipliers: at least 0, and finite")
    return multipliers.ravel()
