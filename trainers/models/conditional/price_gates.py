"""The price form of an adapter for a box of thresholds: gates that grow with the price of each reward.

    g(t) = G p,    p_r = (t_r / t̄_r)^0.8,    G [rank, R]

``t̄`` are the largest tilts that training begins with. ``G`` starts one-hot: each column of an update belongs to one
reward, and is as strong as that reward is dear; what columns do together is learned. The power 0.8 is between the
answer of an optimum to small prices, which is linear, and that to large ones, which saturates.
"""

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from trainers.types import FloatArray

_POWER = 0.8
_PACE = 3.0
"""Of gates among the matrices: Adam moves what is trained, a third of a gate, as far as any other number."""
_LEAST_SHARE = 0.1
"""Of the largest tilt, for rewards that seem to need none."""
_MOST = 10.0
"""Nats per σ: a budget that does not bind yet makes tilts of any size."""
GATES = "gates"
"""What ``G`` is called in a file."""


class PriceGates:
    """One matrix ``G`` for each layer."""

    def __init__(self, layers: int, rank: int, rewards: int) -> None:
        """Give every reward its columns of every layer.

        Raises:
            ValueError: there are fewer columns than rewards.
        """
        if rank < rewards:
            raise ValueError(
                f"methods.frontier.rank is at least the number of rewards that act, {rewards}, got {rank}"
            )
        owners = torch.arange(rank) * rewards // rank
        one_hot = nn.functional.one_hot(owners, rewards).float() / _PACE  # [rank, R]
        self._gates = nn.Parameter(one_hot.repeat(layers, 1, 1))
        self._usual = torch.ones(rewards)

    def __call__(self, tilts: Tensor) -> Tensor:
        """Return the gates ``[L, batch, rank]`` at tilts ``[batch, R]``."""
        gates = self._gates
        usual = self._usual.to(gates.device)
        prices = (tilts.to(gates).clamp(min=0.0) / usual).pow(_POWER)
        return torch.einsum("lkr,br->lbk", _PACE * gates, prices)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the gates of all layers."""
        return {"lora_G": self._gates}

    def expect(self, tilts: FloatArray) -> None:
        """Measure prices by the largest of tilts ``[n, R]``."""
        most = np.clip(tilts, 0.0, _MOST).max(axis=0)
        if (top := float(most.max())) > 0:
            self._usual = torch.tensor(np.maximum(most, _LEAST_SHARE * top), dtype=torch.float32)

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return ``G`` and what the prices are measured by."""
        known = {"form": "price", "reference": json.dumps(self._usual.tolist()), "power": f"{_POWER:g}"}
        return {GATES: _PACE * self._gates.detach()}, known

    def load(self, tensors: Mapping[str, Tensor], known: Mapping[str, str]) -> None:
        """Take what ``stored`` returned.

        Raises:
            ValueError: it is of another form, or does not fit.
        """
        if (known.get("form"), known.get("power")) != ("price", f"{_POWER:g}"):
            raise ValueError(f"it is of the form {known.get('form')!r} with the power {known.get('power')}")
        found = tensors.get(GATES)
        if found is None or found.shape != self._gates.shape:
            raise ValueError(f"its {GATES} are not {tuple(self._gates.shape)}")
        try:
            usual = torch.tensor([float(each) for each in json.loads(known["reference"])])
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError("its metadata have no reference, a list of tilts") from error
        if usual.shape != self._usual.shape or not (usual > 0).all() or not torch.isfinite(found).all():
            raise ValueError(
                f"its reference is no list of {len(self._usual)} tilts above 0, or gates are not finite"
            )
        self._usual = usual
        with torch.no_grad():
            self._gates.copy_(found / _PACE)
