"""Checkpoints of trials, all or nothing.

A save writes its files into a fresh folder and, last, a manifest with the size and SHA-256 of each. A
folder without a manifest is an unfinished save. A load takes the newest save that verifies.
"""

import hashlib
import json
from typing import Any

from orchestrator.results import layout
from orchestrator.results.files import Files

KEEP = 2
"""Complete saves kept per trial: the newest, and one to fall back to."""


def save(files: Files, trial_id: str, step: int, content: dict[str, bytes]) -> None:
    """Write a checkpoint, then remove those that are no longer needed.

    Args:
        files: Files of the sweep.
        trial_id: The trial; one process at a time saves it.
        step: Optimiser steps done.
        content: Files by name; names are single path components other than ``manifest.json``.

    Raises:
        StorageError: It cannot be written.
    """
    older = _saves(files, trial_id)
    folder = layout.checkpoint(trial_id, older[0][0] + 1 if older else 0, step)
    manifest: dict[str, Any] = {"step": step, "files": {}}
    for name, data in content.items():
        if layout.check_name(name, "a checkpoint file") == layout.MANIFEST:
            raise ValueError(f"a checkpoint file cannot be called {layout.MANIFEST}")
        files.write(f"{folder}/{name}", data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files.write(f"{folder}/{layout.MANIFEST}", json.dumps(manifest).encode())

    kept = 1
    for _, _, path in older:
        # By size only: hashing every older save would cost more than the save itself.
        if kept < KEEP and _read(files, path, verify=False) is not None:
            kept += 1
        else:
            # First, so that a removal that is interrupted leaves an unfinished save, not a damaged one.
            files.remove(f"{path}/{layout.MANIFEST}")
            files.remove_folder(path)


def load(files: Files, trial_id: str, problems: dict[str, str]) -> tuple[int, dict[str, bytes]] | None:
    """Step and files of the newest checkpoint that verifies, or None if there is none.

    Args:
        files: Files of the sweep.
        trial_id: The trial.
        problems: Complete but damaged saves are noted here, by path.
    """
    for _, step, path in _saves(files, trial_id):
        content = _read(files, path, verify=True)
        if content is not None:
            return step, content
        if files.exists(f"{path}/{layout.MANIFEST}"):
            problems[path] = "damaged checkpoint, an older one is used"
    return None


def newest_step(files: Files, trial_id: str) -> int | None:
    """Step of a trial's newest save by its name, complete or not; nothing of it is read."""
    saves = _saves(files, trial_id)
    return saves[0][1] if saves else None


def _saves(files: Files, trial_id: str) -> list[tuple[int, int, str]]:
    """``(sequence, step, folder)`` of every save, complete or not, newest first."""
    root = layout.checkpoints(trial_id)
    parsed = ((layout.parse_checkpoint(name), f"{root}/{name}") for name in files.folders(root))
    return sorted(((key[0], key[1], path) for key, path in parsed if key is not None), reverse=True)


def _read(files: Files, folder: str, *, verify: bool) -> dict[str, bytes] | None:
    """Files of one save if it is complete and undamaged; without ``verify`` only sizes are compared."""
    try:
        listed = json.loads(files.read(f"{folder}/{layout.MANIFEST}"))["files"]
        if any(files.size(f"{folder}/{name}") != entry["size"] for name, entry in listed.items()):
            return None
        if not verify:
            return {}
        content = {name: files.read(f"{folder}/{name}") for name in listed}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    intact = all(
        hashlib.sha256(content[name]).hexdigest() == entry["sha256"] for name, entry in listed.items()
    )
    return content if intact else None
