"""The primal estimators against finite differences, hand-written gradients, and the exact optimum of a Gaussian."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from support.tiers import exhaustive, further
from torch import Tensor, nn

from trainers.config import MixtureConfig
from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw
from trainers.models.mixture import Conditioning, ControlNetwork, MixtureModel, antithetic_noise
from trainers.models.mixture_policy import MixturePolicy
from trainers.primal.base import PrimalEstimate, PrimalEstimator
from trainers.primal.clipped_backprop import ClippedBackprop
from trainers.primal.log_variance import LogVariance
from trainers.primal.low_variance import LowVariance
from trainers.primal.reused_rollouts import ReusedRollouts
from trainers.primal.reward_backprop import RewardBackprop
from trainers.primal.score_and_path import ScoreAndPath
from trainers.primal.truncated_backprop import TruncatedBackprop
from trainers.rewards.analytic import Linear, Quadratic

MODEL = MixtureModel(
    MixtureConfig(weights=(0.4, 0.6), means=((-1.0,), (1.0,)), covariances=(((0.3,),), ((0.5,),))),
    steps=5,
    eta=1.0,
    dtype=torch.float64,
)
REWARDS = {"linear": Linear((1.0,)), "quadratic": Quadratic((0.5,), 0.3)}
COEFFICIENTS = Coefficients(kl=1.6, rewards={"linear": 0.9, "quadratic": 0.5})
CHUNKS, CHUNK = 24, 8192


def trained_a_little() -> MixturePolicy:
    policy = MixturePolicy(MODEL, ControlNetwork(MODEL, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return policy


def lagrangian(policy: MixturePolicy, draw: Draw) -> float:
    with torch.no_grad():
        drawn = policy.rollout(draw)
    value = COEFFICIENTS.kl * drawn.path_kl.double().mean()
    for name, weight in COEFFICIENTS.rewards.items():
        value -= weight * REWARDS[name](drawn.samples).mean()
    return float(value)


def slopes(policy: MixturePolicy, loss: Tensor) -> np.ndarray:
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters().values()))]
    ).numpy()


def gradient(estimator: PrimalEstimator, policy: MixturePolicy, draw: Draw) -> np.ndarray:
    return slopes(policy, estimator(policy, REWARDS, COEFFICIENTS, draw, Tensor.detach).loss)


def finite_difference(policy: MixturePolicy, draw: Draw, step: float = 1e-2) -> np.ndarray:
    """Central differences of the Lagrangian on common random numbers, parameter by parameter."""
    found = []
    for parameter in policy.parameters().values():
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            centre, ends = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = centre + sign * step
                ends.append(lagrangian(policy, draw))
            flat[i] = centre
            found.append((ends[0] - ends[1]) / (2 * step))
    return np.array(found)


def test_backpropagation_is_the_finite_difference_on_the_same_noise() -> None:
    policy = trained_a_little()
    draw = policy.draw(1024, 0)
    exact = gradient(RewardBackprop(), policy, draw)
    assert np.abs(exact).max() > 0.3
    np.testing.assert_allclose(exact, finite_difference(policy, draw), atol=2e-4)


def test_log_variance_is_the_same_gradient_up_to_the_weight_of_the_kl() -> None:
    """Different estimators on different noise: they agree within the standard error of their means over chunks."""
    policy = trained_a_little()

    def chunks(estimator: PrimalEstimator, first: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.stack([gradient(estimator, policy, policy.draw(CHUNK, first + c)) for c in range(CHUNKS)])
        return rows.mean(axis=0), rows.std(axis=0, ddof=1) / np.sqrt(CHUNKS)

    backprop, backprop_error = chunks(RewardBackprop(), 0)
    log_variance, error = chunks(LogVariance(), 1000)
    difference = COEFFICIENTS.kl * log_variance - backprop
    scores = difference / np.hypot(COEFFICIENTS.kl * error, backprop_error)
    assert np.abs(scores).max() < 4.5
    assert np.sqrt(np.mean(scores**2)) < 1.8  # and not all of them at the edge
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(backprop)


class Gappy(Linear):
    """A reward with a slope of which a third of the scores cannot be had."""

    missing = 0.5

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        scores = super().__call__(samples, prompts)
        gone = torch.rand(len(scores), generator=torch.Generator().manual_seed(len(scores))) < 1 / 3
        return scores.masked_fill(gone, torch.nan)


@pytest.mark.parametrize(
    "estimator",
    [RewardBackprop(), ClippedBackprop(100.0), TruncatedBackprop(2), LowVariance(), ScoreAndPath()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_scores_with_a_slope_that_are_there_weigh_as_all_would(estimator: PrimalEstimator) -> None:
    policy = trained_a_little()
    draw, coefficients = policy.draw(16384, 0), Coefficients(kl=0.1, rewards={"x": 1.0})

    def found(reward: Linear) -> np.ndarray:
        return slopes(policy, estimator(policy, {"x": reward}, coefficients, draw, Tensor.detach).loss)

    whole = found(Linear((1.0,)))
    assert np.linalg.norm(found(Gappy((1.0,))) - whole) < 0.05 * np.linalg.norm(whole)


# Truncated chains, written out by hand: an earlier state is a number.


def visited(policy: MixturePolicy, draw: Draw) -> Tensor:
    """Return the states at the start of every step, then the final one, ``[K + 1, batch, 1]``."""
    states = [draw.noise[0]]
    with torch.no_grad():
        for step in range(MODEL.steps):
            states.append(one_step(policy, step, states[-1], draw.noise[step + 1])[0])
    return torch.stack(states)


def one_step(policy: MixturePolicy, step: int, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next state and the step's KL, ``[batch]``."""
    clean, mean, root = MODEL.step(step, state)
    control = policy.network(torch.cat([state, clean], dim=1), policy.network.conditioning(), step)
    return mean + root[:, :, 0] * (control + noise), 0.5 * control.square().sum(dim=1)


