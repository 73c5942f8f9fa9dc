"""Trials that compose tiny pipelines, from their samples alone to the one adapter in their place."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_pipeline
from torch import Tensor

from trainers.adapters.files import WEIGHTS
from trainers.composition.networks.alone import MODEL, sample_alone
from trainers.composition.networks.judges import LEAST
from trainers.composition.networks.pipelines import PipelineChains
from trainers.composition.networks.trial import NetworkTrial
from trainers.config import (
    BaseConfig,
    CompositionConfig,
    ConstituentConfig,
    ConstraintConfig,
    ConvergenceConfig,
    DistillationConfig,
    DualConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.rewards.base import build_reward
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, StepRecord, TrialOutcome
from trainers.workers.collective import Collective, Shard

EVALUATE = ("red square", "blue circle")
PROMPTS = PromptsConfig(train=tiny_pipeline.PROMPTS, evaluate=EVALUATE)
KINDS = {"bright": "brightness", "vivid": "saturation"}
IMAGES = 32

Samples = Mapping[str, Evaluation]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, one much like it, and adapters of the first."""
    root = tmp_path_factory.mktemp("pipelines")
    tiny_pipeline.write(root / "base")
    tiny_pipeline.write(root / "turned", prediction="v_prediction")
    for seed, name in enumerate(KINDS):
        tiny_pipeline.adapter(root / "base", root / name, seed=seed, size=0.15)
    return root


def adapters(root: Path) -> tuple[ConstituentConfig, ...]:
    return tuple(ConstituentConfig(name=name, adapter=str(root / name), rewards=(name,)) for name in KINDS)


def measured(*names: str) -> tuple[RewardConfig, ...]:
    return tuple(RewardConfig(name=name, kind=KINDS.get(name, name)) for name in names)


def config(
    root: Path,
    models: Sequence[ConstituentConfig] | None = None,
    *,
    weights: dict[str, float] | None = None,
    rewards: Sequence[RewardConfig] | None = None,
    prompts: PromptsConfig | None = PROMPTS,
    base: Path | None = None,
    training: Mapping[str, Any] | None = None,
    images: int = IMAGES,
    constraints: Sequence[ConstraintConfig] = (),
    **composition: Any,
) -> TrialConfig:
    """The trial of a composition; of the adapters by default, weighted if there are weights."""
    models = adapters(root) if models is None else models
    pipelines = all(model.pretrained is not None for model in models)
    based = None if pipelines and base is None else BaseConfig(pretrained=str(base or root / "base"))
    return TrialConfig(
        model=ModelConfig(
            composition=CompositionConfig(
                models=tuple(models), base=based, **{"sampler": "score", **composition}
            )
        ),
        prompts=prompts,
        sampling=SamplingConfig(steps=4, guidance=2.0),
        rewards=measured(*KINDS) if rewards is None else tuple(rewards),
        objective=ObjectiveConfig(kind="minmax_kl", target="models"),
        constraints=tuple(constraints),
        method="constrained" if weights is None else "weighted",
        weights=weights or {},
        seed=0,
        training=TrainingConfig(**{"steps": 6, "batch_per_worker": 32, **(training or {})}),
        duals=DualConfig(),
        convergence=ConvergenceConfig(window=3, tolerance=0.02),
        evaluation=EvaluationConfig(images=images, every=1),
    )


def run(
    config: TrialConfig, samples: Samples | None = None, io: LocalTrialIO | None = None, **thresholds: float
) -> TrialOutcome:
    """Run a trial on the samples that a sweep would have drawn first."""
    drawn = sample_alone(config, Collective()) if samples is None else samples
    job = TrialJob(trial_id="t", config=config, baseline=statistics(drawn), thresholds=thresholds)
    io = LocalTrialIO() if io is None else io
    io.pretrained = drawn["evaluate"].rewards
    io.alone = {name: found.rewards for name, found in drawn.items()}
    return run_trial(job, io)


@pytest.fixture(scope="module")
def alone(root: Path) -> Samples:
    return sample_alone(config(root), Collective())


