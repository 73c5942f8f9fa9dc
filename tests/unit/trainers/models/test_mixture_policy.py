"""Rollouts: a constant control on a Gaussian chain, whose law is known. Draws, and where gradients end."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.config import MixtureConfig
from trainers.models.base import Draw, Guesses, Start
from trainers.models.mixture import ControlNetwork, MixtureModel, antithetic_noise
from trainers.models.mixture_policy import MixturePolicy

MODEL = MixtureModel(
    MixtureConfig(weights=(1.0,), means=((0.5,),), covariances=(((2.0,),),)),
    steps=16,
    eta=1.0,
    dtype=torch.float64,
)

TWO = MixtureConfig(weights=(0.4, 0.6), means=((-1.0,), (1.0,)), covariances=(((0.3,),), ((0.5,),)))


def constant_policy(value: float = 0.0) -> MixturePolicy:
    network = ControlNetwork(MODEL, 4)
    torch.nn.init.constant_(network.leave.bias, value)
    return MixturePolicy(MODEL, network)


def wild_policy() -> MixturePolicy:
    """Every parameter matters, and states differ."""
    policy, generator = constant_policy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return policy


def gradient(policy: MixturePolicy, value: Tensor) -> Tensor:
    slopes = torch.autograd.grad(value, list(policy.parameters().values()), retain_graph=True)
    return torch.cat([slope.flatten() for slope in slopes])


# Sampling.


def test_a_constant_drift_shifts_the_mean_and_costs_its_gaussian_kl() -> None:
    """The chain of one Gaussian is linear, so the shift of each step is carried by the product of the later slopes."""
    policy = constant_policy(0.3)
    draw = policy.draw(512, 0)
    moved, still = policy.rollout(draw), policy.rollout(draw, reference=True)
    table, variance = MODEL.table, 1.0  # whitened
    alpha, sigma = table.levels.alpha[:-1], table.levels.sigma[:-1]
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    slopes = table.from_state + table.from_clean * gain
    sigmas = [float(MODEL.step(k, torch.zeros(1, 1, dtype=torch.float64))[2]) for k in range(MODEL.steps)]
    shift = 0.0
    for slope, sigma in zip(slopes, sigmas, strict=True):
        shift = slope * shift + 0.3 * sigma
    difference = (moved.samples - still.samples).detach()
    torch.testing.assert_close(difference, torch.full_like(difference, shift * np.sqrt(2.0)))
    torch.testing.assert_close(moved.path_kl.detach(), torch.full((512,), 0.5 * 16 * 0.3**2))
    assert moved.path_kl.shape == (512,)


def test_a_network_of_zeros_is_the_reference() -> None:
    fresh = constant_policy()
    draw = fresh.draw(64, 1)
    policy, reference = fresh.rollout(draw), fresh.rollout(draw, reference=True)
    torch.testing.assert_close(policy.samples, reference.samples, rtol=0, atol=0)
    assert policy.path_kl.abs().max() == 0
    assert reference.path_kl.tolist() == [0.0] * 64


def test_what_was_seen_is_kept_on_request_only() -> None:
    policy = constant_policy(0.1)
    draw = policy.draw(8, 0)
    kept, bare = policy.rollout(draw, keep=True), policy.rollout(draw)
    assert kept.inputs is not None
    assert kept.shifts is not None
    assert kept.inputs.shape == (16, 8, 2)
    torch.testing.assert_close(kept.shifts.detach(), draw.noise[1:] + 0.1)
    assert bare.inputs is bare.shifts is None


def test_the_controls_of_a_rollouts_inputs_are_those_it_took() -> None:
    policy = wild_policy()
    draw = policy.draw(8, 0)
    drawn = policy.rollout(draw, keep=True)
    assert drawn.inputs is not None
    assert drawn.shifts is not None
    controls = policy.controls(draw, drawn.inputs)
    torch.testing.assert_close(controls, drawn.shifts - draw.noise[1:])
    torch.testing.assert_close(0.5 * controls.square().sum(dim=(0, 2)).float(), drawn.path_kl)


@pytest.mark.parametrize("step", [1, 9, 15])
def test_a_rollout_from_a_state_on_the_way_ends_where_the_whole_one_does(step: int) -> None:
    policy = wild_policy()
    draw = policy.draw(8, 0)
    whole = policy.rollout(draw, keep=True)
    assert whole.inputs is not None
    rest = policy.rollout(draw, start=Start(step=step, state=whole.inputs[step][:, :1]))
    torch.testing.assert_close(rest.samples, whole.samples, rtol=0, atol=0)
    torch.testing.assert_close(
        rest.path_kl, 0.5 * policy.controls(draw, whole.inputs)[step:].square().sum(dim=(0, 2)).float()
    )


# Chains of second order: the reference extrapolates, and the control is free.


def second_order_policy() -> MixturePolicy:
    """A wild network on the same mixture, in eight steps."""
    model = MixtureModel(TWO, steps=8, eta=1.0, order=2, dtype=torch.float64)
    policy = MixturePolicy(model, ControlNetwork(model, 8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return policy


def test_of_second_order_the_path_is_redone_from_a_state_and_the_guess_before_it() -> None:
    policy = second_order_policy()
    draw = policy.draw(8, 0)
    whole = policy.rollout(draw, keep=True)
    assert whole.inputs is not None
    state, before = whole.inputs[4][:, :1], Guesses(clean=whole.inputs[3][:, 1:])
    rest = policy.rollout(draw, start=Start(step=4, state=state, before=before))
    torch.testing.assert_close(rest.samples, whole.samples, rtol=0, atol=0)
    bare = policy.rollout(draw, start=Start(step=4, state=state))
    assert (bare.samples - whole.samples).abs().max() > 1e-3
    assert whole.before is not None
    torch.testing.assert_close(whole.before.clean, whole.inputs[-2][:, 1:])
    controls = policy.controls(draw, whole.inputs)
    torch.testing.assert_close(0.5 * controls.square().sum(dim=(0, 2)).float(), whole.path_kl)


def test_of_second_order_path_weights_average_to_one() -> None:
    """``E_p exp(−log p/q) = 1``, and ``E_p r exp(−log p/q)`` is the reference's mean: the ratio is the paths' own."""
    policy = second_order_policy()
    draw = policy.draw(40_000, 1)
    with torch.no_grad():
        drawn, reference = policy.rollout(draw), policy.rollout(draw, reference=True)
    weights = torch.exp(-drawn.log_ratio.double())
    assert 0.05 < drawn.path_kl.mean() < 1.0
    for values in (torch.ones(len(draw), dtype=torch.float64), drawn.samples[:, 0] ** 2):
        pairs = (weights * values).reshape(-1, 2).mean(dim=1)
        error = float(pairs.std() / np.sqrt(len(pairs)))
        exact = 1.0 if bool((values == 1).all()) else float((reference.samples[:, 0] ** 2).mean())
        assert float(pairs.mean()) == pytest.approx(exact, abs=4 * error + 0.01)


def test_of_second_order_the_bare_noise_is_nearly_enough() -> None:
    """``N(0, 1)`` in eight steps: its deviation is .79 with it, 1.009 extrapolated, 1 with the exact covariance."""
    gaussian = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    deviations = []
    for order in (1, 2):
        model = MixtureModel(gaussian, steps=8, eta=1.0, order=order, dtype=torch.float64)
        policy = MixturePolicy(model, ControlNetwork(model, 4))
        with torch.no_grad():
            deviations.append(float(policy.rollout(policy.draw(40_000, 0), reference=True).samples.std()))
    assert deviations == pytest.approx([1.0, 1.0089], abs=0.012)


@pytest.mark.parametrize("step", [0, 8, 15])
def test_noised_states_have_the_signal_and_the_noise_of_their_step(step: int) -> None:
    final, noise = torch.randn(2, 100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = constant_policy().noised(final, step, noise)
    level = MODEL.table.levels.alpha[step] ** 2
    assert float((seen * final).mean()) == pytest.approx(np.sqrt(level), abs=0.02)
    assert float((seen * noise).mean()) == pytest.approx(np.sqrt(1 - level), abs=0.02)
    assert float(seen.var()) == pytest.approx(1.0, abs=0.02)


# Where gradients end.


def test_gradients_reach_the_first_state_through_the_references_prediction() -> None:
    """With a detached reference the slope would be the product of ``from_state`` alone."""
    policy = constant_policy()
    noise = antithetic_noise(MODEL, 2, seed=0).requires_grad_()

    def end(given: Tensor) -> Tensor:
        return policy.rollout(Draw(noise=given, seeds=np.zeros(2, dtype=np.int64)), reference=True).samples[
            0, 0
        ]

    (slope,) = torch.autograd.grad(end(noise), noise)
    step = 1e-4
    ends = []
    for sign in (1, -1):
        moved = noise.detach().clone()
        moved[0, 0, 0] += sign * step
        ends.append(float(end(moved)))
    assert float(slope[0, 0, 0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("through", [0, 1, 2, 15, 16, 40])
def test_gradients_flow_through_the_states_of_the_last_steps_only(through: int) -> None:
    """Truncated by hand: earlier states are numbers, so a sample starts from one and a KL sees it as a constant."""
    policy = wild_policy()
    draw = policy.draw(8, 0)
    plain, cut = policy.rollout(draw, keep=True), policy.rollout(draw, through=through)
    torch.testing.assert_close(cut.samples, plain.samples, rtol=0, atol=0)
    torch.testing.assert_close(cut.path_kl, plain.path_kl, rtol=0, atol=0)
    assert plain.inputs is not None
    states, conditioning = plain.inputs[:, :, :1].detach(), policy.network.conditioning()
    first = max(16 - through, 0)
    path_kl, state = torch.zeros(8, dtype=torch.float64), states[min(first, 15)]
    for step in range(16):
        seen = states[step] if step <= first else state
        clean, mean, root = MODEL.step(step, seen)
        control = policy.network(torch.cat([seen, clean], dim=1), conditioning, step)
        path_kl = path_kl + 0.5 * control.square().sum(dim=1)
        if step >= first:
            state = mean + root[:, :, 0] * (control + draw.noise[step + 1])
    torch.testing.assert_close(
        gradient(policy, cut.path_kl.sum()), gradient(policy, path_kl.sum()), rtol=1e-5, atol=1e-6
    )
    if through == 0:
        assert not cut.final.requires_grad
        assert not cut.samples.requires_grad
    else:
        torch.testing.assert_close(
            gradient(policy, cut.samples.square().sum()), gradient(policy, MODEL.decode(state).square().sum())
        )


# Draws.


def test_a_part_of_a_draw_is_what_a_worker_would_have_drawn() -> None:
    policy = constant_policy()
    whole = policy.draw(12, 5)
    assert (len(whole), whole.seed, whole.first, whole.count) == (12, 5, 0, 12)
    part = whole.part(3, 10).part(2, 6)  # a part of a part counts from the whole batch
    alone = policy.draw(12, 5, first=5, last=9)
    assert len(part) == len(alone) == 4
    assert torch.equal(part.noise, alone.noise)
    assert torch.equal(part.noise, whole.noise[:, 5:9])
    assert part.seeds.tolist() == alone.seeds.tolist()
    fields = [(d.seed, d.first, d.count, d.prompts) for d in (part, alone)]
    assert fields == [(5, 5, 12, None)] * 2


def test_a_part_of_a_draw_keeps_its_own_prompts_and_seeds() -> None:
    draw = Draw(
        noise=torch.randn(3, 4, 1), seeds=np.arange(7, 11), prompts=("a", "b", "c", "d"), seed=1, count=4
    )
    part = draw.part(1, 3)
    assert part.prompts == ("b", "c")
    assert part.seeds.tolist() == [8, 9]
    assert torch.equal(torch.cat([part.part(0, 1).noise, part.part(1, 2).noise], dim=1), draw.noise[:, 1:3])


def test_the_endless_sequence_of_a_seed_is_numbered_and_cut_into_chunks() -> None:
    policy = constant_policy()
    size = policy.chunk
    second, short = policy.fixed_draw(7, size, 2 * size), policy.fixed_draw(7, size, size + 10)
    assert second.seeds.tolist() == list(range(7 + size, 7 + 2 * size))
    assert short.seeds.tolist() == second.seeds[:10].tolist()
    assert torch.equal(short.noise, second.noise[:, :10])
    assert torch.equal(second.noise, antithetic_noise(MODEL, size, seed=8))
    assert not torch.equal(second.noise, policy.fixed_draw(7, 0, size).noise)
    across = policy.fixed_draw(7, size - 3, 2 * size + 5)
    assert across.seeds.tolist() == list(range(7 + size - 3, 7 + 2 * size + 5))
    assert torch.equal(across.noise[:, 3:-5], second.noise)
    assert torch.equal(across.noise[:, :3], policy.fixed_draw(7, 0, size).noise[:, -3:])
    assert torch.equal(across.noise[:, -5:], policy.fixed_draw(7, 2 * size, 2 * size + 5).noise)
