"""What a frozen network keeps for the backward pass, without what can be made again at the cost of reading it.

Autograd keeps the input of every normalisation, activation and convolution, each a tensor of its own. Within
``remaking`` it keeps less, and computes the same numbers to the last bit:

* an activation of a normalised value, and a product with one of an activation, keep what those were made from, and do
  them again in the backward pass;
* a convolution with frozen weights keeps nothing: its gradient to the input does not read the input;
* who keeps a value of his own asks for what it is made from (``Kept``).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

Function = Callable[..., Tensor]


def remaking(wanted: bool = True) -> AbstractContextManager[Any]:
    """Within it torch's functions keep less; without gradients, in mixed precision or compiled as they always do."""
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled()
    return _Remaking() if wanted and torch.is_grad_enabled() and not plain else nullcontext()


@dataclass(frozen=True)
class Made:
    """How a value is made again."""

    function: Function
    inputs: tuple[Tensor, ...]
    """Kept by others as well, or smaller than the value together with what others keep."""


_MADE = "_made_from"
"""Name of a tensor's attribute."""


class Kept:
    """A value that a ``torch.autograd.Function`` needs in its backward pass: itself, or what it is made from."""

    def __init__(self, value: Tensor) -> None:
        """Take the value."""
        made: Made | None = getattr(value, _MADE, None)
        self._function = None if made is None else made.function
        self._tensors = (value,) if made is None else made.inputs

    def leave(self) -> tuple[Tensor, ...]:
        """Return what ``ctx.save_for_backward`` must be given; this object must not hold it."""
        tensors, self._tensors = self._tensors, ()
        return tensors

    def value(self, *saved: Tensor) -> Tensor:
        """Return the value from what was saved."""
        return saved[0] if self._function is None else self._function(*saved)


class _Remaking(TorchFunctionMode):
    """Sends torch's functions to the rules below."""

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what the function returns."""
        rule = _RULES.get(func)
        if rule is None or not _plain(args):
            return func(*args, **(kwargs or {}))
        return rule(func, args, kwargs or {})


class _Again(torch.autograd.Function):
    """A function of tensors that is computed again in the backward pass, in place of keeping what it went through."""

    @staticmethod
    def forward(ctx: Any, function: Function, value: Function, *inputs: Tensor) -> Tensor:
        """Take the function, what gives its value now, and its inputs."""
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return value()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        wanted = ctx.needs_input_grad[2:]
        inputs = [
            value.detach().requires_grad_(want) for value, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            found = ctx.function(*inputs)
        asked = [value for value in inputs if value.requires_grad]
        gradients = iter(torch.autograd.grad(found, asked, grads))
        return None, None, *(next(gradients) if want else None for want in wanted)


class _Convolution(torch.autograd.Function):
    """A convolution with frozen weights, which keeps nothing of its input but the layout."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
    ) -> Tensor:
        """Take what ``torch.conv2d`` takes."""
        ctx.save_for_backward(weight)
        ctx.settings, ctx.layout = settings, (value.shape, value.stride())
        return torch.conv2d(value, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the value."""
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        unread = grads[0].new_empty(0).new_empty_strided(*ctx.layout)
        gradient, _, _ = torch.ops.aten.convolution_backward(
            grads[0],
            unread,
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            (True, False, False),
        )
        return gradient, None, None, None


def _cheap(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Do a function of one value; of one that is made from others it is a function of those."""
    value, *rest = args
    fixed = any(isinstance(each, Tensor) and each.requires_grad for each in (*rest, *kwargs.values()))
    if fixed or not value.requires_grad or kwargs.get("inplace"):
        return func(*args, **kwargs)
    alone = partial(_of_first, func, tuple(rest), dict(kwargs))
    made: Made | None = getattr(value, _MADE, None)
    if made is None:
        found, made = func(*args, **kwargs), Made(alone, (value,))
    else:
        made = Made(partial(_one_after, made.function, alone), made.inputs)
        found = _Again.apply(made.function, partial(alone, value.detach()), *made.inputs)  # type: ignore[no-untyped-call] # torch's
    setattr(found, _MADE, made)
    return found


def _product(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Multiply entries; by an activation it is a function of what that is made from."""
    one, other = args
    made: Made | None = getattr(other, _MADE, None)
    if made is None or not isinstance(one, Tensor) or one.shape != other.shape or not one.requires_grad:
        return func(*args, **kwargs)
    value = partial(func, one.detach(), other.detach())
    found: Tensor = _Again.apply(partial(_times, made.function), value, one, *made.inputs)  # type: ignore[no-untyped-call] # torch's
    return found


def _convolution(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Convolve; with frozen weights nothing of the input is kept."""
    value, weight, bias, *rest = args
    settings = tuple(rest)
    known = not kwargs and len(settings) == len(_SETTINGS) and not isinstance(settings[1], str)
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if not (known and frozen and value.requires_grad):
        return func(*args, **kwargs)
    found: Tensor = _Convolution.apply(value, weight, bias, settings)  # type: ignore[no-untyped-call] # torch's
    return found


_SETTINGS = ("stride", "padding", "dilation", "groups")


def _plain(args: Sequence[Any]) -> bool:
    """Whether tensors are tensors, not pairs (``shifted``) or split among workers."""
    return all(type(value) in _KINDS or not hasattr(value, "__torch_function__") for value in args)


_KINDS = {Tensor, torch.nn.Parameter, FakeTensor}
"""The last are those of an estimate of memory."""


def _of_first(func: Function, rest: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor) -> Tensor:
    return func(value, *rest, **kwargs)


def _one_after(one: Function, other: Function, *inputs: Tensor) -> Tensor:
    return other(one(*inputs))


def _times(function: Function, one: Tensor, *inputs: Tensor) -> Tensor:
    return one * function(*inputs)


_RULES: dict[Any, Callable[[Function, Sequence[Any], Mapping[str, Any]], Tensor]] = {
    F.group_norm: _cheap,
    F.layer_norm: _cheap,
    F.silu: _cheap,
    F.gelu: _cheap,
    Tensor.mul: _product,
    Tensor.__mul__: _product,
    torch.conv2d: _convolution,
}
