"""Groups of samples that are dealt to workers in chunks."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trainers.composition.networks.chains import Chains
from trainers.evaluate import SHOWN
from trainers.models.base import Draw
from trainers.workers.collective import Collective, Shard


class Deal:
    """The chunks of one worker, drawn in turn; and the noise and prompts of all, once they are."""

    def __init__(
        self,
        chains: Chains,
        groups: int,
        size: int,
        seed: int,
        *,
        held_out: bool,
        share: Collective | Shard,
    ) -> None:
        """Take what ``Chains.draw`` is asked for, and the workers."""
        self._chains, self._groups, self._size, self._seed = chains, groups, size, seed
        self._held_out, self._share = held_out, share
        # About a chunk of samples at a time, and all that are shown in one.
        self._at_once = max(chains.chunk // size, -(-SHOWN // size))
        self._seeds: list[NDArray[np.int64]] = []
        self._prompts: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, Draw]]:
        """Yield the number of a first group, and the draw of its chunk."""
        for chunk, start in enumerate(range(0, self._groups, self._at_once)):
            count = min(self._at_once, self._groups - start)
            draw = self._chains.draw(count, self._size, self._seed, first=start, held_out=self._held_out)
            self._seeds.append(draw.seeds)
            self._prompts.extend(draw.prompts or ())
            if chunk % self._share.world_size == self._share.rank:
                yield start, draw

    @property
    def seeds(self) -> NDArray[np.int64]:
        """Numbers of the noise, ``[groups · size]``."""
        return np.concatenate(self._seeds)

    @property
    def prompts(self) -> tuple[str, ...] | None:
        """Of every sample; None where the models have none."""
        return tuple(self._prompts) or None
