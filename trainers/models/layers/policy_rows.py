"""Low-rank adapters that act in one pass of a network beside the reference: on the rows of their own policies alone.

A pass holds the reference's values and those of ``n`` policies, each with an adapter of its own. Either as rows, first
those of the references and then those of the policies, ``[2 n batch, …]``; or as pairs (``shifted``), of which the
policy's is what the reference's is not. The updates of all policies in a layer are one batched matrix product, which
makes of each what it would make of it alone, to the last bit. Where an adapter has gates, each of its samples has its
own on the columns of the update (``models.conditional``); where all have the same it is a plain adapter.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers.models.layers.remade import Kept
from trainers.models.shifted import Shifted


class PolicyRows:
    """Which adapters of one UNet act beside the reference in the call that follows."""

    def __init__(self) -> None:
        """Begin with none: layers do as peft does."""
        self._names: tuple[str, ...] = ()
        self._paired = False
        self._gates: Mapping[str, Mapping[Any, Tensor]] = {}
        self._layers: dict[Any, Any] = {}

    @classmethod
    def of(cls, unet: Any) -> "PolicyRows":
        """Return that of a UNet, which all its adapters share."""
        found: PolicyRows | None = unet.__dict__.get("_policy_rows")
        if found is None:
            found = unet.__dict__["_policy_rows"] = cls()
        return found

    def take(self, layers: Sequence[Any]) -> None:
        """Come before peft in these layers."""
        for layer in layers:
            if layer not in self._layers:
                self._layers[layer] = layer.forward
                layer.forward = partial(self._forward, layer)

    def act(
        self,
        names: Sequence[str],
        *,
        paired: bool = False,
        gates: Mapping[str, Mapping[Any, Tensor]] | None = None,
    ) -> None:
        """Let these adapters act, in the order of their policies' rows, or as pairs; none leaves the layers to peft.

        Args:
            names: Of the adapters.
            paired: Whether values are pairs.
            gates: Of those that have some, by name and layer, ``[samples, rank]``: rows are all samples in turn, as
                often as the network is asked about each. Or ``[1, rank]``, of all.
        """
        self._names, self._paired, self._gates = tuple(names), paired, gates or {}

    def _forward(self, layer: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer makes of a value, with the updates of the adapters that act."""
        names = [name for name in self._names if name in layer.lora_A]
        if not names:
            if self._names:
                return layer.base_layer(value, *args, **kwargs)
            return self._layers[layer](value, *args, **kwargs)
        if not isinstance(value, Shifted) and not self._paired:
            return _rows(layer, names, value, self._of(layer))
        base = layer.base_layer(value, *args, **kwargs)
        moved = value.moved if isinstance(value, Shifted) else value
        return base + Shifted(None, _pairs(layer, names, moved, self._of(layer)))

    def _of(self, layer: Any) -> dict[str, Tensor]:
        """Return the gates of a layer by adapter."""
        return {name: gates[layer] for name, gates in self._gates.items()}


