"""Weights that are absent, damaged, unsafe, of another architecture, or under other names."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from trainers.reward_parameters import IMAGE_REWARD_PARAMETERS
from trainers.rewards import weights
from trainers.rewards.blip import Blip2Itm, BlipItm, ImageReward
from trainers.rewards.clip import Aesthetic, ClipScore, HPSv2, HPSv21, PickScore
from trainers.rewards.conversion import from_open_clip
from trainers.rewards.mps import MPS

ABSENT = {
    "clip_score": ClipScore,
    "pick_score": PickScore,
    "hpsv2": HPSv2,
    "hpsv2_1": HPSv21,
    "aesthetic": Aesthetic,
    "blip_itm": BlipItm,
    "blip2_itm": Blip2Itm,
    "image_reward": ImageReward,
    "mps": MPS,
}


@pytest.mark.parametrize("name", ABSENT)
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_absent_weights(name: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    with pytest.raises(ValueError, match=f"reward '{name}': cannot load model") as raised:
        ABSENT[name](str(folder))
    published = IMAGE_REWARD_PARAMETERS[name]().model
    assert f"`hf download {published} --local-dir {folder}`" in str(raised.value)
    assert "set `model:`" in str(raised.value)


def test_the_error_names_the_parameter_that_is_wrong(
    clip_folder: Path, aesthetic_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"reward 'pick_score': cannot load processor .*set `processor:`"):
        PickScore(str(clip_folder), processor=str(tmp_path))
    with pytest.raises(ValueError, match=r"reward 'aesthetic': cannot load clip .*set `clip:`"):
        Aesthetic(str(aesthetic_folder), clip=str(tmp_path))


def copied(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_missing_weights_are_not_drawn_at_random(clip_folder: Path, tmp_path: Path) -> None:
    copied(clip_folder, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"it lacks visual_projection\.weight"):
        ClipScore(str(tmp_path))


def test_damaged_weights(clip_folder: Path, aesthetic_folder: Path, tmp_path: Path) -> None:
    copied(clip_folder, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="reward 'clip_score': cannot load model"):
        ClipScore(str(tmp_path))
    copied(aesthetic_folder, tmp_path)
    (tmp_path / "aesthetic-model.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="reward 'aesthetic'"):
        Aesthetic(str(tmp_path / "aesthetic-model.pth"), clip=str(clip_folder))


@dataclass
class Payload:
    path: Path

    def __reduce__(self) -> Any:  # noqa: D105 - what a pickle runs when it is loaded
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_is_refused_and_not_run(form: str, clip_folder: Path, tmp_path: Path) -> None:
    path, mark = tmp_path / "MPS_overall_checkpoint.pth", tmp_path / "ran"
    if form == "torch":
        torch.save({"model": Payload(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(
        ValueError, match=r"holds more than tensors.*Save its state_dict\(\) as \.safetensors"
    ):
        MPS(str(tmp_path), processor=str(clip_folder))
    assert not mark.exists()


def test_a_whole_module_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "MPS_overall_checkpoint.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        MPS(str(tmp_path), processor=str(clip_folder))


def test_another_architecture_is_refused(
    clip_folder: Path, aesthetic_folder: Path, image_reward_folder: Path, tmp_path: Path
) -> None:
    clip, other = str(clip_folder), str(aesthetic_folder / "aesthetic-model.pth")
    with pytest.raises(
        ValueError, match=r"no weight of an open_clip vision transformer: 'layers\.0\.weight'"
    ):
        HPSv21(other, processor=clip)
    with pytest.raises(ValueError, match=r"it lacks cross_model\.layers"):
        MPS(other, processor=clip)
    with pytest.raises(ValueError, match=r"it lacks blip\.visual_encoder"):
        ImageReward(other, processor=str(image_reward_folder))
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"it lacks layers\.0\.weight"):
        Aesthetic(str(tmp_path), clip=clip)


def test_a_checkpoint_of_other_sizes_is_refused(
    open_clip_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    copied(clip_folder, tmp_path)
    config = CLIPConfig.from_pretrained(clip_folder)
    config.projection_dim = 12
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"size mismatch for"):
        HPSv21(str(open_clip_folder), processor=str(tmp_path))


def test_open_clip_names_round_trip(open_clip_folder: Path, clip_folder: Path) -> None:
    state = torch.load(open_clip_folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    expected = CLIPModel.from_pretrained(clip_folder).state_dict()
    found = from_open_clip(state | {"attn_mask": torch.zeros(2, 2)})
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    with pytest.raises(ValueError, match=r"no weight .*'transformer\.resblocks\.0\.ls_1\.gamma'"):
        from_open_clip({"transformer.resblocks.0.ls_1.gamma": torch.zeros(1)})


def test_prefixed_and_safe_copies_load_alike(
    clip_folder: Path,
    open_clip_folder: Path,
    aesthetic_folder: Path,
    pictures: Tensor,
    prompts: list[str],
    tmp_path: Path,
) -> None:
    """Copies under other prefixes, as re-published on the hub."""
    clip = str(clip_folder)
    state = torch.load(open_clip_folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    save_file(
        {f"model.{name}": value.contiguous() for name, value in state.items()}, tmp_path / "hps.safetensors"
    )
    head = torch.load(aesthetic_folder / "aesthetic-model.pth", weights_only=True)
    copies = {f"mlp.{name}": value for name, value in head.items()} | {"clip.layers.0.weight": torch.zeros(1)}
    save_file(copies, tmp_path / "model.safetensors")
    with torch.no_grad():
        for cls, source, copy, more in (
            (HPSv21, open_clip_folder, tmp_path / "hps.safetensors", {"processor": clip}),
            (Aesthetic, aesthetic_folder, tmp_path, {"clip": clip}),
        ):
            assert torch.equal(
                cls(str(copy), **more)(pictures, prompts), cls(str(source), **more)(pictures, prompts)
            )


def test_an_open_clip_folder_may_hold_no_image_processor(clip_folder: Path, tmp_path: Path) -> None:
    copied(clip_folder, tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    assert ClipScore(str(tmp_path))._clip._preprocess.crop == (224, 224)


def test_shared_loads_once() -> None:
    calls: list[int] = []
    for _ in range(2):
        weights.shared(("test", "once"), lambda: calls.append(1))
    assert calls == [1]


def test_a_head_of_another_clip_is_refused(clip_folder: Path, aesthetic_folder: Path, tmp_path: Path) -> None:
    state = torch.load(aesthetic_folder / "aesthetic-model.pth", weights_only=True)
    save_file(state | {"layers.0.weight": torch.zeros(1024, 20)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"reads embeddings of width 20, and the clip .* gives 24: they belong"
    ):
        Aesthetic(model=str(tmp_path), clip=str(clip_folder))
