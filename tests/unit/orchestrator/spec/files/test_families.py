"""Which family a pipeline is of, told without torch, and what follows from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from orchestrator.errors import SpecError
from orchestrator.spec import family_named, flows, parts_left_out
from orchestrator.spec.files import hub, pipelines
from orchestrator.spec.files.pipelines import held_directory
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import ModelConfig
from trainers.pipelines.families import FLUX_1, STABLE_DIFFUSION, STABLE_DIFFUSION_3
from trainers.pipelines.files import INDEX

T5 = ["transformers", "T5EncoderModel"]
PROMPTS = {"train": ["a cat"], "evaluate": ["a dog"]}
COMMIT = "0123456789" * 4


def index(folder: Path, pipeline: str | None, **parts: Any) -> Path:
    """Write what a pipeline's index says, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {} if pipeline is None else {"_class_name": pipeline}
    (folder / INDEX).write_text(json.dumps(named | parts))
    return folder


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    return index(tmp_path / "flow", "StableDiffusion3Pipeline", transformer=["diffusers", "X"])


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a cache of the hub holds of owner/flow."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--owner--flow"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return index(repository / "snapshots" / COMMIT, "StableDiffusion3Pipeline", text_encoder_3=T5)


def refused(**sections: Any) -> str:
    document = {
        "name": "families",
        "prompts": PROMPTS,
        "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
        **sections,
    }
    with pytest.raises(SpecError) as raised:
        parse_spec(json.dumps(document))
    return str(raised.value)


def test_a_directory_says_what_it_is_by_its_index(tmp_path: Path, flow: Path) -> None:
    assert family_named(str(flow)) is STABLE_DIFFUSION_3
    assert flows(str(flow))
    assert family_named("embedded") is STABLE_DIFFUSION
    assert not flows("embedded")
    assert flows("embedded-flow")
    assert parts_left_out("embedded-flow") == ("text_encoder_3", "tokenizer_3")
    assert (
        family_named(str(index(tmp_path / "img", "StableDiffusionImg2ImgPipeline", unet=[])))
        is STABLE_DIFFUSION
    )
    assert family_named(str(index(tmp_path / "old", None, unet=[]))) is STABLE_DIFFUSION
    assert family_named(str(index(tmp_path / "flux", "FluxPipeline", transformer=[]))) is FLUX_1
    assert family_named(str(index(tmp_path / "video", "LTXPipeline", transformer=[]))) is None
    assert family_named("owner/name") is None


def test_a_hub_id_is_known_by_the_cache_and_by_name(cached: Path) -> None:
    assert held_directory("owner/flow") == held_directory("owner/flow", COMMIT) == cached
    assert held_directory("owner/flow", "v2") is held_directory("owner/" + 300 * "c", COMMIT) is None
    assert flows("owner/flow")
    assert family_named("CompVis/stable-diffusion-v1-4") is STABLE_DIFFUSION


def test_text_encoders_may_be_left_out(flow: Path, cached: Path, tmp_path: Path) -> None:
    assert cached.is_dir()
    assert parts_left_out("owner/flow") == parts_left_out("embedded") == parts_left_out("owner/name") == ()
    assert parts_left_out(str(flow)) == ("text_encoder_3", "tokenizer_3")
    null = index(tmp_path / "null", "StableDiffusion3Pipeline", text_encoder_3=[None, None])
    assert parts_left_out(str(null)) == ("text_encoder_3", "tokenizer_3")


def test_an_unknown_family_is_named_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = index(tmp_path / "video", "LTXPipeline", transformer=["diffusers", "LTXVideoTransformer3DModel"])
    (folder / "transformer").mkdir()
    (here,) = pipelines.directory_problems(ModelConfig(pretrained=str(folder)))
    said = {
        "config": {"diffusers": {"_class_name": "LTXPipeline"}},
        "siblings": [{"rfilename": "transformer/a"}],
    }
    monkeypatch.setattr(hub, "_asked", lambda *_: said)
    (there,) = pipelines.directory_problems(ModelConfig(pretrained="owner/video"))
    for problem in (here, there):
        assert "is a LTXPipeline, of no family that is known" in problem.rule
        assert "SD 3 (StableDiffusion3Pipeline)" in problem.rule


def test_a_refiner_is_refused_by_its_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = index(
        tmp_path / "refiner", "StableDiffusionXLImg2ImgPipeline", unet=["diffusers", "UNet2DConditionModel"]
    )
    (here,) = pipelines.directory_problems(ModelConfig(pretrained=str(folder)))
    said = {
        "config": {"diffusers": {"_class_name": "StableDiffusionXLImg2ImgPipeline"}},
        "siblings": [{"rfilename": "unet/a"}],
    }
    monkeypatch.setattr(hub, "_asked", lambda *_: said)
    (there,) = pipelines.directory_problems(ModelConfig(pretrained="owner/refiner"))
    for problem in (here, there):
        assert "as refiners are: it improves images and draws none" in problem.rule
        assert "StableDiffusionXLPipeline" in problem.rule


def test_the_last_step_of_a_flow_rests_and_its_levels_are_even(flow: Path) -> None:
    model = {"pretrained": str(flow)}
    said = refused(model=model, sampling={"steps": 4, "rest": 0})
    assert "sampling.rest = 0\n  must be at least 1 for a model trained by flow matching" in said
    assert "the levels of a flow are even" in refused(model=model, sampling={"spacing": "leading"})


