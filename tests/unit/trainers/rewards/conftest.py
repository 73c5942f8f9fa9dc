"""Small models with random weights, saved in the formats in which the large ones are published."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    OPTConfig,
)

from trainers.rewards.mps import CrossHead

PROMPTS = ("a red cube", "two cats under a very old tree", "a photo", "the sea at night")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prompts() -> list[str]:
    return list(PROMPTS)


@pytest.fixture
def pictures() -> Tensor:
    """Four pictures that every small model has to resize."""
    return smooth_pictures(48)


def smooth_pictures(edge: int) -> Tensor:
    """Return pictures in 8-bit steps ``[4, 3, edge, edge]``, inside (0, 1), so that each pixel has a slope."""
    coarse = torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=(edge, edge), mode="bilinear", align_corners=True)
    return (255 * (0.1 + 0.8 * smooth)).round() / 255


@pytest.fixture(params=[32, 48], ids=["as they are", "resized"])
def seen(request: pytest.FixtureRequest) -> tuple[Tensor, float]:
    """Pictures, and the tolerance of a score as a part of its spread over them.

    Without a resize nothing is rounded. With one the library rounds to 8 bits, and random weights amplify it.
    """
    return smooth_pictures(request.param), {32: 1e-4, 48: 0.2}[request.param]


def randomise(network: nn.Module, scale: float = 0.25, seed: int = 0) -> nn.Module:
    """Draw every weight, so that scores differ visibly between pictures."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("logit_scale"):
                continue
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return network.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tmp_path_factory.mktemp


def save_clip_processor(path: Path, edge: int = 32) -> None:
    tokens = ["<|startoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24).save_pretrained(path)
    size = {"shortest_edge": edge}
    crop = {"height": edge, "width": edge}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(path)


def clip_config() -> CLIPConfig:
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 54, "max_position_embeddings": 24, "eos_token_id": 53, "bos_token_id": 0}
    return CLIPConfig(
        text_config=common | text | {"pad_token_id": 53},
        vision_config=common | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )


@pytest.fixture(scope="session")
def clip_folder(folder: Callable[[str], Path]) -> Path:
    """A CLIP in the transformers format, with tokenizer and image processor."""
    path = folder("clip")
    randomise(CLIPModel(clip_config())).save_pretrained(path)
    save_clip_processor(path)
    return path


