"""Contracts of the extension points, and a small exact problem to try an extension on.

A package of the user's own checks its classes with one call each, in its own tests:

    check_reward(MyReward(), samples)
    check_dual_optimizer(MyDualOptimizer)
    check_primal_estimator(MyEstimator())
    check_family("directory of a small pipeline", tmp_path)

Each raises ``AssertionError`` with the broken rule.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.config import (
    ALL_LINEAR,
    BaselineStatistics,
    ConstraintConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    LoraConfig,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    RewardConfig,
    RewardStatistics,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)
from trainers.duality.lagrangian import Coefficients
from trainers.duality.optimizers import DualOptimizer
from trainers.models.base import Conditional, Draw, Policy, Rollout
from trainers.models.mixture_policy import MixturePolicy
from trainers.primal.base import PrimalEstimate, PrimalEstimator
from trainers.rewards.analytic import Linear, Quadratic
from trainers.rewards.base import Reward, differentiable
from trainers.types import FloatArray


def gaussian_job(
    thresholds: Mapping[str, float],
    *,
    objective: str = "kl",
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    workers: int = 1,
    elastic: bool = False,
    **parts: dict[str, Any],
) -> TrialJob:
    """Return a trial on ``q = N(0, 1)`` with reward ``x``, whose optimum is known.

    Under ``E[x] >= b`` the least KL is ``b²/2`` and the multiplier ``b``; under ``KL <= B`` the largest ``E[x]`` is
    ``√(2 B)`` and the budget's multiplier ``1/√(2 B)``; with a weight ``w``, ``E[x] = w`` and the KL ``w²/2``.

    Args:
        thresholds: At least, for ``x``; at most, for ``kl``.
        objective: ``kl`` or ``x``.
        weights: Of a weighted trial.
        seed: Of the trial.
        workers: Of the trial.
        elastic: Whether fewer may do.
        parts: Fields that differ from the defaults, by section, such as ``training={"steps": 30}``.
    """
    classes = {
        "sampling": SamplingConfig,
        "training": TrainingConfig,
        "duals": DualConfig,
        "convergence": ConvergenceConfig,
        "evaluation": EvaluationConfig,
    }
    config = TrialConfig(
        model=ModelConfig(
            mixture=MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),)),
        ),
        rewards=(RewardConfig(name="x", kind="linear", parameters={"direction": (1.0,)}),),
        objective=ObjectiveConfig()
        if objective == "kl"
        else ObjectiveConfig(kind="reward", target=objective),
        constraints=tuple(
            ConstraintConfig(name=name, kind="kl", target="pretrained", bound=bound, unit="nats")
            if name == "kl"
            else ConstraintConfig(name=name, kind="reward", target=name, bound=bound, unit="absolute")
            for name, bound in thresholds.items()
        ),
        method="constrained" if weights is None else "weighted",
        weights=dict(weights or {}),
        seed=seed,
        workers=workers,
        elastic=elastic,
        **{name: cls(**parts.get(name, {})) for name, cls in classes.items()},
    )
    return TrialJob(
        trial_id="gaussian",
        config=config,
        baseline=BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None),
        thresholds=dict(thresholds),
    )


def check_reward(reward: Reward, samples: Tensor, prompts: Sequence[str] | None = None) -> None:
    """Check a reward on at least three different samples ``[batch, …]`` (images in [0, 1]) at which it has a slope.

    Higher is better: along its own gradient the score must rise. One that says ``differentiable = False`` has none.
    """
    assert isinstance(getattr(reward, "differentiable", True), bool), "differentiable is True or False"
    samples = samples.detach().clone().requires_grad_()
    scores = reward(samples, prompts)
    assert scores.shape == (len(samples),), (
        f"one score per sample, [{len(samples)}], got {tuple(scores.shape)}"
    )
    assert scores.dtype == torch.float32, f"scores are float32, got {scores.dtype}"
    assert torch.isfinite(scores).all(), f"scores are finite, got {scores}"

    if differentiable(reward):
        _check_slope(reward, samples, prompts, scores)
    else:
        assert not scores.requires_grad, "scores of a reward that is not differentiable have no gradient"
    with torch.no_grad():

        def again(picked: list[int]) -> Tensor:
            return reward(samples[picked], None if prompts is None else [prompts[i] for i in picked])

        for picked in (list(range(len(samples))), list(reversed(range(len(samples)))), [1], [2, 0]):
            torch.testing.assert_close(
                again(picked),
                scores[picked],
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text: f"a score depends on its sample only: {text}",
            )


def _check_slope(reward: Reward, samples: Tensor, prompts: Sequence[str] | None, scores: Tensor) -> None:
    """Check the gradients of scores ``[batch]``: along them scores rise."""
    (gradient,) = torch.autograd.grad(scores.sum(), samples)
    size = gradient.flatten(1).norm(dim=1)
    assert torch.isfinite(gradient).all(), "gradients are finite"
    assert (size > 0).all(), f"every score has a gradient to its sample, got norms {size}"
    with torch.no_grad():
        step = 1e-3 * gradient / size.amax()
        rise = reward(samples + step, prompts) - scores
        assert rise.sum() > 0, f"a small step along the gradient raises the scores, got {rise}"


def check_dual_optimizer(cls: type[DualOptimizer], config: DualConfig | None = None) -> None:
    """Check signs, projection, saved state and refusals of a dual optimiser."""
    config = config or DualConfig()
    rng = np.random.default_rng(0)

    for bad in (-1.0, np.nan, np.inf):
        try:
            cls(config, np.array([1.0, bad]))
        except ValueError:
            continue
        raise AssertionError(f"a first multiplier of {bad} is refused with ValueError")

    dual = cls(config, np.array([0.5, 0.0, 3.0]))
    for _ in range(200):
        violations = rng.normal(size=3) * 10.0 ** rng.uniform(-3, 3)
        dual.step(violations, float(rng.uniform()))
        for values in (dual.multipliers, dual.effective(violations), dual.effective(None)):
            assert values.shape == (3,), f"one multiplier per constraint, got {values}"
            assert values.dtype == np.float64, f"multipliers are float64, got {values.dtype}"
            assert (values >= 0).all(), f"multipliers are >= 0, got {values}"

    before, twin = json.dumps(dual.state()), cls(config, np.zeros(3))
    twin.load(json.loads(before))
    for violations in rng.normal(size=(20, 3)):
        dual.step(violations)
        twin.step(violations)
        assert dual.multipliers.tolist() == twin.multipliers.tolist(), "a saved state continues bit for bit"

    before = json.dumps(dual.state())
    for bad in (np.nan, np.inf, -np.inf):
        try:
            dual.step(np.array([0.1, bad, 0.1]))
        except FloatingPointError:
            assert json.dumps(dual.state()) == before, "a refused violation leaves the state as it was"
            continue
        raise AssertionError(f"a violation of {bad} is refused with FloatingPointError")

    dual = cls(config, np.ones(2))
    for _ in range(300):
        dual.step(np.array([0.5, -0.5]))
    assert dual.multipliers[0] > 1.0, "a violated constraint (g > 0) raises its multiplier"
    assert dual.multipliers[1] == 0.0, "a constraint with slack (g < 0) loses its multiplier"


def mixture_policy() -> MixturePolicy:
    """Return a policy on a two-mode mixture in one dimension, away from its reference, to try an estimator on."""
    policy = MixturePolicy.build(
        MixtureConfig(weights=(0.4, 0.6), means=((-1.0,), (1.0,)), covariances=(((0.3,),), ((0.5,),))),
        SamplingConfig(steps=8),
        width=16,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def check_primal_estimator(
    estimator: PrimalEstimator,
    policy: Policy | None = None,
    rewards: Mapping[str, Reward] | None = None,
    samples: int = 4096,
) -> None:
    """Check measurements, gradient and the sharing of a batch of an estimator.

    Args:
        estimator: To be checked.
        policy: To check it on, not yet optimal; by default a two-mode mixture.
        rewards: Of its samples.
        samples: Size of the batch from which the gradient is judged.
    """
    policy = policy or mixture_policy()
    rewards = rewards or {"first": Linear((1.0,)), "second": Quadratic((0.5,), 0.2)}
    coefficients = Coefficients(kl=1.5, rewards={name: 1.0 - 0.3 * i for i, name in enumerate(rewards)})
    parameters = list(policy.parameters().values())
    draw = policy.draw(samples, 0)

    def estimate(part: Draw, mean: Any) -> PrimalEstimate:
        return estimator(policy, rewards, coefficients, part, mean)

    def measured(part: Draw) -> dict[str, Tensor]:
        with torch.no_grad():
            drawn = policy.rollout(part)
            return {"path_kl": drawn.path_kl} | {
                n: r(drawn.samples, part.prompts) for n, r in rewards.items()
            }

    whole = estimate(draw, Tensor.detach)
    assert whole.loss.shape == (), f"the loss is a scalar, got {tuple(whole.loss.shape)}"
    expected = measured(draw)
    for name, values in ({"path_kl": whole.path_kl} | dict(whole.rewards)).items():
        assert not values.requires_grad, f"{name} is detached"
        assert values.shape == (samples,), f"{name} has one value per sample, got {tuple(values.shape)}"
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-4)

    gradient = torch.autograd.grad(whole.loss, parameters)
    assert all(torch.isfinite(g).all() for g in gradient), "the gradient is finite"
    assert not draw.noise.requires_grad, "the noise is not trained"

    # A reward without a weight, whose slope is not a number: it is measured, and moves nothing.
    few = policy.draw(8, 1)
    idle: dict[str, Any] = {
        "idle": lambda samples, _: (0.0 * samples.flatten(1).sum(dim=1)).abs().sqrt(),
        **rewards,
    }
    watched = estimator(policy, idle, coefficients, few, Tensor.detach)
    assert "idle" in watched.rewards, "every reward is measured, also one without a weight"
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(watched.loss, parameters)), (
        "a reward without a weight has no part in the gradient"
    )

    # Two workers that share a batch of 8: its mean is known only after each has measured its own half.
    halves = [policy.draw(8, 1, first=first, last=first + 4) for first in (0, 4)]
    small = estimate(policy.draw(8, 1), Tensor.detach).loss
    collected: list[list[Tensor]] = []
    for half in halves:
        mine: list[Tensor] = []
        estimate(half, lambda value, mine=mine: mine.append(value.detach()) or value.detach())
        collected.append(mine)
    shared = [(one + other) / 2 for one, other in zip(*collected, strict=True)]
    parts = []
    for half in halves:
        answers = iter(shared)
        loss = estimate(half, lambda _, answers=answers: next(answers)).loss
        parts.append(torch.autograd.grad(loss, parameters))
    for one, other, both in zip(*parts, torch.autograd.grad(small, parameters), strict=True):
        torch.testing.assert_close(
            (one + other) / 2,
            both,
            rtol=1e-3,
            atol=1e-4,
            msg=lambda text: f"workers that share a batch find the gradient of the whole: {text}",
        )

    def value() -> float:
        found = {name: float(column.double().mean()) for name, column in measured(draw).items()}
        rest = sum(weight * found[name] for name, weight in coefficients.rewards.items())
        return float(coefficients.kl * found["path_kl"] - rest)

    before = value()
    size = torch.sqrt(torch.stack([g.square().sum() for g in gradient]).sum())
    own = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, slope in zip(parameters, gradient, strict=True):
            parameter.sub_(0.05 * slope / size)
        after = value()
        for parameter, values in zip(parameters, own, strict=True):
            parameter.copy_(values)  # the policy is the caller's
    assert after < before, "a small step against the gradient lowers the Lagrangian"


def check_family(
    directory: str | Path,
    scratch: Path,
    *,
    prompts: Sequence[str] = ("a cat", "a dog"),
    model: Mapping[str, Any] | None = None,
    guidances: Sequence[Mapping[str, Any]] = ({}, {"guidance": 3.0}),
) -> None:
    """Check the family of a small pipeline in a directory: its chain, guidance, conditions, decoder and adapters.

    A chain whose η goes to 0 comes to what the pipeline itself makes of the same noise on the same levels, without
    guidance and with each, and with an adapter that plain diffusers has loaded: on the layers of the default and, with
    the last guidance, on all linear ones. One comparison finds wrong signs, levels, packing, conditions and guidance at
    once. An adapter's files are read back as they were. In half precision a fresh adapter has no KL, and another the
    one that it has in float32. One with gates keeps ``check_conditional``.

    Args:
        directory: Of the pipeline, in diffusers format; random weights will do.
        scratch: A directory in which an adapter can be written.
        prompts: What is asked for.
        model: Further keys of the section, such as ``height``.
        guidances: Keys of ``sampling`` that say how prompts guide.
    """
    # Here, because diffusers takes seconds to import and the other contracts need none of it.
    from trainers.models.layers.trained_lora import Adapter  # noqa: PLC0415
    from trainers.models.pipeline import load_parts  # noqa: PLC0415
    from trainers.models.pipeline_policy import PipelinePolicy  # noqa: PLC0415

    config = ModelConfig(pretrained=str(directory), **(model or {}))
    asked = PromptsConfig(train=tuple(prompts), evaluate=tuple(prompts))

    def policy_of(
        sampling: SamplingConfig,
        precision: str = "fp32",
        *,
        paired: bool = False,
        targets: tuple[str, ...] = (),
        acting: tuple[str, ...] = (),
    ) -> PipelinePolicy:
        parts = load_parts(config, precision)
        usual = parts.family.form.targets or LoraConfig().targets
        adapter = Adapter(parts.network, LoraConfig(rank=2, targets=targets or usual), rewards=acting)
        return PipelinePolicy(parts, adapter, asked, sampling, paired=paired)

    usual: tuple[str, ...] = ()
    for guidance, targets in (*((each, usual) for each in guidances[:-1]), (guidances[-1], (ALL_LINEAR,))):
        sampling = SamplingConfig(steps=5, rest=1, eta=1e-6, **guidance)
        policy = policy_of(sampling, targets=targets)
        parts, draw = policy.parts, policy.fixed_draw(0, 0, len(prompts))
        plain = parts.family.load(str(directory))
        plain.set_progress_bar_config(disable=True)

        def own(
            policy: PipelinePolicy = policy,
            plain: Any = plain,
            sampling: SamplingConfig = sampling,
            **options: Any,
        ) -> Tensor:
            parts, draw = policy.parts, policy.fixed_draw(0, 0, len(prompts))
            found: Tensor = parts.family.own(
                plain, list(draw.prompts or ()), sampling, draw.noise[0], parts.asked(sampling), **options
            )
            return found

        with torch.no_grad():
            drawn = policy.rollout(draw, reference=True)
            pretrained = drawn.final
            apart = float((pretrained - own()).abs().max())
            assert apart < _GOLDEN, f"with {guidance} the chain is {apart:.1e} from the pipeline's own"
            apart = float((drawn.samples - own(output_type="pt")).abs().max())
            assert apart < _GOLDEN, f"with {guidance} images are {apart:.1e} from the pipeline's own"
            _shake(policy)
            files = policy.adapter()
            for name, content in files.items():
                (scratch / name).write_bytes(content)
            policy.load_adapter(files)
            plain.load_lora_weights(str(scratch))
            tuned = policy.rollout(draw).final
            apart = float((tuned - own(callback_on_step_end=_resting(sampling))).abs().max())
        assert (tuned - pretrained).abs().max() > _SEEN, "an adapter changes what is drawn"
        assert apart < _GOLDEN, f"with {guidance} what diffusers draws with the adapter is {apart:.1e} away"

    sampling = SamplingConfig(steps=5, rest=1, **guidances[-1])
    half = policy_of(sampling, "bf16")
    fresh = half.rollout(half.fixed_draw(0, 0, len(prompts))).path_kl
    assert not fresh.any(), f"a fresh adapter has no KL in half precision, got {fresh.tolist()}"
    kls = []
    for paired in (False, True):
        policy = policy_of(sampling, paired=paired)
        with torch.no_grad():
            _shake(policy)
            kls.append(policy.rollout(policy.fixed_draw(0, 0, len(prompts))).path_kl)
    torch.testing.assert_close(
        kls[1], kls[0], rtol=_PAIRED, atol=0, msg=lambda text: f"pairs have the KL of rows: {text}"
    )
    gated = policy_of(sampling, acting=("one", "other"))
    with torch.no_grad():
        _shake(gated)
    check_conditional(
        gated, policy_of(sampling), [np.array([1.0, 0.0]), np.array([0.5, 2.0])], samples=len(prompts)
    )


def _shake(policy: Policy) -> None:
    """Give an adapter's matrices values that tell, the same for all that are alike."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters().values():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def _resting(sampling: SamplingConfig) -> Any:
    """Return a callback of diffusers' pipelines that switches the adapter off for the last steps."""

    def rest(pipeline: Any, step: int, timestep: Any, tensors: Any) -> Any:
        del timestep
        if step == sampling.steps - sampling.rest - 1:
            pipeline.disable_lora()
        return tensors

    return rest


