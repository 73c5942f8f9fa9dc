"""The adapter: what it adds, its switch, and its files."""

import json
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load, save_file
from support import tiny_pipeline

from trainers.adapters.files import CONFIG, WEIGHTS
from trainers.config import LoraConfig
from trainers.models.embedded.adapters import SHIPPED, adapter_directory, shipped_adapters
from trainers.models.lora import Adapter, FrozenAdapters
from trainers.models.pipeline import EMBEDDED_DIRECTORY


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


# Several, frozen.


@pytest.fixture
def directory(folder: Path, tmp_path: Path) -> Path:
    return tiny_pipeline.adapter(folder, tmp_path / "one", seed=1, rank=3, alpha=5.0)


def matrices(directory: Path) -> dict[str, torch.Tensor]:
    return load((directory / WEIGHTS).read_bytes())


def by_diffusers(folder: Path, directory: Path) -> torch.Tensor:
    pipeline = tiny_pipeline.plain(folder)
    pipeline.load_lora_weights(directory)
    return predict(pipeline)


def by_us(folder: Path, directory: Path) -> torch.Tensor:
    pipeline = tiny_pipeline.plain(folder)
    adapters = FrozenAdapters(pipeline.unet)
    adapters.add("one", directory)
    adapters.use({"one": 1.0})
    return predict(pipeline)


def moved(folder: Path, layers: Iterator[tuple[dict[str, torch.Tensor], float, float]]) -> torch.Tensor:
    """Predict with ``Σ w · scale · B A`` added to the weights themselves."""
    pipeline = tiny_pipeline.plain(folder)
    for tensors, scale, weight in layers:
        for name, down in tensors.items():
            if ".lora_A" in name:
                layer = pipeline.unet.get_submodule(name.removeprefix("unet.").split(".lora_A")[0])
                with torch.no_grad():
                    layer.weight += weight * scale * tensors[name.replace("lora_A", "lora_B")] @ down
    return predict(pipeline)


def test_one_adapter_is_what_diffusers_makes_of_the_directory(folder: Path, directory: Path) -> None:
    expected = by_diffusers(folder, directory)
    assert (expected - predict(tiny_pipeline.plain(folder))).abs().amax() > 1e-3
    assert torch.equal(by_us(folder, directory), expected)


def test_files_in_the_format_of_kohya(folder: Path, directory: Path) -> None:
    """Names with underscores, and an alpha for every layer."""
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in matrices(directory).items():
        layer, which = name.removeprefix("unet.").split(".lora_")
        key = "lora_unet_" + layer.replace(".", "_")
        renamed[f"{key}.lora_{'down' if which.startswith('A') else 'up'}.weight"] = tensor
        renamed[f"{key}.alpha"] = torch.tensor(5.0)
    before = by_us(folder, directory)
    (directory / CONFIG).unlink()
    save_file(renamed, directory / WEIGHTS)
    assert torch.equal(by_us(folder, directory), by_diffusers(folder, directory))
    torch.testing.assert_close(by_us(folder, directory), before, rtol=1e-5, atol=1e-6)


def test_a_file_without_settings_has_those_beside_it_or_alpha_equal_to_the_rank(
    folder: Path, directory: Path
) -> None:
    tensors, before = matrices(directory), by_us(folder, directory)
    save_file(tensors, directory / WEIGHTS)
    torch.testing.assert_close(by_us(folder, directory), before, rtol=1e-5, atol=1e-6)
    (directory / CONFIG).unlink()
    assert torch.equal(by_us(folder, directory), by_diffusers(folder, directory))
    torch.testing.assert_close(
        by_us(folder, directory), moved(folder, iter([(tensors, 1.0, 1.0)])), rtol=1e-4, atol=1e-5
    )
    assert (by_us(folder, directory) - before).abs().amax() > 1e-3


def test_layers_of_different_ranks(folder: Path, directory: Path) -> None:
    tensors = matrices(directory)
    for name in list(tensors):
        if "attn1" in name:
            tensors[name] = tensors[name][:1] if "lora_A" in name else tensors[name][:, :1]
        tensors[name] = tensors[name].contiguous()
    (directory / CONFIG).unlink()
    save_file(tensors, directory / WEIGHTS)
    torch.testing.assert_close(
        by_us(folder, directory), moved(folder, iter([(tensors, 1.0, 1.0)])), rtol=1e-4, atol=1e-5
    )


def test_weighted_sums_of_different_ranks_and_layers(folder: Path, directory: Path, tmp_path: Path) -> None:
    other = tiny_pipeline.adapter(
        folder, tmp_path / "two", seed=2, rank=1, alpha=2.0, targets=("to_v", "to_k")
    )
    pipeline = tiny_pipeline.plain(folder)
    base = predict(pipeline)
    adapters = FrozenAdapters(pipeline.unet)
    adapters.use({})  # before there are any
    assert torch.equal(predict(pipeline), base)
    adapters.add("one", directory)
    adapters.add("one-more", other)
    for weights in ({"one": 1.0}, {"one-more": 1.0}, {"one": 0.3, "one-more": 0.7}, {"one-more": -0.5}):
        adapters.use(weights)
        expected = moved(
            folder,
            (
                (matrices(directory if name == "one" else other), 5.0 / 3.0 if name == "one" else 2.0, weight)
                for name, weight in weights.items()
            ),
        )
        assert (expected - base).abs().amax() > 1e-3
        torch.testing.assert_close(predict(pipeline), expected, rtol=1e-4, atol=1e-5)
        adapters.use({})
        assert torch.equal(predict(pipeline), base)
    assert not any(p.requires_grad for name, p in pipeline.unet.named_parameters() if ".lora_" in name)


