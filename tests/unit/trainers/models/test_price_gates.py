"""Adapters for a box of thresholds on pipelines: functions of the tilt that fold exactly, for every family."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from support import stand_in_bitsandbytes, tiny_pipeline
from torch import Tensor, nn

from trainers.adapters.files import FRONTIER_LORA, WEIGHTS
from trainers.config import LoraConfig, ModelConfig, PromptsConfig, SamplingConfig
from trainers.models.conditional.form import build_form
from trainers.models.conditional.price_gates import PriceGates
from trainers.models.layers.trained_lora import Adapter
from trainers.models.pipeline import load_parts
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.testing import check_conditional

ACTING = ("warm", "sharp")
PROMPTS = PromptsConfig(train=("a cat", "a dog"), evaluate=("a cat", "a dog"))
TILTS = [np.array([0.7, 2.5]), np.array([1.4, 0.0])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("pipeline"))


def policies(
    folder: Path, sampling: Mapping[str, Any] | None = None, precision: str = "fp32", **model: Any
) -> tuple[PipelinePolicy, PipelinePolicy]:
    """A gated policy whose parameters are all random, and a plain one of its rank."""
    config = ModelConfig(pretrained=str(folder), **model)
    chain = SamplingConfig(**{"steps": 4, "rest": 1, **(sampling or {})})
    made = []
    for acting in (ACTING, ()):
        parts = load_parts(config, precision)
        lora = LoraConfig(rank=6, alpha=3, targets=parts.family.form.targets or LoraConfig().targets)
        made.append(PipelinePolicy(parts, Adapter(parts.network, lora, rewards=acting), PROMPTS, chain))
    made[0].expect(np.array([[1.0, 2.0], [0.5, 3.0]]))
    shake(made[0])
    return made[0], made[1]


def shake(policy: PipelinePolicy) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("sampling", [{}, {"guidance": 3.0}, {"order": 2}])
def test_the_price_form_keeps_the_contract(folder: Path, sampling: dict[str, Any]) -> None:
    check_conditional(*policies(folder, sampling), TILTS)


def test_it_starts_as_the_pretrained_model_and_each_reward_has_its_columns(folder: Path) -> None:
    parts = load_parts(ModelConfig(pretrained=str(folder)), "fp32")
    adapter = Adapter(parts.network, LoraConfig(rank=6), rewards=ACTING)
    policy = PipelinePolicy(parts, adapter, PROMPTS, SamplingConfig(steps=3))
    policy.expect(np.array([[4.0, 0.0], [2.0, 1e-3]]))
    assert not policy.at(np.array([3.0, 1.0])).rollout(policy.at(TILTS[0]).fixed_draw(0, 0, 2)).path_kl.any()
    form = adapter.form
    assert form is not None
    gates = form(torch.tensor([[4.0, 0.0], [0.0, 0.4]]))
    # 0.4 is a tenth of the largest tilt: what a reward's price is measured by, if it seems to need none.
    expected = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0.0, 0, 0, 1, 1, 1]])
    torch.testing.assert_close(gates, expected.expand(len(gates), -1, -1))


@pytest.mark.parametrize("quantise", [None, "nf4"])
def test_half_precision_and_packed_weights_keep_the_contract(
    folder: Path, quantise: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 values differ by its rounding, and the update of a sample by nothing else."""
    stand_in_bitsandbytes.install(monkeypatch)
    gated, plain = policies(folder, precision="bf16", quantise=quantise)
    asked = gated.at(TILTS[0])
    with torch.no_grad():
        found = asked.rollout(asked.fixed_draw(0, 0, 4))
        plain.load_adapter(gated.folded(TILTS[0]))
        folded = plain.rollout(plain.fixed_draw(0, 0, 4))
        still = gated.at(np.zeros(2))
        assert not still.rollout(still.fixed_draw(0, 0, 4)).path_kl.any()
    torch.testing.assert_close(found.path_kl, folded.path_kl, rtol=0.05, atol=0)
    assert found.path_kl.min() > 0


