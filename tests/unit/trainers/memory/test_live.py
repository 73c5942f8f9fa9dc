"""What tensors are counted to take."""

import torch

from trainers.memory.live import Live

MEGA = 250_000  # float32 numbers in a megabyte


def test_the_peak_is_what_is_alive_at_once() -> None:
    with Live() as live:
        first = torch.zeros(MEGA)
        second = first + 1
        view = second[:10]
        del second
        assert live.now == 2_000_000, "a view keeps its storage"
        del view
        assert live.now == 1_000_000
        third = first.mul_(2)
        assert live.now == 1_000_000, "what is done in place takes nothing"
        del first, third
    assert (live.now, live.peak) == (0, 2_000_000)


def test_what_the_backward_pass_keeps_is_counted_until_it_is_done() -> None:
    weight = torch.zeros(MEGA, requires_grad=True)
    with Live() as live:
        kept = weight.exp()  # the result, for its gradient
        loss = kept.sum()
        del kept
        assert live.now == 1_000_004
        loss.backward()
        assert live.now >= 1_000_004, "the gradient"
        assert live.peak >= 2_000_004


def test_weights_that_were_there_before_are_counted_once() -> None:
    weight = torch.zeros(MEGA)
    live = Live()
    live.hold(weight)
    live.hold(weight[5:])
    assert live.now == live.peak == 1_000_000
