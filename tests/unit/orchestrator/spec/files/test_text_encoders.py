"""What a text encoder reads, without torch, is what its tokenizer gives to the pipeline."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from orchestrator.spec.files.text_encoders import TextEncoder, text_encoder
from orchestrator.spec.rules.prompt_warnings import prompt_warnings
from trainers.config import BaseConfig, CompositionConfig, ConstituentConfig, ModelConfig, PromptsConfig
from trainers.models.pipeline import EMBEDDED_DIRECTORY

TOKENIZER = EMBEDDED_DIRECTORY / "tokenizer"
FULL = AutoTokenizer.from_pretrained(TOKENIZER)
EMBEDDED = ModelConfig(pretrained="embedded")
STYLE = "a small red circle on a yellow background, a large blue ring,"  # as many tokens as are read
WORDS = ("a", "Red", "circle's", "42", "é", "😀", "don't", ",", "\t")
CUT = "1 of {} prompts are longer than the 16 tokens that the text encoder reads, and are cut, such as {!r} ({})"


def known(source: str, revision: str | None = None) -> TextEncoder:
    found = text_encoder(source, revision)
    assert found is not None
    return found


def warned(train: list[str], evaluate: list[str], model: ModelConfig = EMBEDDED) -> list[str]:
    return list(prompt_warnings(model, PromptsConfig(train=tuple(train), evaluate=tuple(evaluate))))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose tokenizer is a vocabulary and merges, as that of Stable Diffusion 1.5."""
    folder = tmp_path_factory.mktemp("old") / "tokenizer"
    folder.mkdir()
    whole = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = [" ".join(pair) for pair in whole["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    shutil.copy(TOKENIZER / "tokenizer_config.json", folder)
    return folder.parent


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join)))
@pytest.mark.parametrize("kind", ["embedded", "old"])
def test_what_is_read_is_what_the_pipeline_is_given(kind: str, text: str, old: Path) -> None:
    encoder = known("embedded" if kind == "embedded" else str(old))
    assert encoder.limit == 16
    given_to_it = FULL(text, truncation=True, max_length=16).input_ids
    if "<|" not in text:
        assert list(encoder.read(text)) == given_to_it[1:-1]
        assert encoder.length(text) == len(FULL(text).input_ids)


def test_what_is_cut_is_said_with_its_end() -> None:
    text = f"{STYLE} a moon"
    expected = "prompts.train: " + CUT.format(2, text, "18 tokens: 'a moon' is not read")
    assert warned(["a red circle", text], ["a blue ring"]) == [expected]
    assert warned([STYLE], ["a blue ring"]) == []
    assert known("embedded").unread("a red circle") == ""


def test_duplicates_and_shared_prompts_are_those_that_are_read_alike() -> None:
    long = [f"{STYLE} a {end}" for end in ("moon", "cross")]
    train = ["Red Circle", "red circle", "red  square", long[0]]
    cut, doubled, held_out, shared = warned(train, ["red square", "RED circle", long[1], "a blue moon"])
    assert cut == "prompts.train: " + CUT.format(4, long[0], "18 tokens: 'a moon' is not read")
    assert doubled == (
        "prompts.train: 1 of 4 prompts are duplicates: the text encoder reads 'red circle' as 'Red Circle'"
    )
    assert held_out == "prompts.evaluate: " + CUT.format(4, long[1], "18 tokens: 'a cross' is not read")
    assert shared == (
        "prompts.evaluate: 3 of 4 prompts are trained on as the text encoder reads them, such as 'red square'; the "
        "held-out figures then judge prompts seen in training"
    )