def direct_kl(policy: MixturePolicy, draw: Draw) -> Tensor:
    """Return the mean path-wise KL whose states are numbers: every step's direct gradient, and no other."""
    states = visited(policy, draw)
    return sum(one_step(policy, k, states[k], draw.noise[k + 1])[1].mean() for k in range(MODEL.steps))


def weighted(scores: Mapping[str, Tensor]) -> Tensor:
    return sum(weight * scores[name].mean() for name, weight in COEFFICIENTS.rewards.items())


def scored(state: Tensor) -> dict[str, Tensor]:
    return {name: reward(MODEL.decode(state)) for name, reward in REWARDS.items()}


@pytest.mark.parametrize("steps", [5, 9])
def test_truncation_at_the_first_step_or_before_drops_nothing(steps: int) -> None:
    policy = trained_a_little()
    draw = policy.draw(256, 0)
    whole = gradient(RewardBackprop(), policy, draw)
    np.testing.assert_allclose(gradient(TruncatedBackprop(steps), policy, draw), whole, rtol=1e-9, atol=1e-12)


def test_one_step_keeps_its_own_rewards_and_every_steps_direct_kl() -> None:
    policy = trained_a_little()
    draw = policy.draw(256, 0)
    end, _ = one_step(policy, 4, visited(policy, draw)[4], draw.noise[5])
    by_hand = slopes(policy, COEFFICIENTS.kl * direct_kl(policy, draw) - weighted(scored(end)))
    found = gradient(TruncatedBackprop(1), policy, draw)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(found - gradient(RewardBackprop(), policy, draw)) > 0.1 * np.linalg.norm(found)


def test_a_window_of_some_steps_lies_between() -> None:
    """Within the window a step moves rewards and later KLs; before it only its own KL."""
    policy = trained_a_little()
    draw = policy.draw(256, 0)
    states = visited(policy, draw)
    path_kl, state = torch.zeros(256, dtype=torch.float64), states[3]
    for step in range(3):
        path_kl = path_kl + one_step(policy, step, states[step], draw.noise[step + 1])[1]
    for step in (3, 4):
        state, kl = one_step(policy, step, state, draw.noise[step + 1])
        path_kl = path_kl + kl
    by_hand = slopes(policy, COEFFICIENTS.kl * path_kl.mean() - weighted(scored(state)))
    np.testing.assert_allclose(gradient(TruncatedBackprop(2), policy, draw), by_hand, rtol=1e-5, atol=1e-6)


