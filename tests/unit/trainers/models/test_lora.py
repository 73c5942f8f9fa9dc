"""The adapter: what it adds, its switch, and its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load, save, save_file
from support import tiny_pipeline
from support.tiers import further

from trainers.adapters.files import CONFIG, PEFT_WEIGHTS, WEIGHTS
from trainers.adapters.writing import folded, in_kohya_format
from trainers.config import LoraConfig
from trainers.models.embedded.adapters import SHIPPED, adapter_directory, shipped_adapters
from trainers.models.layers.frozen_lora import FrozenAdapters
from trainers.models.layers.trained_lora import Adapter
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


@pytest.mark.parametrize(("rank", "alpha"), [(4, None), (2, 5.0), *further((4, 1.0))])
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
    # What reads no metadata takes the rank for alpha, and has the same strength.
    tensors = load(files[WEIGHTS])
    torch.testing.assert_close(moved(folder, iter([(tensors, 1.0, 1.0)])), adapted, rtol=1e-4, atol=1e-5)
    (tmp_path / CONFIG).unlink()
    save_file(tensors, tmp_path / WEIGHTS)
    fresh.load_lora_weights(tmp_path)
    torch.testing.assert_close(predict(fresh), adapted, rtol=1e-5, atol=1e-6)


def test_the_files_say_what_they_are(folder: Path) -> None:
    adapter = Adapter(
        tiny_pipeline.plain(folder).unet, LoraConfig(rank=2, alpha=5.0, targets=("to_q", "to_v"))
    )
    files = adapter.files()
    config = json.loads(files[CONFIG])
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 2, ["to_q", "to_v"])
    assert peft.LoraConfig(**config).r == 2
    tensors = load(files[WEIGHTS])
    assert len(tensors) == len(adapter.parameters())
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(name.startswith("unet.") for name in tensors)
    assert all(adapter.files() == files for _ in range(8))


@pytest.mark.parametrize("alpha", [None, 2.0, 16.0])
def test_files_can_be_put_back(folder: Path, alpha: float | None) -> None:
    one, other = (Adapter(tiny_pipeline.plain(folder).unet, LoraConfig(alpha=alpha)) for _ in range(2))
    randomise(one)
    assert one.files() != other.files()
    held = other.parameters()
    other.load(one.files())
    assert one.files() == other.files()
    for name, parameter in other.parameters().items():
        assert parameter is held[name]  # an optimiser goes on with it
        assert parameter.requires_grad
        assert torch.equal(parameter, one.parameters()[name])


def in_the_old_way(adapter: Adapter, alpha: float) -> dict[str, bytes]:
    """Return files as they were once written: matrices as they are trained, alpha in metadata and settings."""
    files = adapter.files()
    rank = json.loads(files[CONFIG])["r"]
    tensors = load(files[WEIGHTS])
    unscaled = {name: t * (rank / alpha) if "lora_B" in name else t for name, t in tensors.items()}
    return tiny_pipeline.with_alpha(files | {WEIGHTS: save(unscaled)}, alpha)


@pytest.mark.parametrize("alpha", [8.0, 3.0])
def test_files_of_any_strength_are_put_back_as_what_they_add(folder: Path, alpha: float) -> None:
    pipeline, other = tiny_pipeline.plain(folder), tiny_pipeline.plain(folder)
    one = Adapter(pipeline.unet, LoraConfig(rank=4, alpha=3.0))
    randomise(one)
    expected = predict(pipeline)
    for files in (one.files(), in_the_old_way(one, alpha)):
        other = tiny_pipeline.plain(folder)
        Adapter(other.unet, LoraConfig(rank=4, alpha=6.0)).load(files)
        torch.testing.assert_close(predict(other), expected, rtol=1e-5, atol=1e-6)
    again = folded(in_the_old_way(one, alpha))
    assert json.loads(again[CONFIG])["lora_alpha"] == 4
    for name, tensor in load(one.files()[WEIGHTS]).items():
        torch.testing.assert_close(load(again[WEIGHTS])[name], tensor, rtol=1e-6, atol=0)
    assert folded(again) == again
    assert folded(one.files()) == one.files()


def test_files_of_another_adapter_are_refused(folder: Path) -> None:
    adapter = Adapter(tiny_pipeline.plain(folder).unet, LoraConfig(rank=2))
    other = Adapter(tiny_pipeline.plain(folder).unet, LoraConfig(rank=4))
    with pytest.raises(ValueError, match="another rank or other targets"):
        adapter.load(other.files())
    with pytest.raises(ValueError, match=r"needs pytorch_lora_weights\.safetensors, got nothing"):
        adapter.load({})


def test_targets_that_match_nothing_are_named(folder: Path) -> None:
    unet = tiny_pipeline.plain(folder).unet
    for targets, problem in (
        (("query", "to_q"), "'query' ends the name of no layer of the UNet; .*to_q, to_k"),
        (("to_q", "ff.net.0.poj"), r"'ff\.net\.0\.poj' .* did you mean 'ff\.net\.0\.proj'\?"),
        (("to_q", "to_out"), r"'to_out' .*attn1\.to_out, which is no linear layer .* such as to_out\.0"),
        (("to_q", "norm1"), ".*norm1, which is no linear layer or convolution: name layers$"),
    ):
        with pytest.raises(ValueError, match=rf"model\.lora\.targets: {problem}"):
            Adapter(unet, LoraConfig(targets=targets))
    with pytest.raises(ValueError, match=r"distillation\.lora\.targets: 'query'"):
        FrozenAdapters(unet).trainable(LoraConfig(targets=("to_q", "query")), "student")
    Adapter(unet, LoraConfig(targets=("to_q",)))


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
        ValueError,
        match=r"cannot be read as an adapter: it has no pytorch_lora_weights\.safetensors, it holds: nothing",
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
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "adapts the text encoder too"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "without the up matrix"),
        ("unet.mid_block.attentions.0.proj_in.alpha", "without the down matrix"),
        ("unet.mid_block.attentions.0.proj_in.a1.weight", "not a plain LoRA adapter .* it holds unet.*a1"),
        ("unet.mid_block.attentions.0.proj_in.lokr_w1", r"is a LoKr adapter \(unet.*lokr_w1\)"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", r"is a LoHa adapter \(lora_unet.*hada_w1_a\)"),
        ("oft_unet_mid_block_attentions_0_proj_in.oft_blocks", "is an OFT adapter"),
        ("unet.mid_block.attentions.0.proj_in.oft_R.weight", "is an OFT adapter"),
        ("unet.mid_block.attentions.0.proj_in.ia3_l", r"is an \(IA\)3 adapter"),
        ("unet.mid_block.attentions.0.proj_in.vera_lambda_b", "is a VeRA adapter"),
        ("unet.mid_block.attentions.0.proj_in.lora_E", "is an AdaLoRA adapter"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "has decomposed convolutions"),
        ("lora_unet_conv_in.diff", "has whole weights"),
        ("unet.mid_block.attentions.0.proj_in.lora_B.bias", "has trained biases"),
        (
            "lora_unet_mid_block_attentions_0_proj_in.dora_scale",
            "is a DoRA adapter .* do not add up; merge it",
        ),
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


# Forms that are read, against peft and diffusers themselves.

EVERYWHERE = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "time_emb_proj", "conv_in", "conv_out", "linear_1", "linear_2", "conv"),
)


def by_peft(folder: Path, into: Path, *, trained: bool = True, **settings: Any) -> torch.Tensor:
    """Let peft write an adapter of a UNet, trained by chance; returns what its network predicts."""
    pipeline = tiny_pipeline.plain(folder)
    defaults = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["to_q", "to_v", "conv1"],
        "init_lora_weights": False,
    }
    model = peft.get_peft_model(pipeline.unet, peft.LoraConfig(**defaults | settings))
    if trained:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(into)
    return predict(pipeline)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"to_q": 3}, "rank_pattern": {"attn2.to_q": 2, "conv1": 1}},
        {"use_rslora": True, "rank_pattern": {"to_v": 2}, "alpha_pattern": {"conv1": 11}},
        {"init_lora_weights": "orthogonal", "target_modules": ["to_q", "ff.net.2"]},
    ],
)
def test_a_directory_of_peft_is_read_as_peft_reads_it(
    folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    expected = by_peft(folder, tmp_path, **settings)
    assert {path.name for path in tmp_path.iterdir()} >= {PEFT_WEIGHTS, CONFIG}
    assert (expected - predict(tiny_pipeline.plain(folder))).abs().amax() > 1e-3
    torch.testing.assert_close(by_us(folder, tmp_path), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_of_a_changed_base_is_refused_until_it_is_converted(
    folder: Path, tmp_path: Path, start: str
) -> None:
    targets = ["to_q", "to_v"]
    by_peft(folder, tmp_path / "as-trained", init_lora_weights=start, target_modules=targets)
    with pytest.raises(ValueError, match=f"init_lora_weights: {start}: such training changes the base"):
        by_us(folder, tmp_path / "as-trained")
    pipeline = tiny_pipeline.plain(folder)
    model = peft.get_peft_model(
        pipeline.unet, peft.LoraConfig(r=2, init_lora_weights=start, target_modules=targets)
    )
    model.peft_config["default"].init_lora_weights = True  # as peft's guide saves the beginning
    model.save_pretrained(tmp_path / "begun")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.3)
    model.peft_config["default"].init_lora_weights = start
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "begun")
    )
    converted = by_us(folder, tmp_path / "converted")
    assert (converted - predict(tiny_pipeline.plain(folder))).abs().amax() > 1e-3
    torch.testing.assert_close(converted, predict(pipeline), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"use_dora": True}, "use_dora: True: updates of DoRA do not add up"),
        ({"peft_type": "LOHA"}, "peft_type: LOHA: only plain LoRA is read"),
        ({"peft_type": "VERA"}, "peft_type: VERA"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: loftq"),
        ({"init_lora_weights": "corda"}, "init_lora_weights: corda"),
        ({"init_lora_weights": "PiSSA"}, "init_lora_weights: PiSSA"),
        ({"bias": "all"}, "bias: all"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: .* not known here"),
        ({"r": 7}, "says that the rank of .* is 7, and it is 3"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much', which is no number"),
        ({"alpha_pattern": {"to_q(": 3}}, "alpha_pattern has"),
    ],
)
def test_settings_of_something_else_are_refused_by_name(
    folder: Path, directory: Path, settings: dict[str, Any], problem: str
) -> None:
    save_file(matrices(directory), directory / WEIGHTS)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | settings))
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{problem}"):
        by_us(folder, directory)


def test_the_initialisation_of_eva_leaves_the_base(folder: Path, directory: Path) -> None:
    expected = by_us(folder, directory)
    save_file(matrices(directory), directory / WEIGHTS)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(
        json.dumps(config | {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}})
    )
    assert torch.equal(by_us(folder, directory), expected)


def test_old_names_of_diffusers(folder: Path, tmp_path: Path) -> None:
    """As the first training scripts wrote them, with and without a prefix."""
    directory = tiny_pipeline.adapter(folder, tmp_path / "one", seed=1, rank=3)
    expected = by_diffusers(folder, directory)
    for prefix in ("unet.", ""):
        renamed = {}
        for name, tensor in matrices(directory).items():
            layer, which = name.removeprefix("unet.").split(".lora_")
            side = "down" if which.startswith("A") else "up"
            layer = layer.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
            renamed[f"{prefix}{layer.removesuffix('.0')}_lora.{side}.weight"] = tensor
        other = directory / f"old{prefix}"
        other.mkdir()
        save_file(renamed, other / WEIGHTS)
        torch.testing.assert_close(by_us(folder, other), expected, rtol=1e-5, atol=1e-6)
        if prefix:
            assert torch.equal(by_us(folder, other), by_diffusers(folder, other))


@pytest.mark.parametrize(
    ("targets", "alpha"),
    [
        (("to_q", "to_k", "to_v", "to_out.0"), None),
        (EVERYWHERE, 5.0),
        *further((("to_q", "to_k", "to_v", "to_out.0"), 5.0), (EVERYWHERE, None)),
    ],
)
def test_the_format_of_kohya_there_and_back(
    folder: Path, tmp_path: Path, targets: tuple[str, ...], alpha: float | None
) -> None:
    made = tiny_pipeline.adapter(folder, tmp_path / "made", seed=4, rank=3, alpha=alpha, targets=targets)
    kept = {path.name: path.read_bytes() for path in made.iterdir()}
    files = in_kohya_format(kept)
    (out := tmp_path / "kohya").mkdir()
    for name, content in files.items():
        (out / name).write_bytes(content)
    assert set(files) == {WEIGHTS}
    tensors = load(files[WEIGHTS])
    first = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{first}.lora_down.weight", f"{first}.lora_up.weight", f"{first}.alpha"} <= set(tensors)
    assert tensors[f"{first}.alpha"].shape == ()
    assert tensors[f"{first}.alpha"] == 3
    torch.testing.assert_close(by_us(folder, out), by_us(folder, made), rtol=1e-5, atol=1e-5)
    for name, content in folded(kept).items():
        (made / name).write_bytes(content)
    assert torch.equal(by_us(folder, out), by_us(folder, made))
    torch.testing.assert_close(by_diffusers(folder, out), by_diffusers(folder, made), rtol=1e-6, atol=1e-6)