def test_flows_are_not_composed(flow: Path, tmp_path: Path) -> None:
    other = shutil.copytree(flow, tmp_path / "other")
    models = {"a": {"pretrained": str(flow)}, "b": {"pretrained": str(other)}}
    said = refused(models=models, objective={"minmax_kl": ["a", "b"]}, constraints=[])
    assert "models.a.pretrained = " in said
    assert "is trained by flow matching, whose last step has no noise to share" in said
    base = refused(
        model={"pretrained": str(flow)},
        models={"a": {"prompt": "red"}, "b": {"prompt": "blue"}},
        objective={"minmax_kl": ["a", "b"]},
        constraints=[],
    )
    assert "is trained by flow matching, whose last step has no noise to share" in base


FLUX, SDXL = "black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.mark.parametrize(
    ("model", "sampling", "message"),
    [
        (
            {"pretrained": FLUX, "height": 1000},
            {},
            "model.height = 1000\n  must be a multiple of 16 pixels, 8 of its autoencoder times 2 of its patches",
        ),
        (
            {"pretrained": "embedded", "width": 33},
            {},
            "model.width = 33\n  must be a multiple of 4 pixels: take 32 or",
        ),
        (
            {"pretrained": "embedded-flow", "height": 3200},
            {},
            "model.height = 3200\n  must be at most",
        ),
        (
            {"pretrained": FLUX},
            {"true_guidance": 2.0},
            "sampling.true_guidance = 2.0\n  needs model.negative_prompt: FLUX.1 is distilled to be told its guidance",
        ),
        (
            {"pretrained": SDXL, "negative_prompt": "blurred"},
            {"guidance": 4.0, "true_guidance": 2.0},
            "SDXL is guided by sampling.guidance",
        ),
        (
            {"pretrained": SDXL, "negative_prompt": "blurred"},
            {},
            'model.negative_prompt = "blurred"\n  has no effect without guidance away from it: write sampling.guidance',
        ),
        (
            {"pretrained": FLUX, "max_sequence_length": 513},
            {},
            "model.max_sequence_length = 513\n  must be at most 512, the tokens of a prompt that FLUX.1 reads",
        ),
        (
            {"pretrained": "black-forest-labs/FLUX.1-schnell"},
            {"guidance": 4.0},
            "sampling.guidance = 4.0\n  has no effect: this model was distilled to draw in few steps, and is told no",
        ),
        (
            {"pretrained": "black-forest-labs/flux.1-schnell", "height": 1000},
            {},
            "model.height = 1000\n  must be a multiple of 16 pixels",
        ),
        (
            {"pretrained": "black-forest-labs/FLUX.2-klein-4B"},
            {"guidance": 4.0},
            "sampling.guidance = 4.0\n  has no effect: this model was distilled to draw without guidance (is_dist",
        ),
        (
            {"pretrained": "black-forest-labs/FLUX.2-dev", "negative_prompt": "blurred"},
            {"guidance": 4.0},
            "goes with pipelines that take one, and FLUX.2 takes none",
        ),
        (
            {"pretrained": "black-forest-labs/FLUX.2-dev"},
            {"true_guidance": 4.0},
            "FLUX.2 takes none",
        ),
        (
            {"pretrained": "embedded", "max_sequence_length": 20},
            {},
            "goes with families whose pipeline can be told how much of a prompt is read, and SD 1.x, 2.x cannot",
        ),
    ],
)
def test_what_a_pipeline_does_not_have_is_not_asked_of_it(
    model: dict[str, Any], sampling: dict[str, Any], message: str
) -> None:
    assert message in refused(model=model, sampling=sampling)


def test_what_is_adapted_by_default_depends_on_the_family() -> None:
    def targets(pretrained: str, **lora: Any) -> tuple[str, ...]:
        document = {
            "name": "targets",
            "model": {"pretrained": pretrained, "lora": lora},
            "prompts": PROMPTS,
            "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
        }
        configured = parse_spec(json.dumps(document)).configured.lora
        assert configured is not None
        return configured.targets

    klein = "black-forest-labs/FLUX.2-klein-base-4B"
    assert targets(FLUX) == ("to_q", "to_k", "to_v", "to_out.0")
    assert {"to_qkv_mlp_proj", "attn.to_out"} < {*targets(klein)}
    assert targets(klein, targets=["to_q"]) == ("to_q",)
    assert targets(klein, targets="all-linear") == targets("a/b", targets=["all-linear"]) == ("all-linear",)


@pytest.mark.parametrize("group", ["attention", "all-linear", ["all-linear", "conv_in"]])
def test_groups_of_layers_are_of_any_pipeline(group: object, tmp_path: Path) -> None:
    text = json.dumps(
        {
            "name": "targets",
            "model": {"pretrained": "embedded", "lora": {"targets": group}},
            "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
        }
    )
    spec = parse_spec(text, directory=tmp_path)
    assert parse_spec(dump_spec(spec)) == spec
    said = refused(model={"pretrained": "embedded", "lora": {"targets": "all_linear"}})
    assert "'all_linear'" in said.replace('"', "'")
    assert "must be 'attention' or 'all-linear', or a list of endings of names of layers" in said


def test_what_differs_with_the_text_is_not_compiled() -> None:
    said = refused(model={"pretrained": "Tongyi-MAI/Z-Image"}, training={"compile": True})
    assert "training.compile = true\n  does not go with Z-Image" in said


def test_a_composition_asks_its_models_as_they_are() -> None:
    said = refused(
        model={"pretrained": "embedded", "height": 64},
        models={"a": {"prompt": "red"}, "b": {"prompt": "blue"}},
        objective={"minmax_kl": ["a", "b"]},
        constraints=[],
        prompts=None,
    )
    assert "model.height = 64\n  goes with the training of one model" in said


def test_a_mixture_is_asked_nothing() -> None:
    mixture = {"weights": [1.0], "means": [[0.0]], "covariances": [[[1.0]]]}
    said = refused(model={"mixture": mixture, "height": 64, "width": 64}, prompts=None)
    assert "'height', 'width' must go with 'pretrained'" in said