def test_a_random_window_is_drawn_from_the_seed_of_the_batch() -> None:
    """Uniform on 1 to K over seeds; workers and halves of one batch truncate alike."""
    policy, fixed = trained_a_little(), [TruncatedBackprop(k) for k in range(1, 5)]
    drawn = TruncatedBackprop(4, random=True)

    def window(part: Draw) -> int:
        found = gradient(drawn, policy, part)
        (k,) = [k for k, each in enumerate(fixed, 1) if np.array_equal(gradient(each, policy, part), found)]
        return k

    windows = []
    for seed in range(80):
        whole = policy.draw(4, seed)
        windows.append(window(whole))
        if seed < 10:
            assert window(whole.part(0, 2)) == window(whole.part(3, 4)) == windows[-1]
            assert window(policy.draw(4, seed, first=2, last=4)) == windows[-1]
    counts = np.bincount(windows, minlength=5)[1:]
    assert counts.sum() == 80
    assert ((counts - 20) ** 2 / 20).sum() < 16.3  # χ² of three degrees of freedom, one in a thousand


# Several noises of the last step.


@pytest.mark.parametrize("copies", [1, 3])
def test_low_variance_averages_the_last_step_over_fresh_noises(copies: int) -> None:
    """Written out: a finished sample as a number, noised again, one step, its rewards averaged over copies."""
    policy = trained_a_little()
    draw = policy.draw(256, 3)
    final, levels = visited(policy, draw)[5], MODEL.table.levels
    rewards = torch.zeros((), dtype=torch.float64)
    for copy in range(copies):
        noise = antithetic_noise(MODEL, 256, 3 ^ (0x9E3779B1 + copy))
        state = levels.alpha[4] * final + levels.sigma[4] * noise[0]
        rewards = rewards + weighted(scored(one_step(policy, 4, state, noise[5])[0])) / copies
    by_hand = slopes(policy, COEFFICIENTS.kl * direct_kl(policy, draw) - rewards)
    np.testing.assert_allclose(gradient(LowVariance(copies), policy, draw), by_hand, rtol=1e-5, atol=1e-6)
    # What is measured is what was sampled, not the copies.
    estimate = LowVariance(copies)(policy, REWARDS, COEFFICIENTS, draw, Tensor.detach)
    for name, column in scored(final).items():
        torch.testing.assert_close(estimate.rewards[name], column)


def test_more_copies_vary_less() -> None:
    """Of the gradient's variance the share that the fresh noise makes falls as one over the copies."""
    policy = trained_a_little()
    draw = policy.draw(64, 0)

    def spread(copies: int) -> float:
        estimator = LowVariance(copies)  # a seed of the copies' noise each, on the same samples
        found = np.stack([gradient(estimator, policy, replace(draw, seed=seed)) for seed in range(200)])
        return float(found.var(axis=0, ddof=1).sum())

    assert spread(1) / spread(4) == pytest.approx(4.0, rel=0.3)


# Gradients at the states, clipped sample by sample.


def clipped_by_hand(policy: MixturePolicy, draw: Draw, limit: float) -> tuple[np.ndarray, float]:
    """Go back step by step from states that are numbers; returns the gradient, and the share that was clipped."""
    states, parameters = visited(policy, draw), list(policy.parameters().values())
    end = states[-1].clone().requires_grad_()
    samples = len(end)
    (adjoint,) = torch.autograd.grad(
        -weighted(scored(end)) * samples, end
    )  # of every sample's own Lagrangian
    found, clips = [torch.zeros_like(p) for p in parameters], []
    for step in reversed(range(MODEL.steps)):
        state = states[step].clone().requires_grad_()
        _, _, root = MODEL.step(step, state.detach())
        length = (root[:, 0] * adjoint).norm(dim=1, keepdim=True)
        clips.append(length > limit * COEFFICIENTS.kl)
        adjoint = adjoint * (limit * COEFFICIENTS.kl / length).clamp(max=1.0)
        after, kl = one_step(policy, step, state, draw.noise[step + 1])
        through = (after * adjoint).sum() + COEFFICIENTS.kl * kl.sum()
        *slopes_here, adjoint = torch.autograd.grad(through, [*parameters, state])
        found = [one + other / samples for one, other in zip(found, slopes_here, strict=True)]
    return torch.cat([g.flatten() for g in found]).numpy(), float(torch.cat(clips).double().mean())


