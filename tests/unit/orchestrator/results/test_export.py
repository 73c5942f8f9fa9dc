"""Adapters leave a sweep without harm to what is there, and trials are found by the beginning of their id."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from orchestrator.errors import StorageError, UsageError
from orchestrator.results.catalog import find_trial
from orchestrator.results.export import exported, write_adapter
from orchestrator.results.formats import Format
from orchestrator.results.store import SweepStore
from trainers.adapters.files import FRONTIER_LORA, MULTIPLIERS, WEIGHTS
from trainers.adapters.header import read_header
from trainers.pipelines.families import STABLE_DIFFUSION
from trainers.types import FloatArray

FILES = {WEIGHTS: b"weights", "README.md": b"card"}


def test_files_are_written_to_a_new_directory(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    paths = write_adapter(FILES, str(target))
    assert paths == [str(target / "README.md"), str(target / "pytorch_lora_weights.safetensors")]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == FILES
    assert write_adapter(FILES, str(target)) == paths, "what is there already may be written again"


@pytest.mark.parametrize("name", ["README.md", "other.txt", ".git"])
def test_a_directory_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"not empty: it holds {name}"):
        write_adapter(FILES, str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"mine"}


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        write_adapter(FILES, str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot write .*below"):
        write_adapter(FILES, str(tmp_path / "file" / "below"))
    (tmp_path / "taken" / "README.md").mkdir(parents=True)
    with pytest.raises(StorageError, match="directory"):
        write_adapter(FILES, str(tmp_path / "taken"))


# What is stored, as it leaves.

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CARD = "---\nbase_model: {base}\nlibrary_name: diffusers\n---\n\n# Adapter\n\nbase_model: text\n"


def stored(alpha: float, *, base: str = "owner/name", rslora: bool = False) -> dict[str, bytes]:
    """Files of an adapter of rank 2 as sweeps of earlier versions left them: alpha in metadata and settings."""
    random = np.random.default_rng(0)
    matrices = {
        f"unet.{LAYER}.lora_A.weight": random.normal(size=(2, 8)).astype(np.float32),
        f"unet.{LAYER}.lora_B.weight": random.normal(size=(6, 2)).astype(np.float32),
    }
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": ["to_q"],
    }
    stated = json.dumps({f"unet.{key}": value for key, value in config.items()})
    weights = safetensors.numpy.save(matrices, {"format": "pt", "lora_adapter_metadata": stated})
    return {
        WEIGHTS: weights,
        "adapter_config.json": json.dumps(config).encode(),
        "README.md": CARD.format(base=base).encode(),
    }


def update_of(files: dict[str, bytes], down: str, up: str) -> FloatArray:
    """Return ``B A``, as tools take it that find no alpha or one equal to the rank."""
    matrices = safetensors.numpy.load(files[WEIGHTS])
    product: FloatArray = matrices[up].astype(np.float64) @ matrices[down]
    return product


@pytest.mark.parametrize(
    ("alpha", "rslora", "strength"), [(8, False, 4), (1.5, False, 0.75), (4, True, 8**0.5)]
)
def test_the_strength_leaves_in_the_matrices(alpha: float, rslora: bool, strength: float) -> None:
    files = stored(alpha, rslora=rslora)
    names = (f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight")
    expected = strength * update_of(files, *names)
    out = exported(files, Format.diffusers, STABLE_DIFFUSION)
    np.testing.assert_allclose(update_of(out, *names), expected, rtol=1e-6, atol=1e-6)
    for config in (
        json.loads(out["adapter_config.json"]),
        {key.removeprefix("unet."): value for key, value in metadata_of(out).items()},
    ):
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 2, False)
        assert config["target_modules"] == ["to_q"]
    assert exported(out, Format.diffusers, STABLE_DIFFUSION) == out
    kohya = exported(files, Format.kohya, STABLE_DIFFUSION)
    assert set(kohya) == {WEIGHTS, "README.md"}, "peft's settings do not belong to names of kohya"
    layer = "lora_unet_" + LAYER.replace(".", "_")
    tensors = safetensors.numpy.load(kohya[WEIGHTS])
    assert set(tensors) == {f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"}
    assert tensors[f"{layer}.alpha"] == 2
    found = update_of(kohya, f"{layer}.lora_down.weight", f"{layer}.lora_up.weight")
    np.testing.assert_array_equal(found, update_of(out, *names))
    assert exported(out, Format.kohya, STABLE_DIFFUSION) == kohya


def metadata_of(files: dict[str, bytes]) -> dict[str, Any]:
    metadata = read_header(BytesIO(files[WEIGHTS])).metadata
    stated: dict[str, Any] = json.loads(metadata["lora_adapter_metadata"])
    return stated


def test_an_adapter_of_strength_one_leaves_as_it_is() -> None:
    files = stored(2)  # once: safetensors orders metadata anew every time
    assert exported(files, Format.diffusers, STABLE_DIFFUSION) == files


@pytest.mark.parametrize(
    ("base", "known"),
    [("owner/name", True), ("/data/sd15", False), ("./pipeline", False), ("embedded", False)],
)
@pytest.mark.parametrize("form", Format)
def test_no_path_leaves_in_the_head_of_a_card(base: str, known: bool, form: Format) -> None:
    card = exported(stored(8, base=base), form, STABLE_DIFFUSION)["README.md"].decode()
    assert card.startswith(f"---\nbase_model: {base}\nlib" if known else "---\nlibrary_name")
    assert "\nbase_model: text\n" in card


def test_what_is_no_adapter_does_not_leave() -> None:
    with pytest.raises(StorageError, match=r"cannot be exported: .* not in the format of safetensors"):
        exported({WEIGHTS: b"weights"}, Format.diffusers, STABLE_DIFFUSION)


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    made = SweepStore(str(tmp_path), "demo")
    made.create("name: demo\n", {"trials": [{"trial_id": name} for name in ("aa11", "aa12", "bb22")]}, None)
    return made


def test_a_trial_is_found_by_its_id_or_its_beginning(store: SweepStore) -> None:
    assert find_trial(store, "aa11") == "aa11"
    assert find_trial(store, "b") == "bb22"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("aa", "2 trials of demo begin with 'aa': aa11, aa12"),
        ("bb23", "no trial 'bb23' in demo; there are: bb22"),
        ("zzz", "no trial 'zzz' in demo; there are: aa11, aa12, bb22"),
    ],
)
def test_any_other_name_is_answered_with_those_there_are(store: SweepStore, written: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        find_trial(store, written)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        (
            [MULTIPLIERS],
            r"many thresholds is no plain LoRA: --format kohya .*; --at-least REWARD=VALUE gives",
        ),
        (
            [],
            r"all weights of a composition is no plain LoRA: .*; --multiplier MODEL=WEIGHT gives a plain one",
        ),
    ],
)
def test_what_gives_a_plain_lora_in_its_place_is_said(beside: list[str], expected: str) -> None:
    files = dict.fromkeys((FRONTIER_LORA, *beside), b"")
    with pytest.raises(UsageError, match=expected):
        exported(files, Format.kohya, STABLE_DIFFUSION)
