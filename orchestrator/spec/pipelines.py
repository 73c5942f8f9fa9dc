"""A pipeline in a directory of this machine, looked at before anything is started.

What can be seen without torch: whether the directory and its components are there. Loading says the rest.
"""

from pathlib import Path

from orchestrator.spec.problems import Problem
from trainers.config import EMBEDDED, ModelConfig

COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
"""Folders that training needs of a pipeline in diffusers format."""

_INDEX = "model_index.json"


def directory_problems(model: ModelConfig) -> list[Problem]:
    """Return what is wrong with the directory that a model names, if it names one; a hub id is left alone."""
    source = model.pretrained
    if source is None or source == EMBEDDED:
        return []
    rule = _mistake(source)
    return [] if rule is None else [Problem(path=("model", "pretrained"), rule=rule, value=source)]


def _mistake(source: str) -> str | None:
    """Return the rule that a directory breaks, or None."""
    if source.startswith("~"):
        return "a ~ is not expanded: write the directory in full"
    directory = Path(source)
    try:
        held = sorted(path.name for path in directory.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        # A hub id is OWNER/NAME or NAME, so anything else with a slash is meant as a path.
        if source.startswith(".") or directory.is_absolute() or source.count("/") > 1:
            return f"cannot be read as a directory: {getattr(error, 'strerror', None) or error}"
        return None
    if _INDEX not in held:
        shown = ", ".join(held[:8]) or "nothing"
        return f"is not a pipeline in diffusers format: it has no {_INDEX} (it holds: {shown})"
    if missing := [part for part in COMPONENTS if not (directory / part).is_dir()]:
        return f"lacks the component(s) {', '.join(missing)}"
    return None