def test_clipping_scales_down_what_a_sample_asks_of_a_step_before_it_goes_on() -> None:
    policy = trained_a_little()
    draw = policy.draw(256, 0)
    by_hand, share = clipped_by_hand(policy, draw, 0.4)
    assert 0.1 < share < 0.9
    found = gradient(ClippedBackprop(0.4), policy, draw)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(found - gradient(RewardBackprop(), policy, draw)) > 0.02 * np.linalg.norm(found)


def test_a_limit_that_is_never_met_drops_nothing() -> None:
    policy = trained_a_little()
    draw = policy.draw(256, 0)
    whole = gradient(RewardBackprop(), policy, draw)
    np.testing.assert_allclose(gradient(ClippedBackprop(1e6), policy, draw), whole, rtol=1e-9, atol=1e-12)


def test_a_limit_is_of_a_sample_whatever_the_loss_is_multiplied_by() -> None:
    """A share of a step's micro-batches and a float16 loss scale multiply the loss before it is differentiated."""
    policy = trained_a_little()
    draw = policy.draw(64, 0)
    loss = ClippedBackprop(0.4)(policy, REWARDS, COEFFICIENTS, draw, Tensor.detach).loss
    np.testing.assert_allclose(
        slopes(policy, loss * 4096.0) / 4096.0, gradient(ClippedBackprop(0.4), policy, draw), rtol=1e-9
    )


@pytest.mark.parametrize(
    "estimator", [TruncatedBackprop(3, random=True), LowVariance(2), ClippedBackprop(0.4)]
)
def test_the_halves_of_a_batch_find_the_gradient_of_the_whole(estimator: PrimalEstimator) -> None:
    policy = trained_a_little()
    draw = policy.draw(24, 11)
    halves = [gradient(estimator, policy, draw.part(first, first + 12)) for first in (0, 12)]
    np.testing.assert_allclose(
        np.mean(halves, axis=0), gradient(estimator, policy, draw), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: TruncatedBackprop(0), "steps must be at least 1, got 0"),
        (lambda: LowVariance(0), "copies must be at least 1, got 0"),
        (lambda: ClippedBackprop(0.0), "limit must be positive, got 0"),
    ],
)
def test_a_parameter_that_is_not_positive_is_refused(build: Callable[[], PrimalEstimator], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        build()


# The exact optimum of a Gaussian.


class Controls(nn.Module):
    """Stands in for a network: one constant control per step."""

    def __init__(self, values: np.ndarray) -> None:
        """Hold ``[K]`` controls."""
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values)[:, None, None])

    def conditioning(self, tilt: Tensor | None = None) -> Conditioning:
        del tilt  # one optimum alone
        return Conditioning(enter=self.values, hidden=self.values)

    def forward(self, inputs: Tensor, conditioning: Conditioning, step: int | None = None) -> Tensor:
        controls = conditioning.enter if step is None else conditioning.enter[step]
        return controls + torch.zeros_like(inputs[..., :1])


@pytest.fixture
def optimum() -> Callable[[float], MixturePolicy]:
    """The optimal controls of ``q = N(0, 1)`` under the tilt ``exp(λ x)``.

    The chain is linear with slopes ``s_k``, so the value of a state is linear too, and
    ``u_k = σ_k λ Π_{j > k} s_j``.
    """

    def build(tilt: float) -> MixturePolicy:
        gaussian = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
        model = MixtureModel(gaussian, steps=12, eta=1.0, dtype=torch.float64)
        slopes = model.table.from_state + model.table.from_clean * model.table.levels.alpha[:-1]
        later = np.append(np.cumprod(slopes[::-1])[::-1][1:], 1.0)
        origin = torch.zeros(1, 1, dtype=torch.float64)
        sigmas = np.array([float(model.step(k, origin)[2]) for k in range(model.steps)])
        return MixturePolicy(model, Controls(sigmas * tilt * later))

    return build


