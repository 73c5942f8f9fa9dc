"""The adapter: what it adds, its switch, and its files."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load
from support import tiny_pipeline

from trainers.config import LoraConfig
from trainers.models.lora import CONFIG, WEIGHTS, Adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("pipeline"))


def predict(pipeline: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, text = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 9, 12, generator=generator)
    with torch.no_grad():
        output: torch.Tensor = pipeline.unet(latents, 500, encoder_hidden_states=text).sample  # type: ignore[attr-defined]
    return output


def randomise(adapter: Adapter) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    "targets", [("to_q", "to_k", "to_v", "to_out.0"), ("to_v",), ("attn2.to_k", "conv1")]
)
def test_only_the_targets_are_trained(folder: Path, targets: tuple[str, ...]) -> None:
    pipeline = tiny_pipeline.plain(folder)
    pipeline.unet.requires_grad_(requires_grad=False)
    layers = [name for name, _ in pipeline.unet.named_modules() if name.endswith(targets)]
    before = predict(pipeline)
    adapter = Adapter(pipeline.unet, LoraConfig(rank=3, targets=targets))
    parameters = adapter.parameters()
    assert {name.split(".lora_")[0] for name in parameters} == set(layers)
    assert len(parameters) == 2 * len(layers)
    assert {id(p) for p in pipeline.unet.parameters() if p.requires_grad} == {
        id(p) for p in parameters.values()
    }
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert torch.equal(predict(pipeline), before)


def test_the_matrices_stay_in_full_precision(folder: Path) -> None:
    unet = tiny_pipeline.plain(folder).unet.to(torch.bfloat16)
    assert {p.dtype for p in Adapter(unet, LoraConfig()).parameters().values()} == {torch.float32}


def test_the_switch_leaves_the_base_and_the_gradients(folder: Path) -> None:
    pipeline = tiny_pipeline.plain(folder)
    base = predict(pipeline)
    adapter = Adapter(pipeline.unet, LoraConfig())
    randomise(adapter)
    adapted = predict(pipeline)
    assert (adapted - base).abs().amax() > 1e-3
    adapter.switch(on=False)
    assert torch.equal(predict(pipeline), base)
    assert all(p.requires_grad for p in adapter.parameters().values())
    adapter.switch(on=True)
    assert torch.equal(predict(pipeline), adapted)


@pytest.mark.parametrize(("rank", "alpha"), [(4, None), (2, 5.0), (4, 1.0)])
def test_a_plain_pipeline_reads_the_files(
    folder: Path, tmp_path: Path, rank: int, alpha: float | None
) -> None:
    pipeline = tiny_pipeline.plain(folder)
    adapter = Adapter(pipeline.unet, LoraConfig(rank=rank, alpha=alpha))
    randomise(adapter)
    adapted = predict(pipeline)
    adapter.switch(on=False)  # as after a reference rollout
    files = adapter.files()
    assert set(files) == {WEIGHTS, CONFIG}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    fresh = tiny_pipeline.plain(folder)
    base = predict(fresh)
    fresh.load_lora_weights(tmp_path)
    torch.testing.assert_close(predict(fresh), adapted, rtol=1e-5, atol=1e-6)
    fresh.unload_lora_weights()
    torch.testing.assert_close(predict(fresh), base)


def test_the_files_say_what_they_are(folder: Path) -> None:
    adapter = Adapter(
        tiny_pipeline.plain(folder).unet, LoraConfig(rank=2, alpha=5.0, targets=("to_q", "to_v"))
    )
    files = adapter.files()
    config = json.loads(files[CONFIG])
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 5.0, ["to_q", "to_v"])
    assert peft.LoraConfig(**config).r == 2
    tensors = load(files[WEIGHTS])
    assert len(tensors) == len(adapter.parameters())
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(name.startswith("unet.") for name in tensors)
    assert all(adapter.files() == files for _ in range(8))


def test_files_can_be_put_back(folder: Path) -> None:
    one, other = (Adapter(tiny_pipeline.plain(folder).unet, LoraConfig(alpha=3.0)) for _ in range(2))
    randomise(one)
    assert one.files() != other.files()
    held = other.parameters()
    other.load(one.files())
    assert one.files() == other.files()
    for name, parameter in other.parameters().items():
        assert parameter is held[name]  # an optimiser goes on with it
        assert parameter.requires_grad
        assert torch.equal(parameter, one.parameters()[name])


def test_files_of_another_adapter_are_refused(folder: Path) -> None:
    adapter = Adapter(tiny_pipeline.plain(folder).unet, LoraConfig(rank=2))
    other = Adapter(tiny_pipeline.plain(folder).unet, LoraConfig(rank=4))
    with pytest.raises(ValueError, match="another rank or other targets"):
        adapter.load(other.files())
    with pytest.raises(ValueError, match=r"needs pytorch_lora_weights\.safetensors, got nothing"):
        adapter.load({})


def test_targets_that_match_nothing_are_named(folder: Path) -> None:
    unet = tiny_pipeline.plain(folder).unet
    with pytest.raises(
        ValueError, match=r"model\.lora\.targets: none of query, key ends the name .*to_q, to_k"
    ):
        Adapter(unet, LoraConfig(targets=("query", "key")))
