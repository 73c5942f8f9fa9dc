"""The flow model of the shipped world: what is trained is what plain diffusers samples."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from support.models.families import flows

from trainers.models.embedded import export, flow, texts, tokenizer

CAPTIONS = ["a small red circle on a blue background", ""]


@pytest.fixture(scope="module")
def untrained() -> flows.Untrained:
    return flows.untrained()


def test_it_begins_by_predicting_nothing() -> None:
    transformer, encoders = flow.build(tokenizer.build())
    sequence, pooled = flow.conditions(encoders, texts.tokenise(tokenizer.build(), CAPTIONS))
    found = transformer(torch.randn(2, 4, 8, 8), sequence, pooled, torch.tensor([10.0, 900.0])).sample
    assert not found.any()


@pytest.mark.parametrize("count", [1, 3, 256])
@torch.no_grad()
def test_one_token_stands_for_many_of_zeros(untrained: flows.Untrained, count: int) -> None:
    words, transformer, encoders = untrained
    sequence, pooled = flow.conditions(encoders, texts.tokenise(words, CAPTIONS))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([300.0, 700.0])

    def asked(tokens: int) -> torch.Tensor:
        padded = torch.nn.functional.pad(sequence, (0, 0, 0, tokens))
        found: torch.Tensor = transformer(latents, padded, pooled, times).sample
        return found

    many, none = asked(count), asked(0)
    plain, counted = transformer.attn_processors, flow.CountedAttention()
    transformer.set_attn_processor(counted)
    counted.log_count = float(torch.tensor(float(count)).log())
    one = asked(1)
    transformer.set_attn_processor(plain)
    assert torch.allclose(one, many, atol=1e-5)
    assert not torch.allclose(none, many, atol=1e-5), "they are seen"


def test_levels_are_logit_normal_and_alike_in_all_batches() -> None:
    found = torch.stack([flow.levels(torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert (found.diff(dim=1) > 0).all(), "each in its own part"
    logits = found.logit()
    assert logits.mean().abs() < 0.01
    assert (logits.std() - 1.0).abs() < 0.02
    assert found.mean(dim=1).std() < 0.003


def test_what_is_exported_is_what_was_trained(untrained: flows.Untrained, tmp_path: Path) -> None:
    words, transformer, encoders = untrained
    tokens = texts.tokenise(words, CAPTIONS)
    with torch.no_grad():
        sequence, pooled = flow.conditions(encoders, tokens)
    export.export_flow(flows.autoencoder(1.0), transformer, encoders, words, tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    asked = pipeline.encode_prompt(
        CAPTIONS, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )
    assert torch.equal(asked[0], sequence)
    assert torch.equal(asked[2], pooled)
    image = pipeline(CAPTIONS[0], num_inference_steps=2, max_sequence_length=0, output_type="pt").images
    assert image.shape == (1, 3, 32, 32)
    transformer.float()
