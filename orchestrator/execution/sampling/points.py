"""Samples of the residual of a mixture beside those of the mixture itself, in this process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import StorageError
from trainers.adapters.files import CONTROL
from trainers.config import TrialConfig

SAMPLES = "samples.parquet"


def sample_points(
    config: TrialConfig,
    residuals: Mapping[str, Mapping[str, bytes]],
    shares: Mapping[str, float],
    directory: Path,
    *,
    seed: int,
    count: int,
) -> str:
    """Write samples of a residual or a mixture of them, and the model's on the same noise; returns the path.

    Columns are ``seed``, ``member``, coordinates ``x_I`` and ``pretrained_x_I``, the path-wise ``kl`` in nats, and
    ``reward_NAME`` and ``pretrained_reward_NAME``.

    Args:
        config: Of a trial of the sweep.
        residuals: Files by trial, each for one optimum; a member of ``shares`` without any is the pretrained model.
        shares: Probability of each member, by which one is drawn for every sample.
        directory: Where the file goes.
        seed: Of the noise, and of the draw of members.
        count: Samples.

    Raises:
        StorageError: a residual cannot be read, or the directory not be written.
    """
    import torch

    from trainers.models.mixture_policy import MixturePolicy
    from trainers.rewards.base import build_rewards

    assert config.model.mixture is not None, "of an exact mixture"
    policy = MixturePolicy.build(config.model.mixture, config.sampling, config.training.width)
    rewards = build_rewards(config.rewards, config.prompts)
    members = list(shares)
    picks = np.random.default_rng(seed).choice(len(members), size=count, p=list(shares.values()))
    draw = policy.fixed_draw(seed, 0, count)
    columns: dict[str, Any] = {
        "seed": draw.seeds,
        "member": [members[pick] for pick in picks],
        "kl": np.zeros(count),
    }
    with torch.no_grad():
        plain = policy.rollout(draw, reference=True).samples
        samples = plain.clone()
        for place, member in enumerate(members):
            rows = np.flatnonzero(picks == place)
            if member not in residuals or not len(rows):
                continue
            try:
                policy.load_adapter({CONTROL: residuals[member][CONTROL]})
            except ValueError as error:
                raise StorageError(f"the residual of trial {member} cannot be used: {error}") from error
            drawn = policy.rollout(draw)
            samples[rows] = drawn.samples[rows]
            columns["kl"][rows] = drawn.path_kl[rows].double().numpy()
        for prefix, found in (("", samples), ("pretrained_", plain)):
            columns |= {
                f"{prefix}x_{axis}": found[:, axis].double().numpy() for axis in range(found.shape[1])
            }
            columns |= {
                f"{prefix}reward_{name}": reward(found, None).double().numpy()
                for name, reward in rewards.items()
            }
    path = directory / SAMPLES
    try:
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error}") from error
    return str(path)
