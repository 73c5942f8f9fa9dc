"""How much of a prompt each text encoder of a pipeline reads, in tokens of its own."""

from collections.abc import Collection
from dataclasses import dataclass

from trainers.pipelines.families import (
    FLUX_1,
    FLUX_2,
    FLUX_2_KLEIN,
    QWEN_IMAGE,
    STABLE_DIFFUSION_3,
    Z_IMAGE,
    Family,
)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A text encoder, by what it is given of a prompt."""

    encoder: str = "text_encoder"
    """Its folder."""
    framing: int = 2
    """Tokens of what it reads that are none of the prompt's: where it begins and ends."""
    before: str = ""
    """What a template has before the prompt, whose tokens are read too."""
    told: bool = False
    """Whether it reads as many as the pipeline is told (``max_sequence_length``), not as many as its tokenizer says."""


CLIP = Reader()
_CHAT = Reader(framing=0, before="<|im_start|>user\n", told=True)
"""What a template has after the prompt is cut before it."""
_READERS: dict[Family, tuple[Reader, ...]] = {
    STABLE_DIFFUSION_3: (CLIP, Reader(encoder="text_encoder_3", framing=1, told=True)),
    FLUX_1: (CLIP, Reader(encoder="text_encoder_2", framing=1, told=True)),
    FLUX_2: (_CHAT,),  # another template, which takes more: what is said to be cut is
    FLUX_2_KLEIN: (_CHAT,),
    Z_IMAGE: (_CHAT,),
    QWEN_IMAGE: (Reader(framing=0, told=True),),  # the template before it is dropped, and counts for none
}
"""By family, the one that reads most last. Both of SDXL, and of SD 3 the two that are CLIP's, read alike."""


def readers_of(family: Family | None, absent: Collection[str] = ()) -> tuple[Reader, ...]:
    """Return the text encoders of a pipeline, of those that read alike one, that which reads most last.

    Args:
        family: Of the pipeline; one that is not known is taken for one of CLIP.
        absent: Components that it leaves out.
    """
    found = (CLIP,) if family is None else _READERS.get(family, (CLIP,))
    return tuple(reader for reader in found if reader.encoder not in absent)
