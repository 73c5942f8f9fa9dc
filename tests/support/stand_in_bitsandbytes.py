"""The part of bitsandbytes that packs linear layers, in plain torch: quantised when moved to a device, as there."""

import importlib
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Self

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from peft.import_utils import is_bnb_4bit_available
from torch import Tensor, nn

LEVELS = torch.tensor(
    [
        -1.0,
        -0.6962,
        -0.5251,
        -0.3949,
        -0.2844,
        -0.1848,
        -0.0911,
        0.0,
        0.0796,
        0.1609,
        0.2461,
        0.3379,
        0.4407,
        0.5626,
        0.723,
        1.0,
    ]
)
"""Of NF4, to four digits."""


@dataclass
class QuantState:
    absmax: Tensor
    shape: torch.Size
    dtype: torch.dtype
    blocksize: int

    def to(self, device: Any) -> None:
        self.absmax = self.absmax.to(device)


class Params4bit(nn.Parameter):
    def __new__(
        cls,
        data: Tensor,
        requires_grad: bool = False,
        quant_state: QuantState | None = None,
        blocksize: int = 64,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
    ) -> Self:
        assert quant_type == "nf4"
        assert not compress_statistics
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.quant_state, made.blocksize = quant_state, blocksize
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        settings = {"blocksize": self.blocksize, "compress_statistics": False, "quant_type": "nf4"}
        if self.quant_state is not None:
            self.quant_state.to(device)
            return Params4bit(super().to(*args, **kwargs), quant_state=self.quant_state, **settings)
        blocks = self.data.float().reshape(-1, self.blocksize)
        absmax = blocks.abs().amax(dim=1)
        nearest = (blocks / absmax[:, None])[..., None].sub(LEVELS).abs().argmin(dim=-1).flatten()
        packed = (nearest[::2] * 16 + nearest[1::2]).to(torch.uint8)[:, None].to(device)
        state = QuantState(absmax.to(device), self.shape, self.dtype, self.blocksize)
        return Params4bit(packed, quant_state=state, **settings)


def matmul_4bit(value: Tensor, weight: Tensor, quant_state: QuantState, bias: Tensor | None = None) -> Tensor:
    assert value.dtype == quant_state.dtype, "the weight is unpacked to the value's type"
    data = weight.data.flatten()
    levels = LEVELS[torch.stack([data // 16, data % 16], dim=1).long()].reshape(-1, quant_state.blocksize)
    whole = (levels * quant_state.absmax[:, None]).reshape(quant_state.shape).to(value.dtype)
    return F.linear(value, whole, bias)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be imported as bitsandbytes, where that is not installed."""
    is_bnb_4bit_available()  # peft remembers what is installed: it must not remember this
    try:
        importlib.import_module("bitsandbytes")
    except ImportError:
        made: Any = ModuleType("bitsandbytes")
        made.__spec__ = ModuleSpec("bitsandbytes", None)
        made.nn = ModuleType("bitsandbytes.nn")
        made.nn.Params4bit, made.matmul_4bit = Params4bit, matmul_4bit
        monkeypatch.setitem(sys.modules, "bitsandbytes", made)