def _pairs(layer: Any, names: Sequence[str], policies: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
    """Return the updates of the policies' values, by the low-rank matrices: nothing is rounded beside large weights."""
    if gates or not isinstance(layer.base_layer, nn.Linear):
        return _each(layer, names, policies, gates)
    down = torch.stack([layer.lora_A[name].weight for name in names])  # [n, r, in]
    up = torch.stack([layer.lora_B[name].weight for name in names])  # [n, out, r]
    rows = policies.reshape(len(names), -1, policies.shape[-1])
    scale = policies.new_tensor([layer.scaling[name] for name in names])[:, None, None]
    update = torch.bmm(torch.bmm(rows, down.transpose(1, 2)), up.transpose(1, 2)) * scale
    return update.reshape(*policies.shape[:-1], -1)


def _rows(layer: Any, names: Sequence[str], value: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
    """Return what a layer makes of all rows: one product with its weights, one with those of the policies."""
    linear, own = layer.base_layer, [gates.get(name) for name in names]
    if isinstance(linear, nn.Linear) and all(each is None or len(each) == 1 for each in own):
        weights = torch.stack(
            [
                torch.addmm(
                    linear.weight,
                    _up(layer, name, each),
                    layer.lora_A[name].weight,
                    alpha=layer.scaling[name],
                )
                for name, each in zip(names, own, strict=True)
            ]
        )  # [n, out, in]
        return cast("Tensor", _Product.apply(value, linear.weight, linear.bias, weights))  # type: ignore[no-untyped-call] # torch's
    known = [each for each in own if each is not None]
    if isinstance(linear, nn.Linear) and len(known) == len(own) and len({each.shape for each in known}) == 1:
        rows = len(value) // (2 * len(names))
        down = torch.stack([layer.lora_A[name].weight for name in names])  # [n, r, in]
        up = torch.stack([layer.lora_B[name].weight * layer.scaling[name] for name in names])  # [n, out, r]
        every = torch.stack([_of_rows(each, rows) for each in known])
        return cast("Tensor", _Gated.apply(value, linear.weight, linear.bias, down, up, every))  # type: ignore[no-untyped-call] # torch's
    update = _each(layer, names, value[len(value) // 2 :], gates)
    found: Tensor = linear(value) + torch.cat([torch.zeros_like(update), update])
    return found


def _up(layer: Any, name: str, gates: Tensor | None) -> Tensor:
    """Return ``B`` of an adapter ``[out, r]``, its columns times the gates ``[1, r]`` that all samples share."""
    matrix: Tensor = layer.lora_B[name].weight
    return matrix if gates is None else matrix * gates


class _Product(torch.autograd.Function):
    """The first half of the rows times frozen weights, of the second half each policy's times its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor) -> Tensor:
        """Take ``[2 n batch, …, in]``, the layer's ``[out, in]`` and ``[out]``, and ``[n, out, in]``."""
        found = value.new_empty(*value.shape[:-1], len(weight))
        halves, given = _halves(found, len(weights)), _halves(value, len(weights))
        for out, rows, matrix in zip(halves, given, (weight[None], weights), strict=True):
            torch.bmm(rows, matrix.transpose(1, 2), out=out)
        if bias is not None:
            found += bias
        ctx.kept = Kept(value)
        ctx.save_for_backward(weight, weights, *ctx.kept.leave())
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the value and of the policies' weights."""
        weight, weights, *saved = ctx.saved_tensors
        value = ctx.kept.value(*saved)
        reference, policies = _halves(grads[0], len(weights))
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(value, memory_format=torch.contiguous_format)
            for out, rows, matrix in zip(
                _halves(gradient, len(weights)), (reference, policies), (weight[None], weights), strict=True
            ):
                torch.bmm(rows, matrix, out=out)
        return gradient, None, None, torch.bmm(policies.transpose(1, 2), _halves(value, len(weights))[1])


class _Gated(torch.autograd.Function):
    """Rows times frozen weights, and to the second half the update of each policy, its columns gated row by row."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, gates: Tensor
    ) -> Tensor:
        """Take ``[2 n rows, …, in]``, the layer's ``[out, in]`` and ``[out]``, A, B, and gates ``[n, rows, r]``."""
        found = nn.functional.linear(value, weight, bias).contiguous()
        inner = torch.bmm(_halves(value, len(down))[1], down.transpose(1, 2))
        _halves(found, len(down))[1].baddbmm_(_times(inner, gates), up.transpose(1, 2))
        ctx.kept = Kept(value)
        ctx.save_for_backward(weight, down, up, gates, inner, *ctx.kept.leave())
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the value, of A, of B, and of the gates."""
        weight, down, up, gates, inner, *saved = ctx.saved_tensors
        moved = _halves(grads[0], len(down))[1]
        turned = torch.bmm(moved, up)  # [n, rows …, r], of the gated columns
        columns = _times(turned, gates)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.matmul(grads[0], weight).contiguous()
            _halves(gradient, len(down))[1].baddbmm_(columns, down)
        given = _halves(ctx.kept.value(*saved), len(down))[1]
        of_gates = (turned * inner).view(*gates.shape[:2], -1, gates.shape[2]).sum(dim=2)
        ups = torch.bmm(moved.transpose(1, 2), _times(inner, gates))
        return gradient, None, None, torch.bmm(columns.transpose(1, 2), given), ups, of_gates


def _times(columns: Tensor, gates: Tensor) -> Tensor:
    """Return columns ``[n, rows …, r]``, each row's times its gates ``[n, rows, r]``."""
    return (columns.view(*gates.shape[:2], -1, gates.shape[2]) * gates[:, :, None]).view_as(columns)


def _halves(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return rows of references, ``[1, …, d]``, and of ``count`` policies, ``[count, …, d]``."""
    reference, policies = rows.reshape(-1, rows.shape[-1]).chunk(2)
    return reference[None], policies.reshape(count, -1, rows.shape[-1])


def _each(layer: Any, names: Sequence[str], policies: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
    """Return the updates of one adapter after the other, where no one product describes them."""
    parts = zip(names, policies.chunk(len(names)), strict=True)
    return torch.cat(
        [
            layer.lora_B[n](_gated(layer.lora_A[n](part), gates.get(n), layer.base_layer)) * layer.scaling[n]
            for n, part in parts
        ]
    )


def _gated(inner: Tensor, gates: Tensor | None, base: Any) -> Tensor:
    """Return the columns of an update, ``[rows, …, rank]`` or ``[rows, rank, …]``, each times its gate."""
    if gates is None:
        return inner
    rows = _of_rows(gates.to(inner.dtype), len(inner))
    between = (1,) * (inner.ndim - 2)
    last = isinstance(base, nn.Linear)
    return inner * (rows.view(len(rows), *between, -1) if last else rows.view(len(rows), -1, *between))


def _of_rows(gates: Tensor, rows: int) -> Tensor:
    """Return the gates of so many rows, ``[rows, rank]``, which are all samples in turn."""
    if rows % len(gates):
        raise ValueError(
            f"a layer sees {rows} rows of {len(gates)} samples: it is none whose update can have gates"
        )
    return gates.repeat(rows // len(gates), 1)
