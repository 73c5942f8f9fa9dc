"""Adapters that a spec names: found beside it, known by their weights, and looked at without torch."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support.models.networks import ADAPTERS, write_adapter

from orchestrator.errors import SpecError
from orchestrator.plan import make_plan
from orchestrator.spec.load import dump_spec, load_spec, parse_spec
from orchestrator.spec.records.constituents import (
    AdapterModel,
    adapter_directory,
    shipped_adapters,
)
from orchestrator.spec.records.models import SweepSpec
from trainers.adapters.digest import adapter_digest
from trainers.adapters.files import CONFIG, PEFT_WEIGHTS, WEIGHTS, defining_files
from trainers.adapters.header import header_of


def spec_at(directory: Path, adapter: str) -> SweepSpec:
    file = directory / "spec.yaml"
    file.write_text(ADAPTERS.replace("{adapter: contrast}", f"{{adapter: {adapter}}}"))
    return load_spec(file)


def found(spec: SweepSpec) -> AdapterModel:
    assert spec.models is not None
    model = spec.models["crisp"]
    assert isinstance(model, AdapterModel)
    return model


def refused(directory: Path, adapter: str) -> str:
    with pytest.raises(SpecError) as error:
        spec_at(directory, adapter)
    return str(error.value)


def test_shipped_adapters_go_by_their_names() -> None:
    assert {"colourfulness", "contrast", "saturation"} <= set(shipped_adapters())
    for name in shipped_adapters():
        file = adapter_directory(name) / WEIGHTS
        matrices = safetensors.numpy.load_file(file)
        assert header_of(file.parent).shapes == {key: matrix.shape for key, matrix in matrices.items()}
    model = found(parse_spec(ADAPTERS))
    assert model.adapter == "contrast"
    assert model.digest == hashlib.sha256((adapter_directory("contrast") / WEIGHTS).read_bytes()).hexdigest()


def test_an_adapter_beside_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_adapter(tmp_path / "sub" / "mine")
    monkeypatch.chdir(tmp_path)
    for place, name in ((tmp_path / "sub", "mine"), (tmp_path, "sub/mine"), (tmp_path / "sub", str(made))):
        model = found(spec_at(place, name))
        assert model.adapter == str(made)
        assert model.digest == hashlib.sha256((made / WEIGHTS).read_bytes()).hexdigest()
    (tmp_path / "other").mkdir()
    assert found(spec_at(tmp_path / "other", "sub/mine")).adapter == str(made), "the working directory"


def test_trials_know_an_adapter_by_its_weights(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a" / "mine")
    write_adapter(tmp_path / "b" / "theirs")
    write_adapter(tmp_path / "c" / "mine", rank=2)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / WEIGHTS).write_bytes((adapter_directory("contrast") / WEIGHTS).read_bytes())

    def ids(folder: str, name: str) -> list[str]:
        return [trial.trial_id for trial in make_plan(spec_at(tmp_path / folder, name)).trials]

    assert ids("a", "mine") == ids("b", "theirs") != ids("c", "mine")
    assert ids(".", "copy") == ids(".", "contrast")


def settle(directory: Path, **settings: object) -> str:
    """Write peft's configuration beside an adapter; returns the digest that it then has."""
    defaults = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_rslora": False, "alpha_pattern": {}}
    (directory / CONFIG).write_text(json.dumps(defaults | settings))
    return adapter_digest(directory)


def test_the_strength_that_stands_beside_an_adapter_is_part_of_it(tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "mine")
    plain = settle(made)
    changes: tuple[dict[str, object], ...] = (
        {"lora_alpha": 16},
        {"lora_alpha": 0},
        {"lora_alpha": None},
        {"use_rslora": True},
        {"alpha_pattern": {"attn1.to_k": 8}},
        {"rank_pattern": {"attn1.to_k": 8}},
    )
    found = [settle(made, **change) for change in changes]
    assert len({plain, *found}) == 1 + len(changes)
    immaterial = {"peft_version": "0.9", "lora_dropout": 0.1, "inference_mode": True, "a_new_default": None}
    assert settle(made, **immaterial) == plain
    settle(made)
    before = [trial.trial_id for trial in make_plan(spec_at(tmp_path, "mine")).trials]
    settle(made, lora_alpha=16)
    assert [trial.trial_id for trial in make_plan(spec_at(tmp_path, "mine")).trials] != before


def test_settings_beside_an_adapter_that_states_its_own_do_not_count(tmp_path: Path) -> None:
    shutil.copytree(adapter_directory("contrast"), made := tmp_path / "mine")
    assert settle(made, lora_alpha=16) == adapter_digest(adapter_directory("contrast"))


def test_a_resolved_spec_outlives_its_adapter(tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "mine")
    spec = spec_at(tmp_path, "mine")
    text = dump_spec(spec)
    assert parse_spec(text) == spec
    trials = make_plan(spec).trials
    (made / WEIGHTS).unlink()
    assert parse_spec(text) == spec
    assert make_plan(parse_spec(text)).trials == trials
    write_adapter(made, rank=2)
    with pytest.raises(SpecError, match="not the one that was meant"):
        parse_spec(text)


