"""What an adapter is known by: the digest of what it does, wherever it lies."""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainers.adapters.files import CONFIG, weights_file
from trainers.adapters.forms import STRENGTH
from trainers.adapters.header import STATED, header_of


def adapter_digest(directory: Path) -> str:
    """Return the SHA-256 of what an adapter does: of its weights file, with the settings beside it where they count.

    Where the file itself states its strength, ``adapter_config.json`` has no say in it, and does not count.

    Raises:
        OSError: It cannot be read.
        ValueError: There is no file of weights, or it is no file of safetensors.
    """
    with weights_file(directory).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if settings := _settings_beside(directory):
        digest.update(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()


def _settings_beside(directory: Path) -> dict[str, Any]:
    """Return what ``adapter_config.json`` says of the effect of weights that do not say it themselves."""
    header, beside = header_of(directory), directory / CONFIG
    stated = any(name.endswith(".alpha") for name in header.shapes) or STATED in header.metadata
    if stated or not beside.is_file():
        return {}
    content = beside.read_bytes()
    try:
        config = json.loads(content)
    except ValueError:
        config = None
    if not isinstance(config, dict):  # loading says that it is damaged
        return {CONFIG: hashlib.sha256(content).hexdigest()}
    # Any other setting either does not matter or is refused.
    # What is off or empty is as if it were left out; a strength of 0 is not, without one it is 1.
    said = {key: config[key] for key in STRENGTH if config.get(key) is not None}
    return {key: value for key, value in said.items() if value is not False and value != {}}