_GOLDEN = 1e-4
"""Greatest distance of latents that are the same but for rounding."""
_SEEN = 1e-2
"""Least distance of latents that are not."""
_PAIRED = 1e-3
"""Greatest share by which KLs differ that are the same but for rounding."""


@torch.no_grad()
def check_conditional(
    policy: Conditional, plain: Policy, tilts: Sequence[FloatArray], *, samples: int = 8
) -> None:
    """Check a policy whose residual is a function of the tilt, which was trained.

    At a tilt of 0 it is the pretrained model; a batch may have another tilt for each sample; and at one tilt it folds
    into the adapter of a policy without tilts, which samples the same.

    Args:
        policy: With a residual that is not 0.
        plain: A policy of the same model for one optimum, of any parameters.
        tilts: Two or more of the ``[R]`` that it was trained for, none of them 0.
        samples: That are drawn, at least as many.
    """

    def sampled(one: Policy) -> Rollout:
        return one.rollout(one.fixed_draw(3, 0, samples))

    reference = plain.rollout(plain.fixed_draw(3, 0, samples), reference=True)
    still = sampled(policy.at(np.zeros_like(tilts[0])))
    torch.testing.assert_close(
        still.samples, reference.samples, msg=lambda t: f"a tilt of 0 is no residual: {t}"
    )
    assert float(still.path_kl.max()) == 0.0, "a tilt of 0 costs nothing"
    alone = [sampled(policy.at(tilt)) for tilt in tilts]
    assert all(float(one.path_kl.min()) > 0.0 for one in alone), "the residual was trained"
    draw = plain.fixed_draw(3, 0, samples)
    chosen = np.arange(samples) % len(tilts)
    asked = torch.as_tensor(np.stack(tilts)[chosen], dtype=draw.noise.dtype, device=draw.noise.device)
    mixed = policy.rollout(replace(draw, tilt=asked))
    for place, one in enumerate(alone):
        rows = torch.from_numpy(np.flatnonzero(chosen == place))
        torch.testing.assert_close(
            mixed.samples[rows],
            one.samples[rows],
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text: f"a sample depends on its own tilt only: {text}",
        )
    for tilt, one in zip(tilts, alone, strict=True):
        plain.load_adapter(policy.folded(tilt))
        again = sampled(plain)
        for name in ("samples", "path_kl"):
            torch.testing.assert_close(
                getattr(again, name),
                getattr(one, name),
                rtol=1e-3,
                atol=1e-4,
                msg=lambda text: f"it folds exactly: {text}",
            )