def save_bert_tokenizer(path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(path)


TEXT: dict[str, Any] = {
    "vocab_size": 57,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="session")
def blip_folder(folder: Callable[[str], Path]) -> Path:
    path = folder("blip")
    config = BlipConfig(text_config=dict(TEXT), vision_config=dict(VISION), image_text_hidden_size=16)
    randomise(BlipForImageTextRetrieval(config)).save_pretrained(path)
    save_bert_tokenizer(path)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def blip2_folder(folder: Callable[[str], Path]) -> Path:
    path = folder("blip2")
    opt = OPTConfig(vocab_size=57, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=1)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION).to_dict(),
        qformer_config=Blip2QFormerConfig(**TEXT, use_qformer_text_input=True).to_dict(),
        text_config=opt.to_dict(),
        num_query_tokens=4,
        image_text_hidden_size=16,
    )
    randomise(Blip2ForImageTextRetrieval(config)).save_pretrained(path)
    save_bert_tokenizer(path)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def head_state(width: int, seed: int = 3) -> dict[str, Tensor]:
    """A head as published: widths fixed, gaps in the numbering for dropout."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {0: (width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    state = {}
    for number, (inputs, outputs) in sizes.items():
        state[f"layers.{number}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        state[f"layers.{number}.bias"] = torch.randn(outputs, generator=generator)
    return state


@pytest.fixture(scope="session")
def aesthetic_folder(folder: Callable[[str], Path]) -> Path:
    path = folder("aesthetic")
    torch.save(head_state(24), path / "aesthetic-model.pth")
    return path


def to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a ``CLIPModel`` to open_clip's, from a listing of that format."""
    found: dict[str, Tensor] = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": state["logit_scale"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        found[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        found[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for ours, theirs in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
            for number in range(2):
                layer, block = f"{ours}.encoder.layers.{number}", f"{theirs}.resblocks.{number}"
                found[f"{block}.ln_1.{kind}"] = state[f"{layer}.layer_norm1.{kind}"]
                found[f"{block}.ln_2.{kind}"] = state[f"{layer}.layer_norm2.{kind}"]
                found[f"{block}.mlp.c_fc.{kind}"] = state[f"{layer}.mlp.fc1.{kind}"]
                found[f"{block}.mlp.c_proj.{kind}"] = state[f"{layer}.mlp.fc2.{kind}"]
                found[f"{block}.attn.out_proj.{kind}"] = state[f"{layer}.self_attn.out_proj.{kind}"]
                thirds = [state[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat(thirds)
    assert (
        len(found) == len(state) - 2 * 2 * 2 * 2
    )  # q, k and v of two towers and layers, weight and bias, in one
    return found


@pytest.fixture(scope="session")
def open_clip_folder(folder: Callable[[str], Path], clip_folder: Path) -> Path:
    """The same CLIP as an open_clip checkpoint, under the name of HPSv2.1's."""
    path = folder("open_clip")
    state = to_open_clip(CLIPModel.from_pretrained(clip_folder).state_dict())
    torch.save({"iteration": 1, "name": "tiny", "state_dict": state}, path / "HPS_v2.1_compressed.pt")
    return path


@pytest.fixture(scope="session")
def image_reward_folder(folder: Callable[[str], Path]) -> Path:
    """An ImageReward checkpoint under BLIP's original names; one head of 64 channels."""
    path = folder("image_reward")
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int, centre: float = 0.0) -> Tensor:
        return centre + 0.25 * torch.randn(*shape, generator=generator)

    state: dict[str, Tensor] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(outputs, inputs), draw(outputs)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(width, centre=1.0), draw(width)

    eye = "blip.visual_encoder"
    state |= {f"{eye}.cls_token": draw(1, 1, 64), f"{eye}.pos_embed": draw(1, 17, 64)}
    state[f"{eye}.patch_embed.proj.weight"] = draw(64, 3, 8, 8)
    state[f"{eye}.patch_embed.proj.bias"] = draw(64)
    norm(f"{eye}.norm", 64)
    for number in range(2):
        block = f"{eye}.blocks.{number}"
        norm(f"{block}.norm1", 64)
        norm(f"{block}.norm2", 64)
        linear(f"{block}.attn.qkv", 64, 192)
        linear(f"{block}.attn.proj", 64, 64)
        linear(f"{block}.mlp.fc1", 64, 256)
        linear(f"{block}.mlp.fc2", 256, 64)
    text = "blip.text_encoder"
    state[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    state[f"{text}.embeddings.word_embeddings.weight"] = draw(57, 32)
    state[f"{text}.embeddings.position_embeddings.weight"] = draw(40, 32)
    norm(f"{text}.embeddings.LayerNorm", 32)
    for number in range(2):
        layer = f"{text}.encoder.layer.{number}"
        for attention, inputs in (("attention", 32), ("crossattention", 64)):
            linear(f"{layer}.{attention}.self.query", 32, 32)
            linear(f"{layer}.{attention}.self.key", inputs, 32)
            linear(f"{layer}.{attention}.self.value", inputs, 32)
            linear(f"{layer}.{attention}.output.dense", 32, 32)
            norm(f"{layer}.{attention}.output.LayerNorm", 32)
        linear(f"{layer}.intermediate.dense", 32, 48)
        linear(f"{layer}.output.dense", 48, 32)
        norm(f"{layer}.output.LayerNorm", 32)
    linear("blip.vision_proj", 64, 16)
    linear("blip.text_proj", 32, 16)
    state |= {f"mlp.{name}": value for name, value in head_state(32).items()}
    torch.save(state, path / "ImageReward.pt")
    (path / "med_config.json").write_text(json.dumps(TEXT | {"encoder_width": 768, "model_type": "bert"}))
    save_bert_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def mps_folder(folder: Callable[[str], Path], clip_folder: Path) -> Path:
    """An MPS checkpoint: a CLIP's weights, and the cross-attention head under its published names."""
    path = folder("mps")
    head = randomise(CrossHead(width=24, layers=2, heads=3, channels=8, hidden=96), seed=7).state_dict()
    state = {
        f"model.{name}": value for name, value in CLIPModel.from_pretrained(clip_folder).state_dict().items()
    }
    for name, value in head.items():
        _, number, block, rest = name.split(".", 3)
        # The published layer norms have a constant bias of zeros.
        value = torch.zeros_like(value) if rest == "norm.bias" else value  # noqa: PLW2901 - one name for one weight
        state[f"cross_model.layers.{number}.{block}.fn.{rest}"] = value
    for number in range(2):
        rates = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
        state[f"cross_model.layers.{number}.1.fn.rotary_emb.inv_freq"] = rates
    save_file(
        {f"mps.{name}": value.contiguous() for name, value in state.items()}, path / "model.safetensors"
    )
    return path
