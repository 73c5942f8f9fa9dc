"""A byte-level BPE learned from the world's own captions, in CLIP's format.

It knows every word of the world as one token and any other text as bytes, so no prompt is refused.
"""

from collections import Counter
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from trainers.models.embedded import world

LENGTH = 16  # tokens of a prompt; a caption takes ten with start and end
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def words() -> list[str]:
    """All words of the captions, in alphabetical order."""
    return sorted({word for scene in world.scenes() for word in scene.caption.split()})


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


def learn_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding until every word is one symbol; ties go to the alphabet, so it is deterministic."""
    pieces = [(*word[:-1], word[-1] + WORD_END) for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for piece in pieces for pair in pairwise(piece)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(piece, best) for piece in pieces]
    return merges


def build() -> CLIPTokenizer:
    """The tokenizer of pipeline and twin; pads with the end token as Stable Diffusion does."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = learn_merges(words())
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges) if token not in set(tokens)]
    tokens += [START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=LENGTH,
        pad_token=END,
    )
