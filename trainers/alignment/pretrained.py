"""Samples of the pretrained model: what thresholds, first multipliers and evaluations are held against."""

from collections.abc import Mapping
from typing import Any

from trainers.config import EMBEDDED, SHIPPED, RewardConfig, TrialConfig
from trainers.evaluate import Embedder, evaluate
from trainers.models.base import Policy
from trainers.models.build import build_deployed, build_policy
from trainers.rewards.base import Reward, build_reward, build_rewards
from trainers.types import DEPLOYED, Evaluation
from trainers.workers.collective import Collective, Shard

BASELINE_SEED = 2_000_003
"""Of the noise of the samples on training prompts."""


def sample_both(config: TrialConfig, share: Collective | Shard, device: str) -> dict[str, Evaluation]:
    """Return samples for ``train`` and ``evaluate``, those of this share; zeros elsewhere.

    Where adapters are judged under the sampler that will be used, so is the pretrained model: on the noise of
    evaluations, as many images as they have, in the set ``DEPLOYED``.

    Raises:
        ValueError: model or rewards cannot be used; says why.
    """
    policy = build_policy(config, device)
    rewards = build_rewards(config.rewards, config.prompts)
    embedder = image_embedder(config, rewards)
    measured = build_rewards(config.measured, config.prompts)
    scored = {"train": rewards, "evaluate": {**rewards, **measured}}
    deployed = build_deployed(config, policy)  # refused before anything is sampled
    found = {
        name: sample_reference(
            config, policy, asked, held_out=name == "evaluate", embedder=embedder, share=share
        )
        for name, asked in scored.items()
    }
    if deployed is not None:
        found[DEPLOYED] = evaluate(
            deployed,
            scored["evaluate"],
            samples=config.evaluation.images,
            seed=config.evaluation.seed,
            collective=share,
            reference=True,
            batch=config.evaluation.batch,
        )
    return found


def image_embedder(config: TrialConfig, rewards: Mapping[str, Reward]) -> Embedder | None:
    """Return what embeds images: a reward's own CLIP, else the shipped one beside the shipped pipeline."""
    for reward in rewards.values():
        embed: Embedder | None = getattr(reward, "embed", None)
        if embed is not None:
            return embed
    if config.model.pretrained not in SHIPPED:
        return None
    shipped: Any = build_reward(RewardConfig(name="clip", kind="clip_score", parameters={"model": EMBEDDED}))
    found: Embedder = shipped.embed
    return found


def sample_reference(
    config: TrialConfig,
    policy: Policy,
    rewards: Mapping[str, Reward],
    *,
    held_out: bool = False,
    embedder: Embedder | None = None,
    share: Collective | Shard | None = None,
) -> Evaluation:
    """Sample the pretrained model on the training prompts, or on the held-out ones, and score it.

    The held-out samples begin with those of every evaluation.
    """
    train = None if config.prompts is None or held_out else config.prompts.in_turn("train", BASELINE_SEED)
    return evaluate(
        policy,
        rewards,
        samples=config.evaluation.baseline_images,
        seed=config.evaluation.seed if held_out else BASELINE_SEED,
        collective=share or Collective(),
        reference=True,
        prompts=train,
        embedder=embedder,
        batch=config.evaluation.batch,
    )