def test_a_trained_one_beside_frozen_ones(folder: Path, directory: Path) -> None:
    """In layers that the others lack as well, and none of it is left when the others act."""
    pipeline = tiny_pipeline.plain(folder)
    pipeline.unet.requires_grad_(requires_grad=False)
    adapters = FrozenAdapters(pipeline.unet)
    adapters.add("one", directory)
    adapters.use({"one": 0.5})
    half = predict(pipeline)
    student = adapters.trainable(LoraConfig(rank=1, targets=("to_q", "conv1")), "student")
    parameters = student.parameters()
    assert {id(p) for p in pipeline.unet.parameters() if p.requires_grad} == {
        id(p) for p in parameters.values()
    }
    assert len(parameters) == 2 * len(
        [
            name
            for name, _ in tiny_pipeline.plain(folder).unet.named_modules()
            if name.endswith(("to_q", "conv1"))
        ]
    )
    student.switch(on=True)
    assert torch.equal(predict(pipeline), predict(tiny_pipeline.plain(folder)))
    randomise(student)
    taught = predict(pipeline)
    adapters.use({"one": 0.5})
    assert torch.equal(predict(pipeline), half)
    adapters.use({})
    assert torch.equal(predict(pipeline), predict(tiny_pipeline.plain(folder)))
    assert all(p.requires_grad for p in parameters.values())
    for name, content in student.files().items():
        (directory / name).write_bytes(content)
    torch.testing.assert_close(by_diffusers(folder, directory), taught, rtol=1e-5, atol=1e-6)
    found = load(student.files()[WEIGHTS])
    assert not any("student" in name or "model" in name for name in found)


def test_names_that_are_parts_of_layers_and_of_one_another(folder: Path, directory: Path) -> None:
    pipeline = tiny_pipeline.plain(folder)
    adapters = FrozenAdapters(pipeline.unet)
    for name in ("attn1", "to_q", "keys", "a", "ab", "student", "default"):
        adapters.add(name, directory)
    adapters.trainable(LoraConfig(rank=2), "student").switch(on=True)
    adapters.use({"a": 1.0})
    assert torch.equal(predict(pipeline), by_us(folder, directory))


# What is no adapter of the base.


def test_a_directory_without_an_adapter(folder: Path, tmp_path: Path) -> None:
    adapters = FrozenAdapters(tiny_pipeline.plain(folder).unet)
    with pytest.raises(
        ValueError, match=r"has no adapter: it has no pytorch_lora_weights\.safetensors, it holds: nothing"
    ):
        adapters.add("a", tmp_path)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"it holds: pytorch_lora_weights\.bin"):
        adapters.add("a", tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cannot be read as an adapter"):
        adapters.add("a", tmp_path)


def test_an_adapter_of_another_base(directory: Path, tmp_path: Path) -> None:
    wider = tiny_pipeline.write(tmp_path / "wider", cross=16)
    with pytest.raises(ValueError, match=r"does not fit the base: size mismatch for .*lora_A"):
        FrozenAdapters(tiny_pipeline.plain(wider).unet).add("a", directory)


@pytest.mark.parametrize("settings", [True, False])
def test_an_adapter_of_layers_that_the_base_lacks(folder: Path, directory: Path, settings: bool) -> None:
    tensors = matrices(directory)
    for name in list(tensors):
        if "attn1.to_q" in name:
            tensors[name.replace("down_blocks.0", "down_blocks.7")] = tensors[name].clone()
    if not settings:
        (directory / CONFIG).unlink()
    save_file(tensors, directory / WEIGHTS)
    with pytest.raises(ValueError, match="does not fit the base"):
        by_us(folder, directory)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("text_encoder.encoder.layers.0.q_proj.lora_A.weight", "adapts the text encoder too"),
        ("base_model.model.mid_block.to_q.lora_A.weight", "not a plain LoRA adapter .* it holds base_model"),
        ("unet.mid_block.attentions.0.proj_in.lokr_w1", "not a plain LoRA adapter .* it holds unet.*lokr_w1"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "updates of DoRA do not add up"),
    ],
)
def test_what_does_not_compose(folder: Path, directory: Path, key: str, problem: str) -> None:
    save_file(matrices(directory) | {key: torch.zeros(2, 2)}, directory / WEIGHTS)
    with pytest.raises(ValueError, match=problem):
        by_us(folder, directory)


# Shipped ones.


def test_shipped_adapters_are_found_by_name() -> None:
    assert set(shipped_adapters()) >= {"saturation", "colourfulness", "contrast"}
    for name in shipped_adapters():
        assert adapter_directory(name) == SHIPPED / name
        unet = tiny_pipeline.plain(EMBEDDED_DIRECTORY).unet
        FrozenAdapters(unet).add(name, adapter_directory(name))
        assert any(isinstance(module, LoraLayer) for module in unet.modules())


def test_directories_of_adapters(directory: Path) -> None:
    assert adapter_directory(str(directory)) == directory
    with pytest.raises(ValueError, match=r"is a file; give the directory"):
        adapter_directory(str(directory / WEIGHTS))
    with pytest.raises(
        ValueError, match=r"no directory satuation, .*shipped: .*saturation.*did you mean saturation\?"
    ):
        adapter_directory("satuation")