def test_the_file_of_the_exact_name_is_the_adapter(tmp_path: Path) -> None:
    """Whatever lies beside it, and whichever the file system lists first."""
    made = write_adapter(tmp_path / "mine")
    digest = hashlib.sha256((made / WEIGHTS).read_bytes()).hexdigest()
    older = (write_adapter(tmp_path / "older", rank=2) / WEIGHTS).read_bytes()
    for prefix in ("prev_", "a-", "z_", "."):
        (made / f"{prefix}{WEIGHTS}").write_bytes(older)
    (made / PEFT_WEIGHTS).write_bytes(older)
    assert found(spec_at(tmp_path, "mine")).digest == digest
    assert defining_files(made) == (made / WEIGHTS,)
    (made / CONFIG).write_text('{"lora_alpha": 4}')
    assert defining_files(made) == (made / WEIGHTS, made / CONFIG)


@pytest.mark.parametrize("name", [PEFT_WEIGHTS, "my_lora.safetensors"])
def test_another_name_alone_is_the_adapter(tmp_path: Path, name: str) -> None:
    made = write_adapter(tmp_path / "mine")
    (made / WEIGHTS).rename(made / name)
    (made / "notes.txt").touch()
    model = found(spec_at(tmp_path, "mine"))
    assert model.digest == hashlib.sha256((made / name).read_bytes()).hexdigest()
    (made / f"other-{name}").write_bytes((made / name).read_bytes())
    if name == PEFT_WEIGHTS:
        assert found(spec_at(tmp_path, "mine")) == model
    else:
        assert (
            "has several files of weights and none is called pytorch_lora_weights.safetensors: "
            "my_lora.safetensors, other-my_lora.safetensors" in refused(tmp_path, "mine")
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("saturatio", "did you mean 'saturation'? shipped: colourfulness, contrast, saturation"),
        ("no/such", "no/such (No such file or directory)"),
        ("empty", "holds: nothing"),
        ("text", "it holds: notes.txt"),
        (f"file/{WEIGHTS}", "Not a directory"),
        ("~/mine", "a ~ is not expanded"),
        ("broken", "not in the format of safetensors"),
        ("short", "not in the format of safetensors"),
        ("nothing", "has no matrices"),
        ("folder", f"{WEIGHTS} is not a file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, name: str, message: str) -> None:
    for folder in ("empty", "text", "file", "broken", "short", "nothing", f"folder/{WEIGHTS}"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "text" / "notes.txt").touch()
    (tmp_path / "file" / WEIGHTS).touch()
    (tmp_path / "broken" / WEIGHTS).write_bytes(b"no adapter at all")
    (tmp_path / "short" / WEIGHTS).write_bytes((8).to_bytes(8, "little") + b"[1, 2]  ")
    (tmp_path / "nothing" / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}")
    assert message in refused(tmp_path, name)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "is a DoRA adapter (lora_unet_mid_block"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "adapts the text encoder too (lora_te_text"),
        ("unet.conv_in.lokr_w1", "is a LoKr adapter (unet.conv_in.lokr_w1)"),
        ("unet.conv_in.lora_A.weight", "without the up matrix"),
    ],
)
def test_what_does_not_compose_is_refused_before_anything_starts(
    tmp_path: Path, key: str, message: str
) -> None:
    made = write_adapter(tmp_path / "mine")
    matrices = safetensors.numpy.load_file(made / WEIGHTS)
    safetensors.numpy.save_file(matrices | {key: np.zeros((1, 1), dtype=np.float32)}, made / WEIGHTS)
    text = refused(tmp_path, "mine")
    assert f"cannot be composed: {WEIGHTS} " in text
    assert message in text
    assert "shipped" not in text


def test_settings_of_a_changed_base_are_refused_before_anything_starts(tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "mine")
    settle(made, init_lora_weights="pissa_niter_16")
    assert "adapter_config.json says init_lora_weights: pissa_niter_16" in refused(tmp_path, "mine")
    settle(made, init_lora_weights="eva")
    assert found(spec_at(tmp_path, "mine"))


def test_a_layer_that_the_base_lacks_is_refused_before_anything_starts(tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "mine")
    matrices = safetensors.numpy.load_file(made / WEIGHTS)
    moved = {name.replace("down_blocks.0", "down_blocks.9"): matrix for name, matrix in matrices.items()}
    safetensors.numpy.save_file(matrices | moved, made / WEIGHTS)
    text = refused(tmp_path, "mine")
    assert (
        "does not fit the base: 2 of its 4 layers are not in the base, the first unet.down_blocks.9." in text
    )


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "wide", prompt_width=768)
    write_adapter(tmp_path / "deep", width=320)
    assert (
        f"attn2.to_k in wide/{WEIGHTS} is of width 768, and cross_attention_dim in embedded/unet/config.json is 64"
        in refused(tmp_path, "wide")
    )
    assert "attn1.to_k in deep" in (text := refused(tmp_path, "deep"))
    assert "width 320, and block_out_channels in embedded/unet/config.json is [64, 96]" in text