# ------------------------------------------------------------------------------------------- samples alone


def test_the_sets_of_samples(root: Path, alone: Samples) -> None:
    assert set(alone) == {"train", "evaluate", f"{MODEL}bright", f"{MODEL}vivid"}
    for name, drawn in alone.items():
        assert len(drawn.seeds) == IMAGES
        assert drawn.prompts is not None
        assert set(drawn.prompts) == set(tiny_pipeline.PROMPTS if name == "train" else EVALUATE)
        assert (drawn.seeds.tolist() == alone["evaluate"].seeds.tolist()) == (name != "train")
    assert sample_pretrained(config(root)).keys() == alone.keys()
    concepts = config(root, concepts_of("red circle"), rewards=measured("bright"), prompts=None)
    assert set(sample_alone(concepts, Collective())) == {"train", "evaluate"}


def test_shares_add_up(root: Path) -> None:
    of = config(root, images=72)
    whole, parts = sample_alone(of, Collective()), [sample_alone(of, Shard(rank, 2)) for rank in range(2)]
    for name, drawn in whole.items():
        for reward, values in drawn.rewards.items():
            summed = sum(part[name].rewards[reward] for part in parts)
            assert np.allclose(summed, values, atol=1e-6)
            assert all(np.any(part[name].rewards[reward] == 0) for part in parts)
        assert [part[name].images is None for part in parts] == [False, True]


