"""The text side of a pipeline: every text is encoded once, in a batch, and then the encoders can go.

They compute on the CPU, in the precision that they are stored in, and what they say is kept there: a network is given
the rows that it is asked with. Kernels round by the size of a batch, so the batches of a list of texts hang on the list
alone: a trial that is resumed, or packed with others, reads the same to the last bit.
"""

import gc
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

from trainers.models.families.base import Conditions, NetworkFamily
from trainers.pipelines.asking import Asked

BATCH = 8
"""Texts that are encoded at a time: of the largest encoders hidden states of all layers are some GiB then."""


class Texts(Protocol):
    """Says what a network is told of texts."""

    def encode(self, batch: tuple[str, ...], asked: Asked) -> Conditions:
        """Return the conditions of a batch, ``[n, …]``, on the CPU."""

    def away(self, asked: Asked) -> Conditions:
        """Return those that guidance leads away from, ``[1, …]``."""

    def let_go(self) -> None:
        """Free what is needed only for texts that have not been encoded."""


class TextEncoders(Texts):
    """Those of a pipeline of diffusers; gone, they come back when a new text is asked for."""

    def __init__(
        self,
        family: NetworkFamily,
        pipeline: Any,
        dtype: torch.dtype,
        again: Callable[[], Any],
    ) -> None:
        """Take a pipeline whose text encoders are loaded.

        Args:
            family: Its.
            pipeline: Of diffusers.
            dtype: Of the conditions.
            again: Loads the pipeline's text side, without its other networks.
        """
        self._family, self._pipeline, self._dtype, self._again = family, pipeline, dtype, again
        form = family.form
        self._names = [
            name for name in (*form.text_encoders, *form.optional) if getattr(pipeline, name) is not None
        ]
        self._known: dict[Hashable, Conditions] = {}

    def encode(self, batch: tuple[str, ...], asked: Asked) -> Conditions:
        """Return the conditions of a batch, ``[n, …]``, on the CPU."""
        return self._once(batch, asked, lambda: self._family.encode(self._pipeline, list(batch), asked))

    def away(self, asked: Asked) -> Conditions:
        """Return those that guidance leads away from, ``[1, …]``."""
        return self._once(
            (None, asked.negative_prompt), asked, lambda: self._family.away(self._pipeline, asked)
        )

    def let_go(self) -> None:
        """Free the encoders' memory."""
        for name in self._names:
            setattr(self._pipeline, name, None)
        gc.collect()

    def _once(self, what: Hashable, asked: Asked, find: Callable[[], Conditions]) -> Conditions:
        key = what, asked.size, asked.told, asked.tokens
        if key not in self._known:
            self._come_back()
            with torch.no_grad():
                found = find()
            self._known[key] = found.each(lambda value: value.to(self._dtype))
        return self._known[key]

    def _come_back(self) -> None:
        if all(getattr(self._pipeline, name) is not None for name in self._names):
            return
        fresh = self._again()
        for name in self._names:
            setattr(self._pipeline, name, getattr(fresh, name).requires_grad_(requires_grad=False).eval())


class Reader:
    """Conditions text by text, as one network is asked; those of a list are encoded beside their neighbours in it."""

    def __init__(self, texts: Texts, asked: Asked, listed: Sequence[str] = ()) -> None:
        """Begin with nothing read.

        Args:
            texts: Who knows what they say.
            asked: What is told with every text.
            listed: Texts of which all will be asked for; others are encoded one by one.
        """
        self._texts, self._asked = texts, asked
        known = tuple(dict.fromkeys(listed))
        batches = [known[first : first + BATCH] for first in range(0, len(known), BATCH)]
        self._batches = {text: batch for batch in batches for text in batch}
        self._rows: dict[str, Conditions] = {}
        self._unread = bool(known)

    def of(self, text: str) -> Conditions:
        """Return the conditions of a text, ``[1, …]``, as long as it is."""
        if text not in self._rows:
            batch = self._batches.get(text, (text,))
            rows = self._texts.encode(batch, self._asked).rows()
            self._rows.update(zip(batch, rows, strict=True))
        return self._rows[text]

    def away(self) -> Conditions:
        """Return those that guidance leads away from, ``[1, …]``."""
        (row,) = self._texts.away(self._asked).rows()
        return row

    def read_list(self) -> None:
        """Encode what of the list is not yet, and let the encoders go; the second time it does nothing."""
        if self._unread:
            self._unread = False
            for text in self._batches:
                self.of(text)
            if self._asked.free is not None:
                self.away()
            self._texts.let_go()
