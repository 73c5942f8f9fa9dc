"""A weighted sum of adapters is one plain adapter, to the last pixel of plain diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support import tiny_pipeline

from trainers.adapters.files import CONFIG, CONTROL, WEIGHTS
from trainers.adapters.interpolation import interpolated
from trainers.adapters.reading import read_files

ALL = ("to_q", "to_k", "to_v", "to_out.0", "conv1")
SHARES = (0.5, 0.3, 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("pipeline"))


def made(folder: Path, into: Path, **options: Any) -> dict[str, bytes]:
    place = tiny_pipeline.adapter(folder, into, **options)
    return {path.name: path.read_bytes() for path in place.iterdir()}


def shot(pipeline: Any) -> np.ndarray:
    """Four images of fixed prompts and noise, ``[4, h, w, 3]``."""
    found = pipeline(
        ["red circle", "blue square", "green triangle", "red square"],
        num_inference_steps=4,
        guidance_scale=3.0,
        eta=1.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
        output_type="np",
    )
    return np.asarray(found.images)


def test_one_file_draws_what_the_sum_of_the_updates_draws(folder: Path, tmp_path: Path) -> None:
    """Three adapters of other ranks and strengths, convolutions among their layers; 0.1 is left to the base."""
    parts = [
        made(folder, tmp_path / "a", seed=1, rank=2, targets=ALL),
        made(folder, tmp_path / "b", seed=2, rank=3, alpha=1.5, targets=ALL),
        made(folder, tmp_path / "c", seed=3, rank=1, alpha=4.0, targets=ALL),
    ]
    found = interpolated([(str(n), files, w) for n, (files, w) in enumerate(zip(parts, SHARES, strict=True))])
    assert set(found) == {WEIGHTS, CONFIG}
    assert {(update.rank, update.alpha) for update in read_files(found)} == {(6, 6.0)}
    (tmp_path / "sum").mkdir()
    for name, content in found.items():
        (tmp_path / "sum" / name).write_bytes(content)
    read = tiny_pipeline.plain(folder)
    read.load_lora_weights(tmp_path / "sum")

    summed = tiny_pipeline.plain(folder)
    layers = dict(summed.unet.named_modules())
    for files, share in zip(parts, SHARES, strict=True):
        tensors = load(files[WEIGHTS])
        for update in read_files(files):
            down, up = tensors[update.down].double(), tensors[update.up].double()
            change = (up.flatten(1) @ down.flatten(1)) * (share * update.strength)
            weight = layers[update.layer].weight.data
            weight += change.reshape(weight.shape).float()
    ours, theirs = shot(read), shot(summed)
    assert np.abs(theirs - shot(tiny_pipeline.plain(folder))).max() > 0.02, "the adapters do something"
    assert np.abs(ours - theirs).max() * 255 <= 1


def test_a_single_adapter_is_scaled(folder: Path, tmp_path: Path) -> None:
    files = made(folder, tmp_path / "a", seed=1, rank=2, alpha=6.0)
    [half, whole] = [load(interpolated([("a", files, share)])[WEIGHTS]) for share in (0.5, 1.0)]
    for name, matrix in whole.items():
        torch.testing.assert_close(half[name] * (2.0 if "lora_B" in name else 1.0), matrix)


def test_what_cannot_be_summed_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    one = made(folder, tmp_path / "one", seed=1)
    other = made(folder, tmp_path / "other", seed=1, targets=("to_q", "to_k"))
    wide = made(tiny_pipeline.write(tmp_path / "wide", widths=(16, 32)), tmp_path / "far", seed=1)
    for parts, expected in (
        ([("one", one, 0.5), ("other", other, 0.5)], "one and other adapt other layers.* is in one alone"),
        ([("one", one, 0.5), ("far", wide, 0.5)], "one and far are of other bases"),
        ([("one", one, 0.5), ("net", {CONTROL: b""}, 0.5)], "net is the residual of a mixture, a network"),
        ([("one", one, 0.5), ("bad", {WEIGHTS: b"x"}, 0.5)], "bad cannot be interpolated"),
        ([("one", one, 0.8), ("two", one, 0.4)], "sum to at most 1, got 0.8, 0.4"),
        ([("one", one, 0.5), ("two", one, -0.4)], "weights are above 0"),
        ([], "nothing to interpolate"),
    ):
        with pytest.raises(ValueError, match=expected):
            interpolated(parts)