@pytest.mark.parametrize("tilt", [0.5, 1.5])
def test_log_variance_vanishes_at_the_exact_optimum(
    optimum: Callable[[float], MixturePolicy], tilt: float
) -> None:
    policy = optimum(tilt)
    draw = policy.draw(4096, 0)
    coefficients = Coefficients(kl=1.0, rewards={"x": tilt})
    estimate = LogVariance()(policy, {"x": Linear((1.0,))}, coefficients, draw, Tensor.detach)
    # What is left is the first state's share, √ᾱ_T of x_0, which no control can move.
    forgotten = 0.5 * tilt**2 * policy.model.table.levels.alpha[0] ** 2
    assert float(estimate.loss.detach()) == pytest.approx(forgotten, rel=0.1)
    assert forgotten < 2e-5
    (slope,) = torch.autograd.grad(estimate.loss, list(policy.parameters().values()))
    assert float(slope.abs().max()) < 1e-3 * tilt
    # There the policy is N(λ, 1), at a KL of λ²/2, and a wrong tilt does not vanish.
    assert float(estimate.rewards["x"].mean()) == pytest.approx(tilt, rel=0.02)
    assert float(estimate.path_kl.mean()) == pytest.approx(tilt**2 / 2, rel=0.02)
    wrong = Coefficients(kl=1.0, rewards={"x": tilt + 0.2})
    off = LogVariance()(policy, {"x": Linear((1.0,))}, wrong, draw, Tensor.detach)
    assert float(off.loss.detach()) == pytest.approx(0.5 * 0.2**2, rel=0.1)


@pytest.mark.parametrize("estimator", [RewardBackprop(), TruncatedBackprop(12)])
def test_backpropagation_vanishes_at_the_exact_optimum(
    optimum: Callable[[float], MixturePolicy], estimator: PrimalEstimator
) -> None:
    policy = optimum(1.0)
    draw = policy.draw(256, 0)
    coefficients = Coefficients(kl=1.0, rewards={"x": 1.0})
    estimate = estimator(policy, {"x": Linear((1.0,))}, coefficients, draw, Tensor.detach)
    (slope,) = torch.autograd.grad(estimate.loss, list(policy.parameters().values()))
    assert float(slope.abs().max()) < 1e-5


# Rewards of weight 0 are measured, and nothing else.

EVERY = {
    "log_variance": LogVariance(),
    "reward_backprop": RewardBackprop(),
    "truncated_backprop": TruncatedBackprop(2),
    "low_variance": LowVariance(2),
}


class Sick:
    """A reward whose slope is not a number, and that sees whether anyone asks for it."""

    def __init__(self) -> None:
        """Begin unasked."""
        self.asked: list[bool] = []

    def __call__(self, samples: Tensor, prompts: object = None) -> Tensor:
        del prompts
        self.asked.append(samples.requires_grad or torch.is_grad_enabled())
        return 2.0 + (0.0 * samples[:, 0]).sqrt()  # d√x/dx at 0 times 0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("weights", [{}, {"sick": 0.0}, {"sick": -0.0}])
def test_a_reward_of_weight_zero_is_measured_and_has_no_part_in_the_gradient(
    name: str, weights: dict[str, float]
) -> None:
    policy, sick = trained_a_little(), Sick()
    draw = policy.draw(64, 0)
    coefficients = Coefficients(kl=1.6, rewards={**weights, **COEFFICIENTS.rewards})
    estimate = EVERY[name](policy, {"sick": sick, **REWARDS}, coefficients, draw, Tensor.detach)
    assert list(estimate.rewards) == ["sick", *REWARDS]
    assert estimate.rewards["sick"].tolist() == [2.0] * 64
    assert sick.asked
    assert not any(sick.asked)  # nor does a graph of it take memory
    np.testing.assert_array_equal(slopes(policy, estimate.loss), gradient(EVERY[name], policy, draw))


@pytest.mark.parametrize("name", EVERY)
def test_a_kl_of_weight_zero_has_no_part_in_the_gradient_either(name: str) -> None:
    """A budget that does not bind: only the reward of the objective acts."""
    policy, draw = trained_a_little(), trained_a_little().draw(64, 0)
    bare = Coefficients(kl=0.0, rewards={"linear": 1.0})
    loss = EVERY[name](policy, REWARDS, bare, draw, Tensor.detach).loss
    assert np.isfinite(slopes(policy, loss)).all()


