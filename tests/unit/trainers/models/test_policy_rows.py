"""What a layer makes of the rows of references and policies in one pass, and its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.models.layers.policy_rows import PolicyRows

IN, OUT, RANK, SAMPLES, TOKENS = 6, 5, 3, 4, 7


class Layer(nn.Module):
    """What peft makes of a linear layer, in float64."""

    def __init__(self, policies: int, *, bias: bool) -> None:
        """Draw all matrices."""
        super().__init__()
        names = [f"policy {place}" for place in range(policies)]
        self.base_layer = nn.Linear(IN, OUT, bias=bias).requires_grad_(False)
        self.lora_A = nn.ModuleDict({name: nn.Linear(IN, RANK, bias=False) for name in names})
        self.lora_B = nn.ModuleDict({name: nn.Linear(RANK, OUT, bias=False) for name in names})
        self.scaling = {name: 0.5 + place for place, name in enumerate(names)}
        self.double()

    def forward(self, value: Tensor) -> Tensor:
        found: Tensor = self.base_layer(value)
        return found


def each_alone(layer: Any, value: Tensor, gates: dict[str, Tensor]) -> Tensor:
    """The definition: ``W x + b`` for references, and each policy's ``B diag(g) A x`` beside it, sample by sample."""
    half = len(value) // 2
    updates = []
    for name, rows in zip(gates, value[half:].chunk(len(gates)), strict=True):
        for place, row in enumerate(rows):
            gate = gates[name][place % len(gates[name])]
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            updates.append(row @ down.T @ torch.diag(gate) @ up.T * layer.scaling[name])
    return torch.cat([layer.base_layer(value[:half]), layer.base_layer(value[half:]) + torch.stack(updates)])


@pytest.mark.parametrize("gated", [SAMPLES, 1])
@pytest.mark.parametrize("policies", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_gates_act_on_the_rows_of_their_samples_with_the_gradients_of_the_definition(
    policies: int, bias: bool, gated: int
) -> None:
    """Rows are all samples in turn, twice, as with guidance; gates of one row are those of all."""
    layer = Layer(policies, bias=bias)
    rows = PolicyRows()
    rows.take([layer])
    gates = {name: torch.randn(gated, RANK, dtype=torch.float64).requires_grad_() for name in layer.lora_A}
    value = torch.randn(2 * policies * 2 * SAMPLES, TOKENS, IN, dtype=torch.float64).requires_grad_()
    rows.act(list(gates), gates={name: {layer: each} for name, each in gates.items()})
    found, expected = layer.forward(value), each_alone(layer, value, gates)
    torch.testing.assert_close(found, expected)
    matrices = [each.weight for each in (*layer.lora_A.values(), *layer.lora_B.values())]
    weights, wanted = torch.randn_like(found), [value, *gates.values(), *matrices]
    gradients = [torch.autograd.grad((one * weights).sum(), wanted) for one in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_policies_with_gates_of_their_own_and_of_all_samples_and_with_none_share_a_call() -> None:
    layer = Layer(3, bias=True)
    rows = PolicyRows()
    rows.take([layer])
    first, second, third = layer.lora_A
    gates = {
        first: torch.randn(SAMPLES, RANK, dtype=torch.float64),
        second: torch.randn(1, RANK, dtype=torch.float64),
        third: torch.ones(1, RANK, dtype=torch.float64),
    }
    value = torch.randn(2 * 3 * SAMPLES, TOKENS, IN, dtype=torch.float64)
    rows.act(list(gates), gates={name: {layer: gates[name]} for name in (first, second)})
    torch.testing.assert_close(layer.forward(value), each_alone(layer, value, gates))


def test_rows_that_are_not_all_samples_in_turn_are_refused() -> None:
    layer = Layer(1, bias=True)
    rows = PolicyRows()
    rows.take([layer])
    gates = torch.ones(SAMPLES, RANK, dtype=torch.float64)
    rows.act(["policy 0"], gates={"policy 0": {layer: gates}})
    with pytest.raises(ValueError, match="a layer sees 6 rows of 4 samples"):
        layer.forward(torch.ones(12, TOKENS, IN, dtype=torch.float64))
