"""Two passes through one network in one: the reference's values, and how far the policy's are from them.

Two passes in half precision, which keeps 8 or 11 bits of a value, come out whole roundings apart wherever they differ
at all; guidance multiplies that, the schedule divides it by the noise, and the KL measures it. Here a value is a pair
``(h, δ)``, of which the policy's is ``h + δ``, and every operation gives the pair of its result:

* linear ones (convolutions, projections, sums, views) act on ``h`` and on ``δ``: ``δ`` is rounded relative to itself;
* products are ``(a + α)(b + β) − a b = a β + α (b + β)``;
* any other, ``f``, is ``f(h + δ) − f(h)``, both computed in float32.

So ``δ`` is known to a share of itself whatever the precision of ``h``, and is exactly 0 where nothing acts. It costs
what two passes cost. An operation that is not listed here is right all the same, as one of the third kind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

Function = Callable[..., Any]
"""Of torch; takes tensors and pairs."""
Rule = Callable[[Function, Sequence[Any], Mapping[str, Any]], Any]
"""What to do for a function."""


@dataclass(eq=False, repr=False)
class Shifted:
    """A value of the reference and the policy's shift from it; torch's functions take it for a tensor.

    As a dataclass it is looked into by those who wait for the gradients of what a module returns, such as FSDP.
    """

    _base: Tensor | None
    """None is 0."""
    shift: Tensor
    """Of the shape of the base."""

    @cached_property
    def base(self) -> Tensor:
        """The reference's."""
        return torch.zeros_like(self.shift) if self._base is None else self._base

    @cached_property
    def moved(self) -> Tensor:
        """The policy's."""
        return self.shift if self._base is None else self._base + self.shift

    @classmethod
    def __torch_function__(
        cls,
        func: Function,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the pair of a function's result.

        Raises:
            TypeError: the function changes its argument, and its result would not be seen.
        """
        name, kwargs = getattr(func, "__name__", str(func)), kwargs or {}
        changes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if changes or kwargs.get("inplace"):
            raise TypeError(f"{name} would change a value in place, and a difference needs the one before")
        return _RULES.get(func, _other)(func, args, kwargs)

    def __len__(self) -> int:
        """Return the first dimension."""
        return len(self.shift)

    def __getattr__(self, name: str) -> Any:
        """Return a tensor's attribute: shape, dtype and device are the shift's, methods give pairs."""
        found = getattr(self.shift, name)
        if not callable(found):
            return found
        method = getattr(Tensor, name)
        return lambda *args, **kwargs: Shifted.__torch_function__(method, (Shifted,), (self, *args), kwargs)


def _operator(method: Any) -> Function:
    return lambda *args: Shifted.__torch_function__(method, (Shifted,), args)


_OPERATORS = (
    "getitem",
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "matmul",
    "pow",
    "neg",
)
for _name in (f"__{name}__" for name in _OPERATORS):
    setattr(Shifted, _name, _operator(getattr(Tensor, _name)))


def _linear(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Act on the base and on the shift."""
    shift = _call(func, args, kwargs, lambda value: value.shift)
    if all(value._base is None for value in _pairs([args, kwargs])):  # noqa: SLF001 - a pair's own module
        return _paired(None, shift)
    return _paired(_call(func, args, kwargs, lambda value: value.base), shift)


def affine(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Act on base and shift as a layer with fixed weights does; the shift has no bias."""
    value, weight, *rest = args
    if not isinstance(value, Shifted) or len(list(_pairs([args, kwargs]))) > 1:
        return _other(func, args, kwargs)
    named = dict(kwargs)
    bias = rest.pop(0) if rest else named.pop("bias", None)
    base = None if value._base is None and bias is None else func(value.base, weight, bias, *rest, **named)  # noqa: SLF001
    return Shifted(base, func(value.shift, weight, None, *rest, **named))


def _sum(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Add or subtract; what is no pair is the same in both passes."""
    one, other = args
    left = one.base if isinstance(one, Shifted) else one
    if isinstance(other, Shifted):
        nothing = other._base is None and left.shape == other.shift.shape  # noqa: SLF001
        base = left if nothing else func(left, other.base, **kwargs)
        before = one.shift if isinstance(one, Shifted) else other.shift.new_zeros(())
        shift = func(before, other.shift, **kwargs)
    else:
        base, shift = func(left, other, **kwargs), one.shift
    return Shifted(base, shift.expand(base.shape))


def _joined(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Put values side by side; what is no pair has no shift."""
    values, *rest = args
    pairs = [
        value if isinstance(value, Shifted) else Shifted(value, torch.zeros_like(value)) for value in values
    ]
    return _linear(func, (pairs, *rest), kwargs)


def _product(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Multiply entries or matrices."""
    one, other = args
    if not (isinstance(one, Shifted) and isinstance(other, Shifted)):
        return _linear(func, args, kwargs)
    shift = func(one.base, other.shift, **kwargs) + func(one.shift, other.moved, **kwargs)
    return Shifted(func(one.base, other.base, **kwargs), shift)


def _typed(_: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Give the type of another."""
    value, other = args
    return (
        _linear(Tensor.to, (value, other.dtype), kwargs)
        if isinstance(value, Shifted)
        else value.to(other.dtype)
    )


def _contraction(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Contract; linear in each of the operands."""
    return (_other if len(list(_pairs([args]))) > 1 else _linear)(func, args, kwargs)


def _quotient(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Divide; linear in what is divided."""
    return (_other if isinstance(args[1], Shifted) else _linear)(func, args, kwargs)


def _other(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute the function in both passes, in float32 outside autocast, and return the difference beside the base."""
    first = next(_pairs([args, kwargs]))
    with torch.autocast(first.shift.device.type, enabled=False):
        moved = _call(func, args, kwargs, lambda value: value.base.float() + value.shift, wide=True)
        if isinstance(moved, bool | int | float | str | torch.Size):
            return moved
        base = _call(func, args, kwargs, _dense, wide=True)
        if not isinstance(moved, Tensor):
            raise TypeError(f"{func} has no difference: it gives a {type(moved).__name__}")
        return Shifted(base.to(first.shift.dtype), (moved - base).to(first.shift.dtype))


def _dense(value: Shifted) -> Tensor:
    """Return the base in float32, laid out as the sum with the shift is: another layout is another rounding."""
    base = value.base.float()
    dense = base.is_contiguous() or (base.ndim == 4 and base.is_contiguous(memory_format=torch.channels_last))
    return base if dense else base.clone(memory_format=torch.preserve_format)


def _call(
    func: Function,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    part: Callable[[Shifted], Tensor],
    *,
    wide: bool = False,
) -> Any:
    """Call a function with a part of every pair, and all else as it is, or in float32."""

    def taken(value: Any) -> Any:
        if isinstance(value, Shifted):
            return part(value)
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return type(value)(map(taken, value))
        return value.float() if wide and isinstance(value, Tensor) and value.is_floating_point() else value

    return func(*map(taken, args), **{key: taken(value) for key, value in kwargs.items()})


def _pairs(values: Any) -> Iterator[Shifted]:
    if isinstance(values, Shifted):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _pairs(value)
    elif isinstance(values, dict):
        yield from _pairs(list(values.values()))


def _paired(base: Any, shift: Any) -> Any:
    """Return pairs of results; what is no tensor, such as a size, is the same in both."""
    if isinstance(shift, Tensor):
        return Shifted(base, shift)
    if isinstance(shift, list | tuple) and not isinstance(shift, torch.Size):
        return type(shift)(map(_paired, [None] * len(shift) if base is None else base, shift))
    return shift


_VIEWS = (
    Tensor.view,
    Tensor.expand,
    Tensor.repeat,
    Tensor.contiguous,
    Tensor.unbind,
    Tensor.unflatten,
    Tensor.split_with_sizes,
    Tensor.__getitem__,
)
_VIEWS_OF_BOTH_NAMES = (
    "reshape",
    "flatten",
    "transpose",
    "permute",
    "chunk",
    "split",
    "squeeze",
    "unsqueeze",
    "neg",
)
_TYPES = (Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16)
_SIZES = (Tensor.size, Tensor.dim, Tensor.numel)
_RULES: dict[Function, Rule] = {
    **dict.fromkeys((*_VIEWS, *_TYPES, *_SIZES, F.dropout, F.interpolate, F.avg_pool2d), _linear),
    **{getattr(at, name): _linear for at in (torch, Tensor) for name in _VIEWS_OF_BOTH_NAMES},
    **dict.fromkeys((torch.view_as_complex, torch.view_as_real), _linear),
    **dict.fromkeys((torch.cat, torch.stack), _joined),
    torch._C._nn.pad_sequence: _joined,  # noqa: SLF001 - what torch.nn.utils.rnn.pad_sequence calls
    Tensor.type_as: _typed,
    **dict.fromkeys((F.linear, F.conv2d), affine),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _sum),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _product),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), _product),
    torch.einsum: _contraction,
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _quotient),
}
"""What is done for a function; for any other, ``_other``."""
