"""What the networks of rewards take: the tower that sees images, which keeps what its gradient needs, and the rest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainers.config import EMBEDDED, RewardConfig

_TYPES = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2), "fp16": ("float16", 2)}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """One network of a reward."""

    width: int
    """Of the vision transformer."""
    inner: int
    """Of its feed-forward layers."""
    layers: int
    heads: int
    patch: int
    """Pixels."""
    size: int
    """Pixels of an image that it sees."""
    rest: int
    """Parameters besides the tower: text, heads."""
    dtype: str = "float32"
    """Of torch."""
    bytes_each: int = 4
    """Of a parameter."""

    @property
    def rest_bytes(self) -> int:
        """Bytes of the parameters besides the tower."""
        return self.rest * self.bytes_each


_LARGE = Judge(width=1024, inner=4096, layers=24, heads=16, patch=14, size=224, rest=124_000_000)
_HUGE = Judge(width=1280, inner=5120, layers=32, heads=16, patch=14, size=224, rest=354_000_000)
_SHIPPED = Judge(width=96, inner=384, layers=4, heads=4, patch=4, size=32, rest=150_000)
_BY_KIND = {
    "clip_score": _LARGE,
    "aesthetic": _LARGE,
    "pick_score": _HUGE,
    "hpsv2": _HUGE,
    "hpsv2_1": _HUGE,
    "mps": replace(_HUGE, rest=380_000_000),
    "blip_itm": Judge(width=768, inner=3072, layers=12, heads=12, patch=16, size=384, rest=138_000_000),
    "blip2_itm": Judge(width=1408, inner=6144, layers=39, heads=16, patch=14, size=224, rest=187_000_000),
    "image_reward": replace(_LARGE, patch=16, rest=144_000_000),
}
"""By the kind of a reward, at the weights that it has by default."""


def judges_of(rewards: Iterable[RewardConfig]) -> list[Judge]:
    """Return the networks of a trial's rewards; those of other packages are not known, and left out."""
    found = []
    for reward in rewards:
        judge = _BY_KIND.get(reward.kind)
        if judge is not None:
            parameters: Mapping[str, Any] = reward.parameters
            shipped = EMBEDDED in (parameters.get("model"), parameters.get("clip"))
            dtype, size = _TYPES[parameters.get("precision", "fp32")]
            found.append(replace(_SHIPPED if shipped else judge, dtype=dtype, bytes_each=size))
    return found
