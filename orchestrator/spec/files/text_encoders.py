"""What a text encoder of a pipeline reads of a prompt: its first tokens, without torch.

The tokenizer of a pipeline is that of its directory; of a hub id that of the local cache, if it has been downloaded.
"""

import json
from functools import lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from orchestrator.spec.files.pipelines import pipeline_directory
from trainers.pipelines.families import tokenizer_of
from trainers.pipelines.readers import CLIP, Reader

_CONFIG, _WHOLE = "tokenizer_config.json", "tokenizer.json"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_UNLIMITED = 100_000
"""A greater limit means that there is none."""
# Of CLIP (Radford et al. 2021): contractions, letters, single digits, and runs of anything else.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TextEncoder:
    """The tokenizer of a text encoder, and how many tokens it reads."""

    def __init__(self, tokenizer: Tokenizer, limit: int, reader: Reader) -> None:
        """Take a tokenizer of any settings.

        Args:
            tokenizer: Of it.
            limit: Tokens that are read, those besides the prompt's included.
            reader: Which one it is, and what it is given of a prompt.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.limit = tokenizer, limit
        self._framing = reader.framing + len(tokenizer.encode(reader.before, add_special_tokens=False).ids)

    def length(self, text: str) -> int:
        """Return how many tokens a prompt has, those besides its own included."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) + self._framing

    def read(self, text: str) -> tuple[int, ...]:
        """Return the tokens that are read: prompts that have the same are the same to the model."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoded.ids[: self.limit - self._framing])

    def unread(self, text: str) -> str:
        """Return the end of a prompt that is cut."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return text[offsets[self.limit - self._framing][0] :] if self.length(text) > self.limit else ""


def text_encoder(
    source: str, revision: str | None = None, reader: Reader = CLIP, tokens: int | None = None
) -> TextEncoder | None:
    """Return a text encoder of a pipeline, as far as it is on this machine and has a limit.

    Args:
        source: The pipeline.
        revision: Of a hub id.
        reader: Which one it is, and what it is given of a prompt.
        tokens: As many as it is told to read, where it is told.

    Raises:
        ValueError: Its files cannot be read; names them.
    """
    folder = _folder(source, revision, tokenizer_of(reader.encoder))
    return None if folder is None else _of(folder, reader, tokens if reader.told else None)


def _folder(source: str, revision: str | None, name: str) -> Path | None:
    if (directory := pipeline_directory(source)) is not None:
        found = directory / name
        return found if (found / _CONFIG).is_file() else None
    # Half of what a plan takes, and few need it.
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        cached = try_to_load_from_cache(source, f"{name}/{_CONFIG}", revision=revision)
    except HFValidationError:  # a directory that is not on this machine
        return None
    return Path(cached).parent if isinstance(cached, str) else None


@lru_cache(maxsize=8)
def _of(folder: Path, reader: Reader, told: int | None) -> TextEncoder | None:
    try:
        limit = told
        if not reader.told:
            limit = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("model_max_length")
        if not isinstance(limit, int) or not reader.framing < limit < _UNLIMITED:
            return None
        if (folder / _WHOLE).is_file():
            tokenizer = Tokenizer.from_file(str(folder / _WHOLE))
        elif not reader.told and (folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file():
            tokenizer = _of_clip(folder)
        else:
            return None
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{folder} cannot be read as a tokenizer: {error}") from error
    return TextEncoder(tokenizer, limit, reader)


def _of_clip(folder: Path) -> Tokenizer:
    """Return CLIP's tokenizer from its vocabulary and merges, as pipelines before ``tokenizer.json`` have them."""
    tokenizer = Tokenizer(
        models.BPE.from_file(
            str(folder / _VOCABULARY),
            str(folder / _MERGES),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",  # noqa: S106 - a token of text
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
