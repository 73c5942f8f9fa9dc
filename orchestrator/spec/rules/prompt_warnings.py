"""What prompts allow, but can hardly mean: the model reads less of them than they say, or the same of two."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.spec.files.pipelines import family_named, parts_left_out
from orchestrator.spec.files.text_encoders import TextEncoder, text_encoder
from trainers.config import ModelConfig, PromptsConfig
from trainers.pipelines.readers import Reader, readers_of

_SHOWN = 60


def prompt_warnings(
    model: ModelConfig, prompts: PromptsConfig | None, *, unknown: bool = False
) -> Iterator[str]:
    """Yield a sentence for each list and each thing in it, with the number of prompts and one of them.

    Args:
        model: A pipeline, or a composition of networks.
        prompts: None where all models are prompts.
        unknown: Say too which text encoders are not known here, as those on the hub before they are downloaded.
    """
    if prompts is not None:
        yield from _marked(prompts)
        yield from _trained_on(prompts, lambda text: text, "")
    asked, sources = _asked(model, prompts), _sources(model)
    for source in sources:
        whose = "" if len(sources) == 1 else f" of {source.name}"
        try:
            encoders = source.encoders()
        except ValueError as error:
            yield f"prompts: how much of them the text encoder{whose} reads is not known: {error}"
            continue
        *partial, (most, encoder) = encoders
        named = f"{most.encoder}{whose}" if partial else f"the text encoder{whose}"
        for reader, other in partial:
            yield from _partly(asked, other, (f"{reader.encoder}{whose}", most.encoder))
        if encoder is not None:
            whole = _Read((*(other for _, other in partial if other is not None), encoder))
            yield from _read(
                asked, prompts, encoder, whole, (named, f"the model{whose}" if partial else named)
            )
        elif unknown:
            yield (
                f"prompts: how much of them {named} reads is not known, no tokenizer of {source.name} with its "
                "limit is on this machine; what is too long is cut"
            )


def _read(
    asked: dict[str, Sequence[str]],
    prompts: PromptsConfig | None,
    most: TextEncoder,
    whole: "_Read",
    who: tuple[str, str],
) -> Iterator[str]:
    """Yield what the encoder that reads most cuts, and what is the same to all of them."""
    for name, texts in asked.items():
        yield from _cut(name, texts, most, who[0])
        yield from _same(name, texts, whole, who[1])
    if prompts is not None:
        yield from _trained_on(prompts, whole, f" as {who[1]} reads them")


@dataclass(frozen=True)
class _Source:
    """A pipeline that is asked."""

    name: str
    revision: str | None
    tokens: int | None
    """What its pipeline is told to read of a prompt, if it is written."""

    def encoders(self) -> list[tuple[Reader, TextEncoder | None]]:
        """Return its text encoders, None for one that is not on this machine.

        Raises:
            ValueError: One cannot be read.
        """
        family = family_named(self.name, self.revision)
        usual = None if family is None or family.tokens is None else family.tokens[0]
        tokens = self.tokens or usual
        readers = readers_of(family, parts_left_out(self.name, self.revision))
        return [(reader, text_encoder(self.name, self.revision, reader, tokens)) for reader in readers]


@dataclass(frozen=True)
class _Read:
    """What all encoders of a pipeline together read of a text."""

    encoders: tuple[TextEncoder, ...]

    def __call__(self, text: str) -> Hashable:
        return tuple(encoder.read(text) for encoder in self.encoders)


def _sources(model: ModelConfig) -> list[_Source]:
    """Return the pipelines that are asked, each once."""
    parts = model.parts.values()
    return list(
        dict.fromkeys(
            _Source(part.pretrained, part.revision, getattr(part, "max_sequence_length", None))
            for part in parts
            if part.pretrained
        )
    )


def _asked(model: ModelConfig, prompts: PromptsConfig | None) -> dict[str, Sequence[str]]:
    """Return what is asked for, by where it is written."""
    asked: dict[str, Sequence[str]] = {}
    if prompts is not None:
        asked |= {"prompts.train": prompts.train, "prompts.evaluate": prompts.evaluate}
    models = model.constituents
    concepts = [each.prompt for each in models if each.prompt is not None]
    if concepts:
        asked["models"] = concepts
    if len(concepts) == len(models) > 0:
        asked["models, all of them in one prompt"] = [", ".join(concepts)]
    return asked


def _marked(prompts: PromptsConfig) -> Iterator[str]:
    for name, texts in (("train", prompts.train), ("evaluate", prompts.evaluate)):
        marked = [text for text in texts if text.startswith("#")]
        if marked:
            yield (
                f"prompts.{name}: {len(marked)} of {len(texts)} prompts begin with #, such as {_short(marked[0])}, "
                "and are asked as they stand: a file of prompts has no comments"
            )


def _cut(name: str, texts: Sequence[str], encoder: TextEncoder, whose: str) -> Iterator[str]:
    cut = [text for text in texts if encoder.length(text) > encoder.limit]
    if cut:
        yield (
            f"{name}: {len(cut)} of {len(texts)} prompts are longer than the {encoder.limit} tokens that {whose} "
            f"reads, and are cut, such as {_short(cut[0])} ({encoder.length(cut[0])} tokens: "
            f"{_short(encoder.unread(cut[0]))} is not read)"
        )


def _partly(
    asked: dict[str, Sequence[str]], encoder: TextEncoder | None, who: tuple[str, str]
) -> Iterator[str]:
    """Yield how many prompts only another encoder reads beyond the limit of one."""
    if encoder is None:
        return
    for name, texts in asked.items():
        long = [text for text in texts if encoder.length(text) > encoder.limit]
        if long:
            yield (
                f"{name}: {len(long)} of {len(texts)} prompts are longer than the {encoder.limit} tokens that {who[0]} "
                f"reads: what follows is read by {who[1]} alone, such as {_short(encoder.unread(long[0]))}"
            )


def _same(name: str, texts: Sequence[str], read: Callable[[str], Hashable], whose: str) -> Iterator[str]:
    first: dict[Hashable, str] = {}
    doubled = [(text, known) for text in texts if (known := first.setdefault(read(text), text)) != text]
    if doubled:
        text, known = doubled[0]
        yield (
            f"{name}: {len(doubled)} of {len(texts)} prompts are duplicates: {whose} reads {_short(text)} as "
            f"{_short(known)}"
        )


def _trained_on(prompts: PromptsConfig, read: Callable[[str], Hashable], how: str) -> Iterator[str]:
    """Yield how many held-out prompts are trained on; how a text is read counts where the texts differ."""
    trained = {read(text): text for text in prompts.train}
    exact = set(prompts.train) if how else set()
    shared = [text for text in prompts.evaluate if text not in exact and read(text) in trained]
    if shared:
        yield (
            f"prompts.evaluate: {len(shared)} of {len(prompts.evaluate)} prompts are trained on{how}, such as "
            f"{_short(shared[0])}; the held-out figures then judge prompts seen in training"
        )


def _short(text: str) -> str:
    """Return a text in quotes; of a long one its beginning and its end, in which long ones differ."""
    if len(text) <= 2 * _SHOWN:
        return repr(text)
    return f"{text[:_SHOWN]!r} … {text[-_SHOWN:]!r}"
