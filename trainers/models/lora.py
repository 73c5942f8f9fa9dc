"""Low-rank adapters on a UNet by peft, and their files in the diffusers format: one to train, several to compose."""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainers.adapters.files import CONFIG, WEIGHTS, weights_file
from trainers.config import LoraConfig


class Adapter:
    """The adapter of one UNet: trainable, and switched off for the reference."""

    def __init__(self, unet: Any, config: LoraConfig, name: str = "default") -> None:
        """Add it to the UNet, beside what is there under other names; its update is zero at first.

        Raises:
            ValueError: no layer has a name that ends in one of the targets.
        """
        self._unet, self._name = unet, name
        self._config = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha or config.rank,  # type: ignore[arg-type] # a ratio, as good as a float
            target_modules=list(config.targets),
            init_lora_weights="gaussian",
        )
        try:
            with _beside_others():
                unet.add_adapter(self._config, name)
        except ValueError as error:
            raise ValueError(
                f"model.lora.targets: none of {', '.join(config.targets)} ends the name of a layer of the UNet; "
                "attention projections are to_q, to_k, to_v, to_out.0"
            ) from error
        self._layers = _layers(unet)
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the adapter's matrices by name, float32."""
        return _matrices(self._unet, self._name)

    def switch(self, *, on: bool) -> None:
        """Switch the adapter on, and others off, or all off, for the calls that follow."""
        _activate(self._layers, [self._name] if on else [])

    def files(self) -> dict[str, bytes]:
        """Return the files that ``pipeline.load_lora_weights(DIRECTORY)`` reads."""
        layers = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in peft.get_peft_model_state_dict(self._unet, adapter_name=self._name).items()
        }
        config = {key: _plain(value) for key, value in self._config.to_dict().items()}  # type: ignore[no-untyped-call] # peft's
        with tempfile.TemporaryDirectory() as folder:
            StableDiffusionPipeline.save_lora_weights(
                folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config
            )
            weights = (Path(folder) / WEIGHTS).read_bytes()
        return {
            WEIGHTS: _ordered(weights),
            CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        }

    def load(self, files: Mapping[str, bytes]) -> None:
        """Take the matrices of ``files()``.

        Raises:
            ValueError: they do not fit this UNet and this rank.
        """
        if WEIGHTS not in files:
            raise ValueError(f"an adapter needs {WEIGHTS}, got {', '.join(sorted(files)) or 'nothing'}")
        tensors = {
            name.removeprefix("unet."): tensor
            for name, tensor in safetensors.torch.load(files[WEIGHTS]).items()
        }
        expected = peft.get_peft_model_state_dict(self._unet, adapter_name=self._name)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
            raise ValueError("the adapter does not fit this UNet, or has another rank or other targets")
        peft.set_peft_model_state_dict(self._unet, tensors, adapter_name=self._name)


class FrozenAdapters:
    """Several adapters on one UNet, of which one acts, a weighted sum, or none."""

    def __init__(self, unet: Any) -> None:
        """Begin with none."""
        self._unet = unet
        self._layers: list[LoraLayer] = []

    def add(self, name: str, directory: Path) -> None:
        """Add what ``pipeline.load_lora_weights(directory)`` reads, of any rank, in the precision of the UNet.

        Raises:
            ValueError: there is no adapter, or it does not fit this UNet; says why.
        """
        tensors, alphas, settings = _read(directory)
        try:
            with _beside_others():
                self._unet.load_lora_adapter(
                    tensors,
                    prefix="unet",
                    network_alphas=alphas,
                    metadata=settings,
                    adapter_name=_known_as(name),
                )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{directory} does not fit the base: {_telling(error)}") from error
        found = _matrices(self._unet, _known_as(name))
        if len(found) != len(tensors):
            raise ValueError(
                f"{directory} does not fit the base: it has {len(tensors)} matrices, and the base layers for "
                f"{len(found)} of them"
            )
        for matrix in found.values():
            matrix.requires_grad = False
        self._layers = _layers(self._unet)

    def trainable(self, config: LoraConfig, name: str) -> Adapter:
        """Return a fresh adapter beside these, trained while they stay frozen.

        Raises:
            ValueError: no layer has a name that ends in one of the targets.
        """
        adapter = Adapter(self._unet, config, name)
        self._layers = _layers(self._unet)
        return adapter

    def use(self, weights: Mapping[str, float]) -> None:
        """Add ``Σ w_i ΔW_i`` to the UNet's weights in the calls that follow: nothing where there are no weights."""
        for layer in self._layers:
            for name, weight in weights.items():
                layer.set_scale(_known_as(name), weight)
        _activate(self._layers, [_known_as(name) for name in weights])


def _known_as(name: str) -> str:
    """Return the name for peft, which takes it out of the names of matrices by search: no layer's may contain it."""
    return f"model-{name}"


@contextmanager
def _beside_others() -> Iterator[None]:
    """Leave out peft's warning that there are several adapters: there are meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def _layers(unet: Any) -> list[LoraLayer]:
    return [module for module in unet.modules() if isinstance(module, LoraLayer)]


def _matrices(unet: Any, name: str) -> dict[str, nn.Parameter]:
    """Return the matrices of one adapter by their names in the UNet."""
    return {key: p for key, p in unet.named_parameters() if ".lora_" in key and f".{name}." in key}


def _activate(layers: Sequence[LoraLayer], names: list[str]) -> None:
    """Let these adapters act.

    Not by ``set_adapter`` and ``disable_adapters``: those also flip ``requires_grad`` of every matrix, twice per step.
    """
    for layer in layers:
        layer._disable_adapters = not names  # noqa: SLF001 - see above
        if names:
            layer._active_adapter = names  # noqa: SLF001 - see above


def _read(directory: Path) -> tuple[dict[str, Tensor], dict[str, float] | None, dict[str, Any] | None]:
    """Return matrices, and alphas or settings where a file states them, as diffusers names them.

    Raises:
        ValueError: there is no adapter of a UNet alone in the directory.
    """
    try:
        name = weights_file(directory).name
    except ValueError as error:
        raise ValueError(f"{directory} has no adapter: {error}") from error
    try:
        tensors, alphas, settings = StableDiffusionPipeline.lora_state_dict(
            str(directory),
            weight_name=name,
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
        )
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{directory} cannot be read as an adapter: {_telling(error)}") from error
    if any(name.startswith("text_encoder") for name in tensors):
        raise ValueError(
            f"{directory} adapts the text encoder too: models of one composition share it, so only adapters of the "
            "UNet alone compose"
        )
    strange = sorted(name for name in tensors if not (name.startswith("unet.") and "lora" in name))
    if strange or any("magnitude" in name for name in tensors):
        raise ValueError(
            f"{directory} is not a plain LoRA adapter of a UNet in the diffusers format"
            + (f": it holds {strange[0]}" if strange else " (updates of DoRA do not add up)")
        )
    beside = directory / CONFIG
    if not alphas and not settings and beside.is_file():
        # peft's own files state alpha here alone; diffusers would take the rank for it.
        settings = {f"unet.{key}": value for key, value in json.loads(beside.read_bytes()).items()}
    return tensors, alphas, settings


def _telling(error: Exception) -> str:
    """Return the line of an error that says most."""
    lines = [line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), lines[0] if lines else repr(error))


def _ordered(weights: bytes) -> bytes:
    """Return a safetensors file with its header in order: equal adapters are equal files."""
    size = int.from_bytes(weights[:8], "little")
    header = json.dumps(json.loads(weights[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format's alignment
    return len(header).to_bytes(8, "little") + header + weights[8 + size :]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
