"""A network in 4 bits: it is the network of its unpacked weights, for pairs, gradients and files of adapters."""

import sys
from pathlib import Path

import pytest
import torch
from support import stand_in_bitsandbytes, tiny_pipeline
from support.tiers import exhaustive
from torch import nn

from trainers.alignment.kl_floor import kl_floor
from trainers.models.layers.adapted import weight_shapes
from trainers.models.layers.quantised import Quantised, spared
from trainers.models.pipeline_policy import PipelinePolicy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("pipeline"), widths=(64,), cross=64)


@pytest.fixture(autouse=True)
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_bitsandbytes.install(monkeypatch)


def packed(policy: PipelinePolicy) -> dict[str, Quantised]:
    return {
        name.replace(".base_layer", ""): layer
        for name, layer in policy.parts.network.named_modules()
        if isinstance(layer, Quantised)
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16", *exhaustive("fp16")])
@torch.no_grad()
def test_an_adapter_without_effect_has_no_kl(folder: Path, precision: str) -> None:
    policy = tiny_pipeline.policy(folder, guidance=3.0, quantise="nf4", precision=precision)
    assert not policy.rollout(policy.fixed_draw(0, 0, 3)).path_kl.any()
    assert kl_floor(policy, 0) < 1e-6
    assert {p.dtype for p in policy.parameters().values()} == {torch.float32}


def test_it_is_the_network_of_its_unpacked_weights(folder: Path) -> None:
    ours = tiny_pipeline.policy(folder, guidance=3.0, trained=0.1, quantise="nf4")
    other = tiny_pipeline.policy(folder, guidance=3.0, trained=0.1)
    plain = weight_shapes(other.parts.network)
    assert weight_shapes(ours.parts.network) == plain
    layers = packed(ours)
    assert layers.keys() == {
        name for name, shape in plain.items() if len(shape) == 2 and shape[1] % 64 == 0
    }, "all linear layers whose rows are whole blocks"
    for name, layer in layers.items():
        module = other.parts.network.get_submodule(name)
        weight = getattr(module, "base_layer", module).weight
        unpacked = nn.Linear.forward(module, torch.zeros(1, layer.in_features))  # the bias alone
        whole = (layer(torch.eye(layer.in_features)) - unpacked).T.detach()
        assert 0.03 < (whole - weight).norm() / weight.norm() < 0.15
        weight.data.copy_(whole)
        assert layer.weight.nbytes == weight.numel() / 2
    found = []
    for policy in (ours, other):
        rollout = policy.rollout(policy.fixed_draw(0, 0, 3))
        (rollout.path_kl.sum() + rollout.samples.mean()).backward()
        slopes = [p.grad for p in policy.parameters().values()]
        found.append((rollout.samples.detach(), rollout.path_kl.detach(), *slopes))
    for value, expected in zip(*found, strict=True):
        assert (value - expected).norm() < 1e-3 * expected.norm(), "they differ by the rounding of sums"


def test_what_is_spared_is_told_without_weights(folder: Path) -> None:
    layers = packed(tiny_pipeline.policy(folder, quantise="nf4")).values()
    states = [layer.weight.quant_state for layer in layers]  # type: ignore[union-attr] # bitsandbytes'
    held = sum(layer.weight.nbytes for layer in layers) + sum(state.absmax.nbytes for state in states)
    sizes = [4 * state.shape.numel() for state in states]
    assert spared(tiny_pipeline.plain(folder).unet) == sum(sizes) - held - max(sizes)
    assert not packed(tiny_pipeline.policy(folder))


def test_it_is_trained_and_its_adapter_is_read_by_diffusers(folder: Path, tmp_path: Path) -> None:
    policy = tiny_pipeline.policy(folder, quantise="nf4")
    before = {name: layer.weight.clone() for name, layer in packed(policy).items()}
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=0.01)
    rewards = []
    for _ in range(4):
        rollout = policy.rollout(policy.draw(4, 0))
        rewards.append(float(rollout.samples.detach().mean()))
        optimizer.zero_grad()
        (rollout.path_kl.mean() * 1e-3 - rollout.samples.mean()).backward()
        optimizer.step()
    assert rewards[-1] > rewards[0]
    assert all(torch.equal(layer.weight, before[name]) for name, layer in packed(policy).items())
    for name, content in policy.adapter().items():
        (tmp_path / name).write_bytes(content)
    plain = tiny_pipeline.plain(folder)
    plain.load_lora_weights(str(tmp_path))
    read = [p for name, p in plain.unet.named_parameters() if ".lora_" in name]
    assert len(read) == len(policy.parameters())
    assert any(p.any() for name, p in plain.unet.named_parameters() if ".lora_B" in name)


def test_without_the_package_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"model\.quantise: nf4 needs .*pip install 'cdsweep\[quantise\]'"):
        tiny_pipeline.policy(folder, quantise="nf4")
