"""Adapters of the embedded pipeline that are shipped, by name: each a directory in the diffusers LoRA format."""

from difflib import get_close_matches
from pathlib import Path

SHIPPED = Path(__file__).parent / "adapters"


def shipped_adapters() -> tuple[str, ...]:
    """Return the names of the shipped adapters."""
    return tuple(sorted(weights.parent.name for weights in SHIPPED.glob("*/*.safetensors")))


def adapter_directory(source: str) -> Path:
    """Return the directory of a shipped adapter, or of one that is named by its path.

    Raises:
        ValueError: there is no such directory; lists the shipped ones.
    """
    shipped = shipped_adapters()
    if source in shipped:
        return SHIPPED / source
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_file():
        raise ValueError(f"{source} is a file; give the directory that holds it")
    near = get_close_matches(source, shipped, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"there is no directory {source}, and no shipped adapter of that name "
        f"(shipped: {', '.join(shipped) or 'none'}){meant}"
    )
