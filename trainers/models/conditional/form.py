"""What an adapter that is a function of the tilt looks like: gates on the columns of its low-rank updates.

    ΔW(t) = B diag(g(t)) A        for every adapted layer; t [R], nats per σ, is the tilt of the optimum

At any one tilt that is the plain LoRA ``(A, B diag(g))``, so whatever ``g`` is, it folds exactly. A form is the
function ``g``; at ``t = 0`` it is 0, and the adapter the pretrained model.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainers import registry
from trainers.models.conditional.price_gates import PriceGates
from trainers.types import FloatArray

PRICE = "price"
"""Name of the form that is built in."""
_TRIED = 3
"""Samples of a fresh form that is checked."""


class Form(Protocol):
    """The gates of the layers as functions of the tilt. Built as ``Class(layers, rank, rewards)``."""

    def __call__(self, tilts: Tensor) -> Tensor:
        """Return the gates ``[L, batch, rank]`` at tilts ``[batch, R]``, each sample's of its own tilt alone."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return what is trained, by name."""

    def expect(self, tilts: FloatArray) -> None:
        """Take tilts ``[n, R]`` that training begins with: of this size are those to come."""

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return tensors ``[L, …]`` by name, which are stored layer by layer, and what else tells the gates."""

    def load(self, tensors: Mapping[str, Tensor], known: Mapping[str, str]) -> None:
        """Take what ``stored`` returned.

        Raises:
            ValueError: it is of another form, or does not fit.
        """


def build_form(name: str, layers: int, rank: int, rewards: int) -> Form:
    """Return a fresh form of an adapter.

    Args:
        name: Of its kind.
        layers: L, that are adapted.
        rank: Of their updates.
        rewards: R, that act.

    Raises:
        ValueError: there is no such kind, it cannot have this rank, or it does not fold.
    """
    kind: Any = PriceGates if name == PRICE else registry.load(registry.ADAPTER_FORMS, name)
    form: Form = kind(layers, rank, rewards)
    if (mistake := _mistake(form, (layers, rank, rewards))) is not None:
        raise ValueError(
            f"methods.frontier.form {name!r} does not fold into a plain LoRA that is nothing at multipliers of 0: "
            f"{mistake}"
        )
    return form


@torch.no_grad()
def _mistake(form: Form, sizes: tuple[int, int, int]) -> str | None:
    """Return what is wrong with the gates of a form, or None."""
    layers, rank, rewards = sizes
    parameters = form.parameters()
    device = next((parameter.device for parameter in parameters.values()), torch.device("cpu"))
    if device.type == "meta":
        return None  # there are no values to look at
    tilts = torch.arange(_TRIED, device=device)[:, None].expand(-1, rewards).float()  # the first is 0
    found = form(tilts)
    if not isinstance(found, Tensor) or found.shape != (layers, _TRIED, rank):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        return f"its gates are {shape}, and one number for each layer, sample and column is {(layers, _TRIED, rank)}"
    if not torch.isfinite(found).all():
        return "its gates are not all finite"
    if float(found[:, 0].abs().max()) > 0:
        return f"at a tilt of 0 its gates are up to {float(found[:, 0].abs().max()):.3g}, not 0"
    alone = torch.cat([form(tilts[row : row + 1]) for row in range(_TRIED)], dim=1)
    if not torch.allclose(alone, found, rtol=1e-4, atol=1e-6):
        return "gates of a sample depend on the tilts of others"
    return None
