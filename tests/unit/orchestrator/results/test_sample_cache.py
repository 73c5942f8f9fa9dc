"""Samples that are kept: found again where they mean the same, absent where they are damaged or mean something else."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.plan import base_config
from orchestrator.results.catalog import list_sweeps
from orchestrator.results.sample_cache import CachedSamples, SampleCache, samples_key
from orchestrator.results.schema import VERSION_KEY, samples_of, samples_table
from orchestrator.spec.load import parse_spec
from trainers.problem import statistics
from trainers.types import Evaluation

SPEC = """
name: demo
model: {pretrained: owner/name, lora: {rank: 4}}
prompts: {train: [a cat], evaluate: [a dog]}
constraints:
  - {reward: saturation, at_least: 0.5, unit: sigma}
  - {reward: brightness, at_least: 0.25, unit: sigma}
training: {steps: 20}
evaluation: {images: 64}
"""


def key_of(old: str = "", new: str = "", overrides: tuple[str, ...] = ()) -> str:
    assert old in SPEC
    return samples_key(base_config(parse_spec(SPEC.replace(old, new) if old else SPEC, overrides=overrides)))


@pytest.fixture
def samples() -> CachedSamples:
    rng = np.random.default_rng(0)
    drawn = {
        name: Evaluation(
            kl=np.zeros(6),
            rewards={"saturation": rng.normal(size=6), "brightness": rng.normal(size=6)},
            seeds=np.arange(6),
            prompts=("a cat",) * 6,
        )
        for name in ("train", "evaluate")
    }
    config = base_config(parse_spec(SPEC))
    return CachedSamples(
        table=samples_table(config, drawn), baseline=statistics(drawn).model_dump(mode="json"), image=b"png"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: demo", "name: other"),
        ("rank: 4", "rank: 8"),
        ("steps: 20", "steps: 400, learning_rate: 1.0e-4"),
        ("at_least: 0.5", "at_least: {grid: [0.1, 0.9]}"),
        ("{reward: saturation, at_least: 0.5, unit: sigma}\n  - {reward: brightness, at_least: 0.25, unit: sigma}",
         "{reward: brightness, at_least: 0.25, unit: sigma}\n  - {reward: saturation, at_least: 0.5, unit: sigma}"),
    ],
)  # fmt: skip
def test_what_is_trained_does_not_count(old: str, new: str) -> None:
    assert key_of(old, new) == key_of()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("owner/name", "owner/other"),
        ("[a cat]", "[a cat, a cow]"),
        ("[a dog]", "[a cow]"),
        ("reward: saturation", "reward: {saturation: {aim: low}}"),
        ("evaluation: {images: 64}", "evaluation: {images: 128}"),
        ("evaluation: {images: 64}", "evaluation: {images: 64, baseline_images: 4096}"),
        ("evaluation: {images: 64}", "evaluation: {images: 64, seed: 9}"),
        ("steps: 20}", "steps: 20}\nsampling: {steps: 11}"),
        ("steps: 20}", "steps: 20, precision: fp16}"),
    ],
)
def test_what_is_sampled_does(old: str, new: str) -> None:
    assert key_of(old, new) != key_of()


def test_what_is_kept_is_found_and_is_no_sweep(tmp_path: Path, samples: CachedSamples) -> None:
    cache = SampleCache(str(tmp_path))
    assert cache.get("ab12") is None
    cache.put("ab12", samples)
    found = SampleCache(f"{tmp_path}/").get("ab12")
    assert found is not None
    assert found.table.equals(samples.table)
    assert samples_of(found.table, "train").keys() == {"saturation", "brightness"}
    assert found.baseline == samples.baseline
    assert found.drawn_at == samples.drawn_at
    assert found.image == b"png"
    assert cache.get("ab13") is None
    assert list_sweeps(str(tmp_path)) == []


def test_samples_without_pictures_have_none(tmp_path: Path, samples: CachedSamples) -> None:
    cache = SampleCache(str(tmp_path))
    cache.put("ab12", CachedSamples(table=samples.table, baseline=samples.baseline, image=None))
    found = cache.get("ab12")
    assert found is not None
    assert found.image is None


@pytest.mark.parametrize("name", ["ab12.parquet", "ab12.json"])
@pytest.mark.parametrize(
    "damage", [None, b"", b"{", b"[1]", b'{"baseline": {}}', b"PAR1 and then nothing PAR1"]
)
def test_what_is_damaged_counts_as_absent(
    tmp_path: Path, samples: CachedSamples, name: str, damage: bytes | None
) -> None:
    cache = SampleCache(str(tmp_path))
    cache.put("ab12", samples)
    (path,) = tmp_path.rglob(name)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert cache.get("ab12") is None
    cache.put("ab12", samples)
    assert cache.get("ab12") is not None


def test_samples_of_another_version_are_drawn_again(tmp_path: Path, samples: CachedSamples) -> None:
    old = samples.table.replace_schema_metadata({**samples.table.schema.metadata, VERSION_KEY: b"0"})
    cache = SampleCache(str(tmp_path))
    cache.put("ab12", CachedSamples(table=old, baseline=samples.baseline, image=None))
    assert cache.get("ab12") is None