def test_the_stored_file_folds_by_the_documented_lines(folder: Path, tmp_path: Path) -> None:
    """What it is at a tilt, by ``docs/frontier_adapter.md`` alone, is what plain diffusers draws with."""
    gated, _ = policies(folder)
    (name,) = (files := gated.adapter())
    assert name == FRONTIER_LORA
    (tmp_path / name).write_bytes(files[name])
    page = (Path(__file__).parents[4] / "docs" / "frontier_adapter.md").read_text()
    lines = page.split("```python\n", 1)[1].split("```", 1)[0]
    known: dict[str, Any] = {}
    exec(lines, known)  # noqa: S102 - the page's own lines
    known["fold"](tmp_path / name, {"warm": 0.7, "sharp": 2.5}, tmp_path / WEIGHTS)
    asked = gated.at(TILTS[0])
    own = asked.rollout(asked.fixed_draw(0, 0, 2))
    plain = policies(folder)[1]
    plain.load_adapter({WEIGHTS: (tmp_path / WEIGHTS).read_bytes()})
    torch.testing.assert_close(
        plain.rollout(plain.fixed_draw(0, 0, 2)).samples, own.samples, rtol=1e-4, atol=1e-5
    )
    again, _ = policies(folder)
    with torch.no_grad():
        for parameter in again.parameters().values():
            parameter.zero_()
    again.load_adapter(files)
    assert again.adapter() == files
    parts = load_parts(ModelConfig(pretrained=str(folder)), "fp32")
    other = Adapter(parts.network, LoraConfig(rank=6), rewards=("x", "y"))
    with pytest.raises(ValueError, match=r"frontier_lora\.safetensors is of another adapter: .*warm"):
        other.load(files)


def test_diffusers_does_not_load_it_at_no_tilt(folder: Path, tmp_path: Path) -> None:
    (tmp_path / FRONTIER_LORA).write_bytes(policies(folder)[0].adapter()[FRONTIER_LORA])
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline.load_lora_weights(tmp_path, weight_name=FRONTIER_LORA)


def test_a_file_of_the_first_format_is_read(folder: Path) -> None:
    files = policies(folder)[0].adapter()
    tensors = safetensors.torch.load(files[FRONTIER_LORA])
    size = int.from_bytes(files[FRONTIER_LORA][:8], "little")
    known = json.loads(files[FRONTIER_LORA][8 : 8 + size])["__metadata__"]
    earlier = {key.replace(".gates.", ".lora_G."): tensor for key, tensor in tensors.items()}
    known["format"] = "cdsweep frontier lora 1"
    again = policies(folder)[0]
    shake(again)
    again.load_adapter({FRONTIER_LORA: safetensors.torch.save(earlier, known)})
    assert again.adapter() == files


class Constant(PriceGates):
    """Gates that stay where nothing is asked for."""

    def __call__(self, tilts: Tensor) -> Tensor:
        return super().__call__(tilts) + 1.0


class Neighbours(PriceGates):
    """Gates by the mean over the batch."""

    def __call__(self, tilts: Tensor) -> Tensor:
        return super().__call__(tilts * tilts.mean())


class Square(PriceGates):
    """A matrix in place of gates."""

    def __call__(self, tilts: Tensor) -> Tensor:
        return torch.diag_embed(super().__call__(tilts))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Constant, r"at a tilt of 0 its gates are up to 1, not 0"),
        (Neighbours, r"gates of a sample depend on the tilts of others"),
        (Square, r"its gates are \(2, 3, 4, 4\), and one number for each .* is \(2, 3, 4\)"),
    ],
)
def test_a_form_that_does_not_fold_is_refused(
    kind: Callable[..., nn.Module], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.registry.load", lambda _group, _name: kind)
    with pytest.raises(ValueError, match=rf"form 'mine' does not fold into a plain LoRA .*: {expected}"):
        build_form("mine", 2, 4, 2)


def test_a_rank_without_a_column_for_every_reward_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank is at least the number of rewards that act, 3, got 2"):
        build_form("price", 2, 2, 3)


def test_gradients_of_a_sample_are_those_of_its_own_gates(folder: Path) -> None:
    """By differences: the KL of one sample by one gate of one layer."""
    gated, _ = policies(folder)
    draw = replace(gated.fixed_draw(0, 0, 2), tilt=torch.tensor(np.stack(TILTS), dtype=torch.float32))
    gates = gated.parameters()["lora_G"]
    gated.rollout(draw).path_kl.sum().backward()
    assert gates.grad is not None
    own = gates.grad[1, 2].clone()
    steps = []
    with torch.no_grad():
        for place in range(2):
            values = []
            for step in (0.1, -0.2):  # shorter ones are lost in single precision
                gates[1, 2, place] += step
                values.append(float(gated.rollout(draw).path_kl.double().sum()))
            gates[1, 2, place] += 0.1
            steps.append((values[0] - values[1]) / 0.2)
    torch.testing.assert_close(own, torch.tensor(steps), rtol=0.02, atol=2e-4)
