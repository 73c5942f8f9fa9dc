"""Weights of the rewards: found on the hub or in a directory, never unpickled, one copy per process.

A source is a hub id, a directory, or a file, and of a CLIP also ``embedded`` for the shipped one. The hub is the
one that ``HF_ENDPOINT`` names.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined] # not in its list of exports
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainers.config import EMBEDDED
from trainers.reward_parameters import IMAGE_REWARD_PARAMETERS
from trainers.rewards.revisions import revision_of

T = TypeVar("T")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_EMBEDDED_CLIP = Path(__file__).parents[1] / "models" / "embedded" / "weights" / "clip"
_NOT_FOUND = (OSError, HfHubHTTPError, HFValidationError)
_UNREADABLE = (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError)
_shared: dict[tuple[str, ...], Any] = {}


def shared(key: tuple[str, ...], load: Callable[[], T]) -> T:
    """Return what ``load`` returned the first time for this key (kind, source, precision and the like).

    Rewards that read the same weights share one copy, which follows the samples from device to device.
    """
    at = (*key, *(revision_of(part) or "" for part in key))
    if at not in _shared:
        _shared[at] = load()
    found: T = _shared[at]
    return found


def located(source: str) -> str:
    """Return the directory of the shipped CLIP for ``embedded``, or the source of a CLIP itself."""
    return str(_EMBEDDED_CLIP) if source == EMBEDDED else source


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a precision.

    Raises:
        ValueError: it is not one of ours.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    return DTYPES[precision]


def frozen(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the network in evaluation mode, without gradients to its weights."""
    return network.to(dtype=dtype).eval().requires_grad_(requires_grad=False)


def unavailable(reward: str, parameter: str, source: str, reason: object) -> ValueError:
    """Return the error of a source that cannot be loaded: which, why, and what to do."""
    text = str(reason).strip().split("\n", 1)[0].rstrip(".")
    if Path(source).is_absolute() or Path(source).exists():
        known = IMAGE_REWARD_PARAMETERS[reward].model_fields
        published = known[parameter].default or known["model"].default
        advice = f"Fetch the published files with `hf download {published} --local-dir {source}`"
    else:
        advice = (
            f"Fetch it with `hf download {source}` where the hub can be reached (HF_ENDPOINT names another)"
        )
    return ValueError(
        f"reward {reward!r}: cannot load {parameter} {source!r} ({text}). {advice}, or set `{parameter}:` to a "
        "directory that has it"
    )


def pretrained(reward: str, parameter: str, cls: Any, source: str, **options: Any) -> Any:
    """Return ``cls.from_pretrained(source)``, where ``parameter`` is the reward's name for the source.

    Raises:
        ValueError: the source is absent, unreadable, or lacks weights of the architecture.
    """
    model = issubclass(cls, nn.Module)
    if model:
        options["output_loading_info"] = True
    if (revision := revision_of(source)) is not None:
        options["revision"] = revision
    try:
        loaded = cls.from_pretrained(source, local_files_only=_only_cached(source), **options)
    except (*_NOT_FOUND, *_UNREADABLE, ValueError) as error:
        raise unavailable(reward, parameter, source, _absence(source, error)) from error
    if not model:
        return loaded
    network, report = loaded
    if report["missing_keys"]:  # the library would go on with random values
        raise unavailable(reward, parameter, source, f"it lacks {_some(report['missing_keys'])}")
    return network


def holds(source: str, name: str) -> bool:
    """Return whether a source has a file of this name."""
    try:
        _locate(source, name)
    except _NOT_FOUND:
        return False
    return True


def find_file(reward: str, parameter: str, source: str, names: Sequence[str]) -> Path:
    """Return the first of these files that a source has.

    Raises:
        ValueError: it has none of them.
    """
    if Path(source).is_file():
        return Path(source)
    reason: object = None
    for name in names:
        try:
            return _locate(source, name)
        except _NOT_FOUND as error:
            reason = error
    reason = f"none of {', '.join(names)} is there: {_absence(source, reason)}"
    raise unavailable(reward, parameter, source, reason)


def _locate(source: str, name: str) -> Path:
    if Path(source).is_file():
        raise FileNotFoundError(f"{source} is a file")
    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise FileNotFoundError(f"no file {name} in {source}")
        return Path(source) / name
    return Path(
        hf_hub_download(source, name, revision=revision_of(source), local_files_only=_only_cached(source))
    )


def _only_cached(source: str) -> bool:
    """Return whether the hub is not to be asked: the source is local, or there is no way to the hub."""
    return Path(source).is_absolute() or Path(source).exists() or not _reachable()


def _absence(source: str, error: object) -> object:
    """Return the reason of an absence; the client's own message about a hub out of reach misleads."""
    if Path(source).is_absolute() or Path(source).exists() or _reachable():
        return error
    return f"{constants.ENDPOINT} cannot be reached or HF_HUB_OFFLINE is set, and the cache has no copy"


@cache
def _reachable() -> bool:
    """Ask the hub once per process: its client repeats every request for 20 seconds where there is no network."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.DEFAULT_ETAG_TIMEOUT)
    except (OSError, httpx.HTTPError):
        return False
    return True


def load_state(reward: str, parameter: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, ``.safetensors`` or torch.

    Raises:
        ValueError: the file is damaged, or holds Python objects beside tensors: they would run code when loaded.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"reward {reward!r}: {parameter} {str(path)!r} is refused, because it holds more than tensors and "
            "loading it could run any code. Save its state_dict() as .safetensors where you trust it, and set "
            f"`{parameter}:` to that file"
        ) from error
    except (*_UNREADABLE, OSError) as error:
        raise unavailable(reward, parameter, str(path), error) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise unavailable(reward, parameter, str(path), "it is not a state dictionary")
    return dict(loaded)


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names begin with ``prefix``, without it; all of them when none does."""
    found = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    return found or dict(state)


def fill(reward: str, parameter: str, source: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dictionary that must fit exactly.

    Raises:
        ValueError: names or shapes differ.
    """
    state = {name: value.float() for name, value in state.items() if not name.endswith("position_ids")}
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).replace("\n\t", " ")
        raise unavailable(reward, parameter, source, reason) from error
    if missing or unexpected:
        lacks = f"it lacks {_some(missing)}" if missing else f"it also has {_some(unexpected)}"
        raise unavailable(reward, parameter, source, f"not this architecture: {lacks}")


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