def hungry(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """Let the decoder hold so many images at a time; returns how many it was asked for."""
    decode, sizes = PipelineChains.decode, list[int]()

    def decoded(self: PipelineChains, state: Tensor) -> Tensor:
        sizes.append(len(state))
        if len(state) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(self, state)

    monkeypatch.setattr(PipelineChains, "decode", decoded)
    return sizes


def test_a_composition_goes_on_with_fewer_images_at_a_time(
    root: Path, alone: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of kernels that are chosen by the size of a batch."""
    of = config(root, weights={"bright": 0.5, "vivid": 0.5})
    usual = run(of, alone)
    sizes = hungry(monkeypatch, 8)
    drawn = sample_alone(of, Collective())
    assert sizes[0] == 32
    for name, found in drawn.items():
        np.testing.assert_allclose(found.rewards["bright"], alone[name].rewards["bright"], atol=1e-5)
        assert found.images is not None
        assert found.images.shape == alone[name].images.shape
        assert "sampling the pretrained model with 32 samples at a time: went on with 8" in found.notes[0]
    outcome = run(of, drawn)
    assert outcome.status == "succeeded"
    assert any("out of memory in the composition with 32 samples at a time" in note for note in outcome.notes)
    for name, kl in outcome.constituents.items():
        assert kl.mean == pytest.approx(usual.constituents[name].mean, rel=1e-3)
    sizes.clear()
    fewer = of.model_copy(update={"evaluation": of.evaluation.model_copy(update={"batch": 8})})
    assert run(fewer, drawn).notes == usual.notes
    assert max(sizes) == 8


def test_pipelines_are_held_against_their_base_where_there_is_one(root: Path) -> None:
    models = [
        ConstituentConfig(name="same", pretrained=str(root / "base"), rewards=("bright",)),
        ConstituentConfig(
            name="other", pretrained=str(tiny_pipeline.write(root / "second", unet={"act_fn": "gelu"}))
        ),
    ]
    found = sample_alone(config(root, models, rewards=measured("bright")), Collective())
    assert set(found) == {"train", "evaluate"}
    based = config(root, models, rewards=measured("bright"), base=root / "base")
    found = sample_alone(based, Collective())
    assert set(found) == {"train", "evaluate", f"{MODEL}same"}
    assert np.array_equal(found["evaluate"].rewards["bright"], found[f"{MODEL}same"].rewards["bright"])
    assert run(based, found).retention == {}, "a model that improves nothing has nothing to retain"


# ------------------------------------------------------------------------------------------- reverse


@pytest.mark.parametrize("sampler", ["score", "fkc"])
def test_a_product_keeps_its_models_equally_near(root: Path, alone: Samples, sampler: str) -> None:
    io = LocalTrialIO()
    best = run(config(root, sampler=sampler), alone, io)
    assert (best.status, best.sampler, best.error) == ("succeeded", sampler, None)
    assert best.kl is not None
    kls = {name: found.mean for name, found in best.constituents.items()}
    assert best.kl.mean == max(kls.values())
    assert sum(best.multipliers.values()) == pytest.approx(1.0)
    assert kls["bright"] == pytest.approx(kls["vivid"], rel=0.2)
    assert best.kl_estimator == {"score": "path", "fkc": "path_energy"}[sampler]
    uneven = run(config(root, sampler=sampler, weights={"bright": 0.8, "vivid": 0.2}), alone)
    assert uneven.kl is not None
    assert uneven.kl.mean > 1.2 * best.kl.mean
    assert set(best.retention) <= set(KINDS)
    assert set(best.pointwise) == set(KINDS)
    assert all(0 < found.mean < 2 * best.kl.mean for found in best.pointwise.values())
    assert best.distilled == {}
    assert best.adapter == {}
    assert [record.step for record in io.records] == [record.step for record in best.history]
    assert set(io.records[0].constituents) == set(KINDS)


@pytest.mark.parametrize("sampler", ["score", "fkc", "merged"])
def test_a_vertex_is_the_model_alone(root: Path, alone: Samples, sampler: str) -> None:
    outcome = run(config(root, sampler=sampler, weights={"bright": 1.0, "vivid": 0.0}), alone)
    assert outcome.constituents["bright"].mean == pytest.approx(0.0, abs=1e-6)
    assert outcome.pointwise["bright"].mean == pytest.approx(0.0, abs=1e-6)
    kept, by_itself = outcome.evaluation, alone[f"{MODEL}bright"]
    assert kept is not None
    for name in KINDS:
        assert np.allclose(kept.rewards[name], by_itself.rewards[name], atol=1e-5)
    gained = {name: by_itself.rewards[name].mean() - alone["evaluate"].rewards[name].mean() for name in KINDS}
    assert ("bright" in outcome.retention) == (gained["bright"] > 0)
    judged = adapters(root)[0].model_copy(update={"rewards": ("up",)})
    models = (judged, adapters(root)[1].model_copy(update={"rewards": ()}))
    aim = "high" if gained["bright"] > 0 else "low"
    up = RewardConfig(name="up", kind="brightness", parameters={"aim": aim})
    found = run(config(root, models, sampler=sampler, weights={"bright": 1.0, "vivid": 0.0}, rewards=[up]))
    assert found.retention.keys() == {"bright"}
    share = found.retention["bright"]
    assert share.mean == pytest.approx(1.0, abs=1e-6)
    assert share.low == pytest.approx(1.0, abs=1e-6)
    assert share.high == pytest.approx(1.0, abs=1e-6)


def test_an_evaluation_has_prompts_seeds_and_pictures(root: Path, alone: Samples) -> None:
    every: list[dict[str, Any]] = [{"sampler": "score"}, {"sampler": "fkc"}, {"direction": "forward"}]
    for changes in every:
        outcome = run(config(root, weights={"bright": 0.5, "vivid": 0.5}, **changes), alone)
        rows = outcome.evaluation
        assert rows is not None
        assert rows.prompts is not None
        assert rows.images is not None
        assert len(rows.kl) == len(rows.seeds) == len(rows.prompts) == IMAGES
        assert len(rows.images) == 16
        assert set(rows.prompts) == set(EVALUATE)
        assert set(rows.seeds) <= set(alone["evaluate"].seeds)
        known = changes.get("sampler") == "score"
        assert np.isfinite(rows.kl).all() == known
        if known:
            assert outcome.kl is not None
            assert rows.kl.mean() == pytest.approx(outcome.kl.mean)
            assert rows.seeds.tolist() == alone["evaluate"].seeds.tolist()


def test_merged_weights_are_another_chain(root: Path, alone: Samples) -> None:
    weights = {"bright": 0.5, "vivid": 0.5}
    found = {name: run(config(root, sampler=name, weights=weights), alone) for name in ("merged", "score")}
    assert found["merged"].network_evaluations is not None
    assert found["score"].network_evaluations == 2 * found["merged"].network_evaluations
    assert found["merged"].kl_estimator == "path"
    assert found["merged"].sampler == "merged"
    near = {name: outcome.pointwise["bright"].mean for name, outcome in found.items()}
    assert near["merged"] != pytest.approx(near["score"], rel=1e-3)
    kl = {name: outcome.kl.mean for name, outcome in found.items() if outcome.kl}
    assert kl["merged"] != pytest.approx(kl["score"], rel=1e-3)
    assert 0.2 * kl["score"] < kl["merged"] < 5 * kl["score"]


def test_thresholds_tilt_the_product(root: Path, alone: Samples) -> None:
    at_least = float(
        alone["evaluate"].rewards["bright"].mean() + 0.4 * alone["evaluate"].rewards["bright"].std()
    )
    bound = ConstraintConfig(name="bright", kind="reward", target="bright", bound=at_least, unit="absolute")
    models = tuple(model.model_copy(update={"name": f"m_{model.name}"}) for model in adapters(root))
    of = config(root, models, sampler="fkc", constraints=[bound], training={"steps": 12}, images=96)
    outcome = run(of, bright=at_least)
    assert outcome.status == "succeeded"
    assert outcome.multipliers["bright"] > 0
    assert outcome.rewards["bright"].mean == pytest.approx(at_least, rel=0.05)
    assert outcome.violations["bright"] == pytest.approx(at_least - outcome.rewards["bright"].mean)


# ------------------------------------------------------------------------------------------- forward


def test_a_sum_covers_its_models(root: Path, alone: Samples) -> None:
    best = run(config(root, direction="forward"), alone)
    assert best.status == "succeeded"
    assert best.kl is not None
    assert 0 < best.kl.mean < np.log(2) + 0.1
    assert best.multipliers["bright"] == pytest.approx(0.5, abs=0.15)
    assert best.pointwise == {}
    far = run(config(root, direction="forward", weights={"bright": 0.95, "vivid": 0.05}), alone)
    assert far.kl is not None
    assert far.kl.mean > best.kl.mean
    assert far.constituents["vivid"].mean == far.kl.mean


def test_a_sum_of_many_models(root: Path) -> None:
    """More models than samples of a group: groups grow, and what is kept is still paired with the models alone."""
    models = [adapters(root)[number % 2].model_copy(update={"name": f"m{number}"}) for number in range(9)]
    of = config(root, models, direction="forward", images=36, weights={m.name: 1 / 9 for m in models})
    drawn = sample_alone(of, Collective())
    outcome = run(of, drawn)
    assert outcome.evaluation is not None
    assert outcome.evaluation.prompts == drawn["evaluate"].prompts == drawn[f"{MODEL}m8"].prompts
    assert set(outcome.retention) <= {model.name for model in models}


# ------------------------------------------------------------------------------------------- checkpoints


class Dies(LocalTrialIO):
    """Keeps one checkpoint, and raises at a later step."""

    def report(self, record: StepRecord) -> None:
        super().report(record)
        if record.step == 5:
            raise InterruptedError


@pytest.fixture(scope="module")
def few(root: Path) -> Samples:
    return sample_alone(config(root, images=8), Collective())


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_a_restored_run_ends_as_an_undisturbed_one(root: Path, few: Samples, direction: str) -> None:
    training = {"steps": 7, "checkpoint_every": 3, "batch_per_worker": 8}
    of = config(root, direction=direction, sampler="fkc", training=training, images=8)
    of = of.model_copy(update={"convergence": of.convergence.model_copy(update={"tolerance": 1e-9})})
    undisturbed = run(of, few)
    assert undisturbed.steps == 7
    first = Dies()
    with pytest.raises(InterruptedError):
        run(of, few, first)
    assert first.checkpoint is not None
    second = LocalTrialIO(checkpoint=first.checkpoint)
    resumed = run(of, few, second)
    assert [record.step for record in second.records] == [4, 5, 6, 7]
    assert plain(resumed) == plain(undisturbed)


def plain(outcome: TrialOutcome) -> dict[str, Any]:
    """All of an outcome but times, comparable."""
    document = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
    del document["wall_seconds"]
    document["history"] = [
        dataclasses.replace(record, seconds=0.0, images_per_second=0.0) for record in outcome.history
    ]
    assert outcome.evaluation is not None
    rows = dataclasses.asdict(outcome.evaluation)
    document["evaluation"] = {
        name: {key: inner.tolist() for key, inner in value.items()}
        if isinstance(value, dict)
        else np.nan_to_num(value, nan=-1.0).tolist()
        if isinstance(value, np.ndarray)
        else value
        for name, value in rows.items()
    }
    return document


# ------------------------------------------------------------------------------------------- one adapter


def distilled(
    root: Path,
    alone: Samples,
    steps: int,
    direction: str,
    sampler: str = "score",
    images: int = IMAGES,
) -> TrialOutcome:
    lora = LoraConfig(rank=4, targets=("to_q", "to_k", "to_v", "to_out.0"))
    one = DistillationConfig(steps=steps, batch=16, learning_rate=1e-2, lora=lora)
    weights = {"bright": 0.5, "vivid": 0.5}
    of = config(root, weights=weights, direction=direction, sampler=sampler, distillation=one, images=images)
    return run(of, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "sampler"),
    [pytest.param("reverse", "score", marks=pytest.mark.exhaustive), ("reverse", "fkc"), ("forward", "fkc")],
)
def test_one_adapter_comes_nearer_with_more_steps(
    root: Path, alone: Samples, direction: str, sampler: str
) -> None:
    few, many = (distilled(root, alone, steps, direction, sampler) for steps in (1, 15))
    worst = {
        count: max(outcome.distilled[f"kl_{name}"].mean for name in KINDS)
        for count, outcome in (("few", few), ("many", many))
    }
    assert many.kl is not None
    assert worst["many"] < 0.8 * worst["few"]
    if direction == "reverse":
        # What no sampler of one network can undercut, and one that learned well does not exceed by much.
        assert 0.7 * many.kl.mean < worst["many"] < 2.5 * many.kl.mean
    else:
        assert worst["many"] > many.kl.mean, "a chain cannot be a mixture of two"
    assert set(many.distilled) == {f"{kind}_{name}" for kind in ("kl", "reward") for name in KINDS}
    assert any("distilled in 15 steps" in note for note in many.notes)


def draw(pipeline: Any, *, seed: int) -> np.ndarray[Any, Any]:
    """Return an image of the held-out prompt that is asked first, ``[h, w, 3]`` in [0, 1]."""
    found = pipeline(
        PROMPTS.in_turn("evaluate", EvaluationConfig().seed)[0],
        num_inference_steps=4,
        eta=1.0,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    return np.asarray(found.images[0])


def test_plain_diffusers_draws_what_the_adapter_is_judged_by(
    root: Path, alone: Samples, tmp_path: Path
) -> None:
    """Its rewards are of its own samples: the same noise and prompts, by ``load_lora_weights``."""
    outcome = distilled(root, alone, 3, "reverse", images=8)
    for name, content in outcome.adapter.items():
        (tmp_path / name).write_bytes(content)
    pipeline = tiny_pipeline.plain(root / "base")
    pipeline.load_lora_weights(tmp_path)
    images = [draw(pipeline, seed=int(seed)) for seed in alone["evaluate"].seeds[:8]]
    scored = build_reward(measured("vivid")[0])(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), ("",) * 8
    )
    reached = outcome.distilled["reward_vivid"].mean
    assert float(scored.mean()) == pytest.approx(reached, rel=1e-5)
    moved = scored.numpy() - alone["evaluate"].rewards["vivid"][:8]
    assert np.abs(moved).max() > 1e-4, "else it shows nothing"


# ------------------------------------------------------------------------------------------- prompts


CONCEPTS = ("red circle", "blue square", "green triangle")


def concepts_of(*texts: str) -> tuple[ConstituentConfig, ...]:
    return tuple(
        ConstituentConfig(name=text.split()[0], prompt=text, rewards=(f"see_{text.split()[0]}",))
        for text in (*texts, *CONCEPTS[len(texts) :])
    )


class Sees:
    """Scores an image by the channel that a prompt's first word names."""

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None) -> Tensor:
        assert prompts is not None
        channels = torch.tensor([["red", "green", "blue"].index(text.split()[0]) for text in prompts])
        means: Tensor = samples.mean(dim=(2, 3))
        return means[torch.arange(len(samples)), channels]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> tuple[RewardConfig, ...]:
    """A score against each concept, and the least of them."""
    monkeypatch.setattr("trainers.composition.networks.judges.build_reward", lambda _: Sees())
    names = [f"see_{text.split()[0]}" for text in CONCEPTS]
    each = [RewardConfig(name=n, kind="clip", text=text) for n, text in zip(names, CONCEPTS, strict=True)]
    return (*each, RewardConfig(name="see_least", kind=LEAST, parameters={"of": names}))


@pytest.mark.parametrize("sampler", ["score", "fkc", "joint"])
def test_concepts_are_judged_against_each_and_by_the_least(
    root: Path, seen: tuple[RewardConfig, ...], sampler: str
) -> None:
    weights = dict.fromkeys(("red", "blue", "green"), 1 / 3)
    of = config(root, concepts_of(), sampler=sampler, weights=weights, rewards=seen, prompts=None)
    drawn = sample_alone(of, Collective())
    outcome = run(of, drawn)
    assert outcome.retention == {}
    rows = outcome.evaluation
    assert rows is not None
    assert set(rows.prompts or ()) == {", ".join(CONCEPTS)}
    each = np.stack([rows.rewards[f"see_{name}"] for name in weights])
    assert np.array_equal(rows.rewards["see_least"], each.min(axis=0))
    assert (
        outcome.rewards["see_least"].mean
        <= min(outcome.rewards[f"see_{name}"].mean for name in weights) + 1e-9
    )
    if sampler == "joint":
        assert rows.rewards["see_red"].tolist() == drawn["evaluate"].rewards["see_red"].tolist()
    assert set(outcome.constituents) == set(outcome.pointwise) == set(weights)


def test_concepts_become_one_adapter(root: Path, seen: tuple[RewardConfig, ...]) -> None:
    one = DistillationConfig(steps=5, batch=8, lora=LoraConfig(rank=2))
    of = config(root, concepts_of(), rewards=seen, prompts=None, distillation=one)
    outcome = run(of)
    assert WEIGHTS in outcome.adapter
    assert {"kl_red", "reward_see_least"} <= set(outcome.distilled)


# ------------------------------------------------------------------------------------------- refusals


def test_weights_that_have_changed_since_are_refused(root: Path) -> None:
    models = adapters(root)
    right = hashlib.sha256((root / "bright" / WEIGHTS).read_bytes()).hexdigest()
    NetworkTrial.build(config(root, [models[0].model_copy(update={"digest": right}), models[1]]))
    wrong = [models[0].model_copy(update={"digest": "0" * 64}), models[1]]
    with pytest.raises(ValueError, match=rf"models.bright.adapter: .*changed since .*{right[:12]}") as raised:
        NetworkTrial.build(config(root, wrong))
    assert "0" * 12 in str(raised.value)


def test_pipelines_that_have_no_chain_in_common_are_named(root: Path) -> None:
    models = [ConstituentConfig(name=name, pretrained=str(root / name)) for name in ("base", "turned")]
    with pytest.raises(ValueError, match=r"base and turned cannot be composed.*prediction type"):
        NetworkTrial.build(config(root, models, rewards=()))