def test_what_cannot_be_scored_does_not_poison_the_log_variance_at_weight_zero() -> None:
    policy = trained_a_little()
    draw = policy.draw(64, 0)
    blind = {"blind": lambda samples, _: samples[:, 0] * torch.nan, **REWARDS}
    coefficients = Coefficients(kl=1.6, rewards={"blind": 0.0, **COEFFICIENTS.rewards})
    loss = LogVariance()(policy, blind, coefficients, draw, Tensor.detach).loss
    np.testing.assert_array_equal(slopes(policy, loss), gradient(LogVariance(), policy, draw))


class Opaque:
    """A reward of which nobody knows the slope."""

    differentiable = False

    def __init__(self, reward: Callable[..., Tensor]) -> None:
        """Take one that has it."""
        self._reward = reward

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        return self._reward(samples, prompts)


@cache
def backpropagated() -> np.ndarray:
    """Gradients of all rewards at ``trained_a_little()``, one of each chunk."""
    policy = trained_a_little()
    return np.array([gradient(RewardBackprop(), policy, policy.draw(CHUNK, seed)) for seed in range(CHUNKS)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opaque", "per_prompt", "pairs"),
    [
        (("quadratic",), 1, False),
        (("linear", "quadratic"), 2, False),
        *further(
            (("quadratic",), 2, False),
            (("linear", "quadratic"), 1, False),
            (("quadratic",), 1, True),
            (("linear", "quadratic"), 1, True),
        ),
    ],
)
def test_score_and_path_is_unbiased(opaque: tuple[str, ...], per_prompt: int, pairs: bool) -> None:
    """800 replicates of 4 samples against backpropagation of all rewards through 200,000.

    z of every parameter, and of the sum along the gradient, where a baseline that holds the sample itself takes a
    quarter of the score part away, which is a z of 9 and more.
    """
    policy = trained_a_little()
    exact = backpropagated()
    rewards = {name: Opaque(reward) if name in opaque else reward for name, reward in REWARDS.items()}
    policy.paired_samples = pairs
    estimator, found, generator = ScoreAndPath(), [], torch.Generator().manual_seed(1)
    for seed in range(800):
        draw = policy.draw(4, 10_000 + seed)
        if not pairs:
            noise = torch.randn(draw.noise.shape, generator=generator, dtype=draw.noise.dtype)
            draw = replace(draw, noise=noise, prompts=tuple(str(place // per_prompt) for place in range(4)))
        found.append(slopes(policy, estimator(policy, rewards, COEFFICIENTS, draw, Tensor.detach).loss))
    must_have_the_mean_of(np.array(found), exact)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "factor"),
    [
        pytest.param(RewardBackprop(), 1.0, marks=pytest.mark.exhaustive),
        (LogVariance(), COEFFICIENTS.kl * 4 / 3),
    ],
)
def test_estimators_without_a_parameter_are_unbiased(estimator: PrimalEstimator, factor: float) -> None:
    """2,000 replicates of 4 samples; the mean of the log variance holds the sample itself, which takes 1/4 away."""
    policy, found, generator = trained_a_little(), [], torch.Generator().manual_seed(1)
    for seed in range(2000):
        draw = policy.draw(4, 10_000 + seed)
        noise = torch.randn(draw.noise.shape, generator=generator, dtype=draw.noise.dtype)
        found.append(factor * gradient(estimator, policy, replace(draw, noise=noise)))
    must_have_the_mean_of(np.array(found), backpropagated())


def must_have_the_mean_of(drawn: np.ndarray, exact: np.ndarray) -> None:
    """Z of every parameter, and of the sum along the gradient, of replicates ``[n, p]`` against chunks ``[m, p]``."""
    along = exact.mean(axis=0) / np.linalg.norm(exact.mean(axis=0))
    for one, other, most in ((drawn, exact, 4.2), (drawn @ along[:, None], exact @ along[:, None], 3.3)):
        error = np.hypot(
            one.std(axis=0, ddof=1) / np.sqrt(len(one)), other.std(axis=0, ddof=1) / np.sqrt(len(other))
        )
        moved = error > 1e-9
        z = (one.mean(axis=0) - other.mean(axis=0))[moved] / error[moved]
        assert np.abs(z).max() < most


# Stored rollouts.


def moved(policy: MixturePolicy, by: float) -> None:
    """Move every parameter a little, always the same way."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [True, *exhaustive(False)])
def test_rollouts_of_an_earlier_policy_are_unbiased_for_the_one_that_is_trained(pairs: bool) -> None:
    """2,000 replicates of 6 samples that one policy drew against backpropagation through 200,000 of another.

    Gradient, KL and rewards, of which those of the policy that drew them differ by far more.
    """
    policy = trained_a_little()
    start = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    moved(policy, 0.05)
    end = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    rewards = {"linear": REWARDS["linear"], "quadratic": Opaque(REWARDS["quadratic"])}

    def put(values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in policy.parameters().items():
                parameter.copy_(values[name])

    def row(estimate: PrimalEstimate) -> np.ndarray:
        means = [estimate.path_kl.mean(), *(score.mean() for score in estimate.rewards.values())]
        return np.append(slopes(policy, estimate.loss), [float(mean.detach()) for mean in means])

    def exactly() -> np.ndarray:
        draws = [policy.draw(CHUNK, seed) for seed in range(CHUNKS)]
        return np.array(
            [row(RewardBackprop()(policy, REWARDS, COEFFICIENTS, draw, Tensor.detach)) for draw in draws]
        )

    exact = exactly()
    put(start)
    before = exactly().mean(axis=0)
    policy.paired_samples = pairs
    found, generator = [], torch.Generator().manual_seed(1)
    for seed in range(2000):
        estimator = ReusedRollouts(radius=1.0)
        first, second = policy.draw(6, 10_000 + seed), policy.draw(6, 50_000 + seed)
        if not pairs:
            noise = torch.randn(first.noise.shape, generator=generator, dtype=first.noise.dtype)
            first = replace(first, noise=noise)
        put(start)
        estimator(policy, rewards, COEFFICIENTS, first, Tensor.detach)
        put(end)
        estimate = estimator(policy, rewards, COEFFICIENTS, second, Tensor.detach)
        assert estimate.draw is first
        found.append(row(estimate))
    drawn = np.array(found)
    gradient_of = exact.mean(axis=0)[:-3]
    along = np.append(gradient_of / np.linalg.norm(gradient_of), [0.0] * 3)
    for one, other, most in ((drawn, exact, 4.2), (drawn @ along[:, None], exact @ along[:, None], 3.3)):
        error = np.hypot(
            one.std(axis=0, ddof=1) / np.sqrt(len(one)), other.std(axis=0, ddof=1) / np.sqrt(len(other))
        )
        z = (one.mean(axis=0) - other.mean(axis=0)) / error
        assert np.abs(z).max() < most
    apart = np.abs(before - exact.mean(axis=0)) / (drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn)))
    assert np.sort(apart)[-3:].min() > 8, "policies so near would be told apart by nothing here"


def test_rollouts_serve_so_many_steps_within_so_many_nats() -> None:
    policy, estimator = trained_a_little(), ReusedRollouts(steps=3, radius=0.02)
    served: list[int] = []

    def step(seed: int) -> PrimalEstimate:
        estimate = estimator(policy, REWARDS, COEFFICIENTS, policy.draw(64, seed), Tensor.detach)
        assert estimate.draw is not None
        served.append(estimate.draw.seed)
        return estimate

    fresh = step(1)
    np.testing.assert_allclose(
        slopes(policy, fresh.loss),
        slopes(policy, estimator(policy, REWARDS, COEFFICIENTS, policy.draw(64, 1), Tensor.detach).loss),
    )
    step(2)
    step(3)
    step(4)
    assert served == [1, 1, 1, 4], "three steps"
    moved(policy, 0.01)
    step(5)
    moved(policy, 0.5)
    step(6)
    step(6)
    assert served == [1, 1, 1, 4, 4, 6, 6], "and no further from what drew them than the radius"
    other = estimator(policy, REWARDS, COEFFICIENTS, replace(policy.draw(64, 7), batch=1), Tensor.detach)
    assert other.draw is not None
    assert other.draw.seed == 7, "micro-batches of a step have their own"


def test_halves_and_workers_keep_or_leave_their_rollouts_together() -> None:
    policy, estimators = trained_a_little(), [ReusedRollouts(radius=0.02) for _ in range(2)]
    halves = [(0, 32), (32, 64)]

    def step(seed: int, said: Sequence[float]) -> list[int]:
        """The means of the first question are those given, one for each worker."""
        seeds = []
        for estimator, (first, last), mean in zip(estimators, halves, said, strict=True):
            answers = iter([torch.tensor(mean)])
            estimate = estimator(
                policy,
                REWARDS,
                COEFFICIENTS,
                policy.draw(64, seed, first=first, last=last),
                lambda value, answers=answers: next(answers, value.detach()),
            )
            assert estimate.draw is not None
            seeds.append(estimate.draw.seed)
        return seeds

    assert step(1, [torch.inf, torch.inf]) == [1, 1]
    assert step(2, [0.01, 0.01]) == [1, 1]
    assert step(3, [0.03, 0.03]) == [3, 3]


def test_stored_rollouts_have_no_coefficients_of_their_own() -> None:
    policy = trained_a_little()
    each = Coefficients(kl=np.ones(8), rewards={"linear": np.ones(8)})
    with pytest.raises(ValueError, match="samples have no coefficients of their own"):
        ReusedRollouts()(policy, REWARDS, each, policy.draw(8, 0), Tensor.detach)
    for steps, radius in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="steps must be at least 1 and radius above 0"):
            ReusedRollouts(steps, radius)


# Coefficients of each sample.

EVERY: dict[str, PrimalEstimator] = {
    "reward_backprop": RewardBackprop(),
    "truncated_backprop": TruncatedBackprop(2),
    "low_variance": LowVariance(),
    "clipped_backprop": ClippedBackprop(0.5),
    "log_variance": LogVariance(),
    "score_and_path": ScoreAndPath(),
}


def of_each(*parts: Coefficients, count: int) -> Coefficients:
    """Return coefficients of ``count`` samples for each of the parts in turn."""
    return Coefficients(
        kl=np.repeat([part.kl for part in parts], count),
        rewards={name: np.repeat([part.rewards[name] for part in parts], count) for name in REWARDS},
    )


@pytest.mark.parametrize("name", EVERY)
def test_coefficients_that_are_the_same_for_each_sample_are_those_of_all(name: str) -> None:
    policy = trained_a_little()
    draw = policy.draw(64, 3)
    alike = of_each(COEFFICIENTS, count=len(draw))
    found = EVERY[name](policy, REWARDS, alike, draw, Tensor.detach)
    np.testing.assert_allclose(
        slopes(policy, found.loss), gradient(EVERY[name], policy, draw), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", [name for name in EVERY if name != "log_variance"])
def test_each_sample_descends_its_own_lagrangian(name: str) -> None:
    """Rewards with gradients: the loss is a plain mean, so halves with coefficients of their own average."""
    policy = trained_a_little()
    draw = policy.draw(64, 3)
    other = Coefficients(kl=0.7, rewards={"linear": 2.0, "quadratic": 0.1})
    half = len(draw) // 2
    both = of_each(COEFFICIENTS, other, count=half)
    whole = EVERY[name](policy, REWARDS, both, draw, Tensor.detach)
    parts = [
        slopes(policy, EVERY[name](policy, REWARDS, own, part, Tensor.detach).loss)
        for own, part in ((COEFFICIENTS, draw.part(0, half)), (other, draw.part(half, 2 * half)))
    ]
    np.testing.assert_allclose(slopes(policy, whole.loss), np.mean(parts, axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(both.part(half - 1, half + 1).rewards["linear"], [0.9, 2.0])


def test_log_variance_subtracts_what_is_known_of_the_bracket_of_each_sample() -> None:
    policy = MixturePolicy(MODEL, ControlNetwork(MODEL, 4))  # the reference: log p/q = 0
    draw = policy.draw(64, 3)
    tilts = np.linspace(0.0, 1.0, len(draw))
    known = policy.rollout(draw, reference=True).samples[:, 0].double().numpy()
    asked = Coefficients(kl=1.0, rewards={"linear": tilts}, log_partition=tilts * known)
    found = LogVariance()(policy, {"linear": REWARDS["linear"]}, asked, draw, Tensor.detach)
    assert abs(float(found.loss.detach())) < 1e-12
    without = replace(asked, log_partition=None)
    assert float(LogVariance()(policy, REWARDS, without, draw, Tensor.detach).loss.detach()) > 1e-2