def test_prompts_of_a_composition_are_read_alone_and_together() -> None:
    models = tuple(
        ConstituentConfig(name=f"m{i}", prompt=text) for i, text in enumerate((STYLE, "a moon", "A moon"))
    )
    found = list(
        prompt_warnings(ModelConfig(composition=CompositionConfig(models=models, base=BaseConfig())), None)
    )
    assert [line.split(" prompts are ")[0] for line in found] == [
        "models: 1 of 3",
        "models, all of them in one prompt: 1 of 1",
    ]
    assert "duplicates: the text encoder reads 'A moon' as 'a moon'" in found[0]
    assert "are longer than the 16 tokens" in found[1]


def test_a_hub_id_is_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = ModelConfig(pretrained="owner/name", revision="v1")
    assert warned(["a cat"], ["a dog"], model) == []
    [warning] = prompt_warnings(model, PromptsConfig(train=("a cat",), evaluate=("a dog",)), unknown=True)
    assert "is not known, no tokenizer of owner/name with its limit is on this machine" in warning
    repository = tmp_path / "models--owner--name"
    shutil.copytree(TOKENIZER, repository / "snapshots" / ("a" * 40) / "tokenizer")
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text("a" * 40)
    assert warned(["a cat"], ["a dog"], model) == []
    assert known("owner/name", "v1").limit == 16
    assert text_encoder("owner/name") is None


def test_a_tokenizer_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    [warning] = warned(["a cat"], ["a dog"], ModelConfig(pretrained=str(tmp_path)))
    assert f"is not known: {tmp_path / 'tokenizer'} cannot be read as a tokenizer: " in warning


def two_encoders(folder: Path, pipeline: str, second: str) -> ModelConfig:
    """A pipeline with a CLIP of 16 tokens, and another encoder that is told how many it reads."""
    (folder / "model_index.json").write_text(
        json.dumps(
            {"_class_name": pipeline, second.replace("tokenizer", "text_encoder"): ["transformers", "T5"]}
        )
    )
    for name in ("tokenizer", second):
        shutil.copytree(TOKENIZER, folder / name)
    return ModelConfig(pretrained=str(folder), max_sequence_length=18)


@pytest.mark.parametrize(
    ("pipeline", "second"), [("FluxPipeline", "tokenizer_2"), ("StableDiffusion3Pipeline", "tokenizer_3")]
)
def test_what_clip_does_not_read_another_encoder_may(pipeline: str, second: str, tmp_path: Path) -> None:
    model, encoder = two_encoders(tmp_path, pipeline, second), second.replace("tokenizer", "text_encoder")
    beyond = f"{STYLE} a moon"
    [partly] = warned([beyond, f"{STYLE} a cross"], ["a blue ring"], model)
    assert partly == (
        "prompts.train: 2 of 2 prompts are longer than the 16 tokens that text_encoder reads: what follows is read by "
        f"{encoder} alone, such as 'a moon'"
    )
    longest = [f"{beyond} on a {colour}" for colour in ("red", "blue")]
    partly, cut, doubled = warned(longest, ["a blue ring"], model)
    assert "what follows is read by" in partly
    assert f"2 of 2 prompts are longer than the 18 tokens that {encoder} reads, and are cut" in cut
    assert "duplicates: the model reads" in doubled
    assert warned([STYLE], ["a blue ring"], model) == []


def test_without_its_t5_a_pipeline_reads_as_much_as_clip(tmp_path: Path) -> None:
    model = two_encoders(tmp_path, "StableDiffusion3Pipeline", "tokenizer_3")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    [cut] = warned([f"{STYLE} a moon"], ["a blue ring"], model)
    assert "longer than the 16 tokens that the text encoder reads, and are cut" in cut


def test_what_is_told_to_read_more_than_it_may_is_not_known_by_other_files(tmp_path: Path) -> None:
    """A vocabulary and merges are read as CLIP's, and of no other tokenizer."""
    model = two_encoders(tmp_path, "FluxPipeline", "tokenizer_2")
    (tmp_path / "tokenizer_2" / "tokenizer.json").unlink()
    [partly] = warned([f"{STYLE} a moon"], ["a blue ring"], model)
    assert "what follows is read by text_encoder_2 alone" in partly
