"""A trial of every family on networks with random weights, of their true sizes or tiny, made on any device.

Nothing is read besides the configurations that the package has: prompts are random conditions of the right shapes.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from orchestrator.plan import make_job, make_plan
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics, TrialConfig, TrialJob
from trainers.hosts.alone import Host
from trainers.memory.sketch import SketchedTexts, frozen
from trainers.models.families.base import Conditions
from trainers.models.families.registry import family_with
from trainers.models.layers.trained_lora import Adapter
from trainers.models.pipeline import Parts, decoder_type, laid_out
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import Family
from trainers.pipelines.known import known_configs, names_of

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZE, TINY = 512, 32
"""Pixels a side of images, and where networks are tiny."""
STEPS, IMAGES = 3, 2
"""Optimiser steps, of one image each; images of an evaluation."""
NUMBERS: Mapping[str, Any] = {
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "num_single_layers": 1,
    "num_attention_heads": 1,
    "dual_attention_layers": [0],
    "caption_projection_dim": 64,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 32,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 1,
    "n_kv_heads": 1,
    "dim": 128,
    "cap_feat_dim": 32,
    "base_dim": 8,
    "max_position_embeddings": 8,
}
"""What is smaller in a tiny network."""
LEVELS: Mapping[str, Any] = {
    "block_out_channels": 32,
    "attention_head_dim": 2,
    "transformer_layers_per_block": 1,
    "down_block_types": None,
    "up_block_types": None,
}
"""Lists with an entry for each level, of which the first and the last are left: each is this, or as it was."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family: a model of it that is known by name, and a trial."""

    name: str
    form: Family
    configs: Configs
    job: TrialJob

    @property
    def config(self) -> TrialConfig:
        """Of the trial."""
        return self.job.config


def case_of(form: Family, *, tiny: bool) -> Case:
    """Return a family's case, as a spec plans it."""
    name = names_of(form)[0]
    size: dict[str, int] = {"height": TINY, "width": TINY} if tiny else {"height": SIZE, "width": SIZE}
    if tiny and form.tokens is not None:
        size["max_sequence_length"] = 8
    document = {
        "name": "gpu-check",
        "model": {"pretrained": name, "lora": {"rank": 4}, **size},
        "prompts": {"train": ["a cat", "a dog"], "evaluate": ["a cow", "a hen"]},
        "sampling": {"steps": 2 if tiny else 3, "rest": 1, "guidance": 4.0},
        "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
        "training": {
            "steps": STEPS,
            "batch_per_worker": 1,
            "precision": "bf16",
            "primal": "reward_backprop",
            "gradient_checkpointing": True,
            "checkpoint_every": 1,
        },
        "evaluation": {"images": IMAGES, "batch": IMAGES, "every": 1},
    }
    known = BaselineStatistics(rewards={"saturation": RewardStatistics(mean=0.2, std=0.1)}, samples=256)
    job = make_job(make_plan(parse_spec(json.dumps(document))).trials[0], known)
    configs = known_configs(name)
    assert configs is not None
    if tiny:
        configs = {part: shrunk(config) for part, config in configs.items()}
    return Case(name=name, form=form, configs=configs, job=job.model_copy(update={"start": (1.0,)}))


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a tiny network of the same class."""

    def of(key: str, value: Any) -> Any:
        if isinstance(value, list) and key in LEVELS:
            return [LEVELS[key] or level for level in (value[0], value[-1])]
        return NUMBERS.get(key, value)

    return {key: of(key, value) for key, value in config.items()}


class RandomTexts(SketchedTexts):
    """A prompt is random conditions, the same ones for the same prompt."""

    def encode(self, batch: tuple[str, ...], asked: Asked) -> Conditions:
        """Return conditions of the right shape."""
        rows = []
        for prompt in batch:
            generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            shaped = super().encode((prompt,), asked)
            rows.append(
                shaped.each(lambda value, of=generator: torch.randn(value.shape, generator=of).to(value))
            )
        return Conditions.joined(rows, torch.cat)


class RandomWeights(Host):
    """Gives trials policies of one adapter on networks whose weights are as their classes begin them."""

    def __init__(self, case: Case, precision: str, device: str) -> None:
        """Make the networks on the device."""
        form, configs, dtype = case.form, case.configs, TYPES[precision]
        torch.manual_seed(0)

        def made(name: str, component: str, dtype: torch.dtype) -> Any:
            kind = getattr(diffusers, name)
            return frozen(lambda: kind.from_config(dict(configs[component])), dtype, device).to(dtype)

        network = made(form.network_class, form.network, dtype)
        self.parts = Parts(
            family=family_with(form),
            texts=RandomTexts(family_with(form), configs, dtype),
            pipeline=SimpleNamespace(scheduler=SimpleNamespace(config=dict(configs["scheduler"]))),
            network=network.to(memory_format=torch.channels_last),
            vae=laid_out(made(form.autoencoder, "vae", decoder_type(form, configs["vae"], dtype))),
            device=torch.device(device),
            dtype=dtype,
            model=case.config.model,
            configs=configs,
        )
        layers = [*network.modules(), *self.parts.vae.modules()]
        held = [
            value for layer in layers for value in vars(layer).values() if isinstance(value, torch.Tensor)
        ]
        self.weights = [*network.parameters(), *self.parts.vae.parameters(), *held]
        assert case.config.model.lora is not None, "the spec says a rank"
        self._adapter = Adapter(network, case.config.model.lora)

    def policy(self, config: TrialConfig, device: str) -> PipelinePolicy:
        """Return the policy of a trial."""
        del device
        assert config.prompts is not None, "the spec says prompts"
        return PipelinePolicy(
            replace(self.parts, model=config.model),
            self._adapter,
            config.prompts,
            config.sampling,
            gradient_checkpointing=config.training.gradient_checkpointing,
            compiled=config.training.compile,
        )
