"""How much memory a trial takes at most, told without weights from what its layers and steps are.

A step of training and one of evaluation are done on a sketch, whose tensors have sizes and no values, by the code that
trains: what autograd keeps, what guidance, checkpointing and estimators change, is in it as it is. Chains of more than
a few steps are continued in a straight line: every further step takes what the one before took.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers import registry
from trainers.config import PromptsConfig, SamplingConfig, TrialConfig
from trainers.duality.lagrangian import Coefficients
from trainers.hosts.sharded import blocks_of
from trainers.memory.judges import judges_of
from trainers.memory.live import Live
from trainers.memory.sketch import Sketch
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.pipelines.asking import Configs
from trainers.pipelines.families import Family

GIB = 2**30
PROCESS = 0.5 * GIB
"""Bytes of a process that computes on the CPU besides its tensors: interpreter, torch, diffusers, kernels."""
CONTEXT = 0.6 * GIB
"""Bytes of a GPU besides its tensors: the context of CUDA and its libraries."""
_FRAGMENTS = 1.05
"""What torch's allocator on a GPU holds of what is asked of it."""
_SHORT = 2
"""Active steps of the shorter of the two chains that longer ones are told from."""
_MOMENTS = 4
"""Times that an adapter's matrices are there besides themselves: gradient, two moments, average."""
_AHEAD = 2
"""Blocks of a split network that are whole at a time."""
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one worker of a trial."""

    weights: int
    """Of the networks and of the adapter with its optimiser; a GPU holds all but the text encoder."""
    training: int
    """The most that a micro-batch takes besides."""
    evaluation: int
    """The most that samples of an evaluation take besides, as many at a time as are asked for."""
    unsplit: int = 0
    """Of a network that is split among workers: what its weights take more where the pretrained model is sampled, by
    single workers."""

    @property
    def tensors(self) -> int:
        """All tensors at the most, bytes."""
        return self.weights + max(self.training, self.evaluation + self.unsplit)

    @property
    def on_cpu(self) -> float:
        """The resident memory of a process, bytes; what its allocator keeps of freed tensors comes on top."""
        return PROCESS + self.tensors

    @property
    def on_gpu(self) -> float:
        """The memory of a GPU, bytes."""
        return CONTEXT + _FRAGMENTS * self.tensors


def estimated_memory(
    config: TrialConfig, form: Family, configs: Configs, *, shards: int = 1
) -> MemoryEstimate:
    """Return what a worker of a trial takes.

    Args:
        config: Of a trial that trains an adapter of one pipeline.
        form: Of the pipeline.
        configs: Of its components.
        shards: Workers between whom the frozen network is split.

    Raises:
        ValueError: A target of the adapter ends the name of no layer, or the sampler has steps that the model has not.
    """
    judges = judges_of(config.rewards)
    dtype, offload = _TYPES[config.training.precision], config.training.offload
    sketch = Sketch(form, configs, config.model, dtype, judges, offload=offload)
    weights = sum(tensor.nbytes for tensor in sketch.weights) + sketch.unsketched - sketch.spared
    weights += _MOMENTS * sum(parameter.nbytes for parameter in sketch.adapter.parameters().values())
    active = config.sampling.steps - config.sampling.rest
    shorter = min(active, _SHORT)
    training = _peak(sketch, config, shorter, _trained)
    if active > shorter:
        training += (active - shorter) * (_peak(sketch, config, shorter + 1, _trained) - training)
    unsplit = _frozen(sketch.parts.network) - _held(sketch.parts.network, shards) if shards > 1 else 0
    return MemoryEstimate(
        weights=weights - unsplit,
        training=training,
        evaluation=_peak(sketch, config, shorter, _evaluated),
        unsplit=unsplit,
    )


def _held(network: nn.Module, shards: int) -> int:
    """Return the most bytes that a worker has of a frozen network which ``shards`` of them hold between them.

    Its share of all; of what is put together, the blocks while they are computed, the next one while that goes on, and
    all else from the first forward pass to the end of the backward pass.
    """
    whole, blocks = _frozen(network), [_frozen(block) for block in blocks_of(network)]
    return whole // shards + (whole - sum(blocks)) + sum(sorted(blocks)[-_AHEAD:])


def _frozen(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if not parameter.requires_grad)


def _peak(
    sketch: Sketch,
    config: TrialConfig,
    active: int,
    work: Callable[[PipelinePolicy, Sketch, TrialConfig], None],
) -> int:
    """Return the most bytes that work takes besides the weights, in a chain of some active steps."""
    training, sampling = config.training, config.sampling
    steps = active + sampling.rest
    policy = PipelinePolicy(
        sketch.parts,
        sketch.adapter,
        PromptsConfig(train=("",), evaluate=("",)),
        SamplingConfig(**sampling.model_dump() | {"steps": steps}),
        reference_gradient=training.reference_gradient,
        gradient_checkpointing=training.gradient_checkpointing,
    )
    for parameter in policy.parameters().values():
        parameter.grad = None
    live = Live()
    with sketch.mode, live:
        for tensor in sketch.weights:
            live.hold(tensor)
        before = live.now
        live.peak = before
        work(policy, sketch, config)
    return live.peak - before


def _trained(policy: PipelinePolicy, sketch: Sketch, config: TrialConfig) -> None:
    """Compute the gradient of one micro-batch."""
    rewards = sketch.rewards()
    arguments = dict(config.training.primal_parameters)
    estimator = registry.load(registry.PRIMAL_ESTIMATORS, config.training.primal)(**arguments)
    coefficients = Coefficients(kl=1.0, rewards=dict.fromkeys(rewards, 1.0))
    draw = policy.draw(config.training.batch_per_worker, 0)
    estimator(policy, rewards, coefficients, draw, Tensor.detach).loss.backward()


@torch.no_grad()
def _evaluated(policy: PipelinePolicy, sketch: Sketch, config: TrialConfig) -> None:
    """Sample and judge as many images as an evaluation does at a time."""
    images = policy.rollout(policy.fixed_draw(0, 0, config.evaluation.batch or policy.chunk)).samples
    for reward in sketch.rewards().values():
        reward(images, None)
