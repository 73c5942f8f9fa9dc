"""What nothing refers to any more: samples of pretrained models, checkpoints of trials; and whole sweeps."""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.results import layout
from orchestrator.results.files import Files, addresses
from orchestrator.results.sample_cache import FOLDER


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Files that can go together."""

    what: str
    folder: str
    """Path or URI of the folder that they lie in."""
    names: tuple[str, ...]
    """In the folder."""
    size: int
    """Bytes."""
    whole: bool = True
    """Whether nothing else lies in the folder, which goes too."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "names": list(self.names)}

    def remove(self) -> None:
        """Remove them.

        Raises:
            StorageError: They cannot be removed; the first of them may be gone.
        """
        files = Files(self.folder)
        for name in self.names:
            files.remove(name)
        if self.whole:
            files.remove_folder("")


def unused_samples(storage: str, kept: Collection[str]) -> Iterator[Garbage]:
    """Yield the samples of a storage under other keys than these."""
    folder = addresses.join(storage, FOLDER)
    sizes = Files(folder).sizes()
    for key in sorted({name.partition(".")[0] for name in sizes if not name.startswith(".")} - set(kept)):
        names = tuple(sorted(name for name in sizes if name.partition(".")[0] == key))
        size = sum(sizes[name] for name in names)
        yield Garbage(what=f"samples {key}", folder=Files(folder).url(), names=names, size=size, whole=False)


def unused_checkpoints(sweep: str, kept: Collection[str], among: Collection[str]) -> Iterator[Garbage]:
    """Yield the checkpoints in a sweep's directory of those trials that are not among the kept ones."""
    for trial_id in sorted(set(among) - set(kept)):
        files = Files(addresses.join(sweep, layout.checkpoints(trial_id)))
        if not (sizes := files.sizes()):
            continue
        # A folder without its manifest counts as unfinished, whatever else is left of it.
        names = sorted(sizes, key=lambda name: (not name.endswith(layout.MANIFEST), name))
        yield Garbage(
            what=f"checkpoints of {trial_id}",
            folder=files.url(),
            names=tuple(names),
            size=sum(sizes.values()),
        )


def whole_sweep(sweep: str) -> Garbage:
    """Return all files of a sweep's directory; its spec goes last, until then it can be removed again."""
    files = Files(sweep)
    sizes = files.sizes()
    names = tuple(sorted(sizes, key=lambda name: (name == layout.SPEC, name)))
    return Garbage(what="the sweep", folder=files.url(), names=names, size=sum(sizes.values()))
