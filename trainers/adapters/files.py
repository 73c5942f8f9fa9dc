"""Which files of a directory are its adapter: the one place that says so, to whoever reads, digests or carries one."""

from pathlib import Path

WEIGHTS = "pytorch_lora_weights.safetensors"
"""As diffusers names it."""
PEFT_WEIGHTS = "adapter_model.safetensors"
"""As peft names it."""
CONTROL = "control.safetensors"
"""The residual of a mixture: it is no LoRA, and cdsweep reads it."""
FRONTIER_LORA = "frontier_lora.safetensors"
"""A LoRA for a box of thresholds, with gates on its columns: a plain one at every tilt."""
MULTIPLIERS = "multipliers.json"
"""Beside a residual for a box of thresholds: those of the nodes, and the multipliers there."""
LOOKS = "looks.safetensors"
"""Beside it, of a pipeline: what held-out samples came to at some multipliers, which tells of those between."""
CARD = "README.md"
"""The model card beside the weights, as the hub names it."""
CONFIG = "adapter_config.json"
"""Settings of peft beside the weights: the strength, where the weights do not say it."""

_SUFFIX = ".safetensors"


def weights_file(directory: Path) -> Path:
    """Return the file of an adapter's matrices: of diffusers' name, else of peft's, else the only one there is.

    Raises:
        ValueError: There is none, or there are several of other names; says what the directory holds.
        OSError: The directory cannot be read.
    """
    held = sorted(path.name for path in directory.iterdir())
    weights = [name for name in held if name.endswith(_SUFFIX)]
    name = next((name for name in (WEIGHTS, PEFT_WEIGHTS) if name in weights), None)
    if name is None:
        if not weights:
            raise ValueError(f"it has no {WEIGHTS}, it holds: {', '.join(held[:8]) or 'nothing'}")
        if len(weights) > 1:
            raise ValueError(
                f"it has several files of weights and none is called {WEIGHTS}: {', '.join(weights[:8])}; "
                "leave the one that is meant, or give it that name"
            )
        name = weights[0]
    if not (directory / name).is_file():
        raise ValueError(f"{name} is not a file")
    return directory / name


def defining_files(directory: Path) -> tuple[Path, ...]:
    """Return the files that an adapter consists of, weights first; any other in the directory is not read.

    Raises:
        ValueError: As ``weights_file``.
        OSError: The directory cannot be read.
    """
    config = directory / CONFIG
    return (weights_file(directory), config) if config.is_file() else (weights_file(directory),)
