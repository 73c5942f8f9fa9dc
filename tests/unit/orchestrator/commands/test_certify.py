"""``cdsweep certify``: adapters of other tools against loops written out here, trials against their sweep."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from support import tiny_pipeline
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.execution.sampling import measured
from orchestrator.execution.trials.trial import failed
from orchestrator.frontier.problems import exact_baseline, exact_problem
from orchestrator.plan import base_config, make_job, make_plan
from orchestrator.results.schema import evaluations_table, samples_table, trial_table
from orchestrator.results.store import SweepStore
from orchestrator.spec import dump_spec, load_spec, sampler_line
from trainers.adapters.files import CARD, WEIGHTS
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, TrialOutcome

SPEC = """\
name: tiny
model: {pretrained: PIPELINE, lora: {rank: 2}}
prompts: {train: [red circle, blue square, green triangle], evaluate: [red square, blue circle]}
sampling: {steps: 4, rest: 1, guidance: 3.0}
constraints:
  - {reward: brightness, at_least: 0.2, unit: sigma}
  - {reward: global_contrast, at_least: 0.1, unit: sigma}
training: {steps: 4, batch_per_worker: 2, precision: fp32, gradient_checkpointing: false}
evaluation: {images: 80, baseline_images: 128, every: 2}
storage: STORAGE
"""
MIXTURE = """\
name: exact
model:
  mixture: {weights: [0.5, 0.5], means: [[-1.0], [1.5]], covariances: [[[0.3]], [[0.4]]]}
sampling: {steps: 12}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: right, at_least: 1.0, unit: absolute}
training: {steps: 60, batch_per_worker: 256, width: 16}
evaluation: {images: 2048, baseline_images: 2048}
storage: STORAGE
"""
WEIGHTED = "methods: [constrained, {weighted: {weights: {right: 0.4}}}]\n"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("certify") / "pipeline")


@pytest.fixture
def spec(tmp_path: Path, pipeline: Path) -> Path:
    return written(tmp_path, SPEC.replace("PIPELINE", str(pipeline)))


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text.replace("STORAGE", str(folder / "results")))
    return path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["certify", *map(str, arguments)])


def certified(*arguments: object) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(*arguments: object) -> str:
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    lines: list[str] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


# ------------------------------------------------------------------------------------ adapters of other tools


def adapted(pipeline: Path, size: float = 0.02) -> StableDiffusionPipeline:
    """The pipeline with an adapter of its own ranks, by peft alone."""
    pipe = tiny_pipeline.plain(pipeline)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["to_k", "to_v", "conv1", "proj_in"],
        rank_pattern={"conv1": 2},
        init_lora_weights=False,
    )
    pipe.unet.add_adapter(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if ".lora_" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return pipe


def by_diffusers(pipe: StableDiffusionPipeline, folder: Path) -> Path:
    settings = pipe.unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata={k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()},
    )
    return folder


def by_peft(pipe: StableDiffusionPipeline, folder: Path) -> Path:
    folder.mkdir()
    matrices = {f"base_model.model.{key}": v for key, v in get_peft_model_state_dict(pipe.unet).items()}
    save_file(
        {key: value.contiguous() for key, value in matrices.items()}, folder / "adapter_model.safetensors"
    )
    pipe.unet.peft_config["default"].save_pretrained(folder)
    return folder


def by_kohya(pipe: StableDiffusionPipeline, folder: Path) -> Path:
    folder.mkdir()
    tensors = {}
    for key, value in get_peft_model_state_dict(pipe.unet).items():
        layer, side = key.removesuffix(".weight").rsplit(".lora_", 1)
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{name}.lora_{'down' if side == 'A' else 'up'}.weight"] = value.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(6.0)
    save_file(tensors, folder / "mine.safetensors")
    return folder / "mine.safetensors"


@torch.no_grad()
def by_hand(pipe: StableDiffusionPipeline, spec: Path) -> dict[str, np.ndarray]:
    """KL, log ratio and rewards of every evaluation sample, by the UNet, the scheduler and the VAE of diffusers."""
    config = base_config(load_spec(str(spec)))
    assert config.prompts is not None
    steps, seed, count, scheduler = (
        config.sampling.steps,
        config.evaluation.seed,
        config.evaluation.images,
        pipe.scheduler,
    )
    asked = config.prompts.in_turn("evaluate", seed)
    prompts = [asked[number % len(asked)] for number in range(count)]
    text, empty = pipe.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=True)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(count)]

    def drawn() -> torch.Tensor:
        return torch.cat([torch.randn((1, 4, 4, 4), generator=generator) for generator in generators])

    def squares(values: torch.Tensor) -> torch.Tensor:
        return values.square().sum(dim=(1, 2, 3))

    scheduler.set_timesteps(steps)
    state = drawn()
    kl = ratio = torch.zeros(count, dtype=torch.float64)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        noise, predicted = drawn(), []
        for on in (True, False):
            (pipe.unet.enable_adapters if on else pipe.unet.disable_adapters)()
            with_text, without = (pipe.unet(state, t, encoder_hidden_states=e).sample for e in (text, empty))
            predicted.append(without + 3.0 * (with_text - without))
        chosen = predicted[0] if step < steps - 1 else predicted[1]  # the last step rests
        moved = scheduler.step(chosen, t, state, eta=1.0, variance_noise=noise).prev_sample
        ours, other = (
            scheduler.step(p, t, state, eta=1.0, variance_noise=torch.zeros_like(noise)).prev_sample.double()
            for p in (chosen, predicted[1])
        )
        sigma = float(((moved.double() - ours) / noise.double()).median())
        kl = kl + squares(ours - other) / (2 * sigma**2)
        ratio = ratio + (squares(moved.double() - other) - squares(moved.double() - ours)) / (2 * sigma**2)
        state = moved
    images = (pipe.vae.decode(state / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    grey = torch.einsum("c,nchw->nhw", torch.tensor([0.2126, 0.7152, 0.0722]), images)
    found = {"kl": kl, "log_ratio": ratio, "brightness": grey.mean(dim=(1, 2))}
    found["global_contrast"] = grey.std(dim=(1, 2), correction=0)
    return {name: values.double().numpy() for name, values in found.items()}


def test_an_adapter_of_peft_and_diffusers_has_the_figures_of_a_loop_written_out(
    tmp_path: Path, pipeline: Path, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Evaluation] = []
    measure = measured.measure_adapter

    def noted(*arguments: Any, **options: Any) -> measured.MeasuredAdapter:
        found = measure(*arguments, **options)
        kept.append(found.evaluation)
        return found

    monkeypatch.setattr(measured, "measure_adapter", noted)
    pipe = adapted(pipeline)
    expected = by_hand(pipe, spec)
    places = [
        by_diffusers(pipe, tmp_path / "d"),
        by_peft(pipe, tmp_path / "p"),
        by_kohya(pipe, tmp_path / "k"),
    ]
    for place in places:
        document = certified(place, "--spec", spec, "--images", "80")
        assert document["kl"] == pytest.approx(np.mean(expected["kl"]), rel=1e-3)
        assert 0.05 < document["kl_low"] < document["kl"] < document["kl_high"]
        for name in ("brightness", "global_contrast"):
            assert document["rewards"][name] == pytest.approx(np.mean(expected[name]), abs=1e-4)
        drawn = kept.pop()
        np.testing.assert_allclose(drawn.kl, expected["kl"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(drawn.log_ratio, expected["log_ratio"], rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(drawn.rewards["brightness"], expected["brightness"], atol=1e-4)
    assert (document["images"], document["sweep"], document["trial_id"]) == (80, None, None)
    assert document["adapter"] == str(places[-1])
    assert min(document["multipliers"].values()) >= 0.0
    assert 30 <= document["ess"] <= 80
    assert 0.0 <= document["lower_bound"] < document["kl_high"]
    assert document["kind"] == "95%"
    assert document["distance"] >= 0.0
    assert not (tmp_path / "results").exists(), "nothing was written"
    table = call(places[0], "--spec", spec)
    assert table.exit_code == 0
    assert "effective" not in table.stderr
    for said in ("brightness", "nats", "at 95 % confidence at least"):
        assert said in table.stdout


def test_where_an_evaluation_carries_no_bound_more_is_drawn_unless_a_number_is_given(
    tmp_path: Path, pipeline: Path, spec: Path
) -> None:
    place = by_diffusers(adapted(pipeline), tmp_path / "d")
    few = ["--spec", spec, "--set", "evaluation.images=12"]
    done = call(place, *few, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert f"12 images are too few to carry a bound: drawing {document['images']}" in done.stderr
    assert document["ess"] >= 30
    assert "no overlap" in refused(place, *few, "--images", "12")


# ------------------------------------------------------------------------------------ trials


def ran(spec: Path) -> tuple[SweepStore, Mapping[str, TrialOutcome]]:
    """Run a sweep in this process, trial by trial."""
    loaded = load_spec(str(spec))
    plan, config = make_plan(loaded), base_config(loaded)
    store, baseline = SweepStore(loaded.storage, loaded.name), exact_baseline(config)
    samples = None if baseline is not None else sample_pretrained(config)
    baseline = baseline or statistics(samples or {})
    document = plan.to_json(baseline=baseline)
    store.create(dump_spec(loaded), document, baseline.model_dump(mode="json"))
    if samples is not None:
        store.write_baseline(samples_table(config, samples), baseline.model_dump(mode="json"), document)
    now, outcomes = datetime.now(UTC), {}
    for trial in plan.trials:
        job = make_job(trial, baseline)
        outcome = run_trial(job, LocalTrialIO())
        assert outcome.evaluation is not None
        store.write_evaluations(trial.trial_id, evaluations_table(job, outcome.evaluation))
        if outcome.adapter:
            store.write_adapter(trial.trial_id, outcome.adapter)
        store.write_trial(trial_table(job, outcome, started_at=now, finished_at=now))
        outcomes[trial.trial_id] = outcome
    return store, outcomes


def test_a_trial_of_an_exact_model_is_held_against_the_exact_least_kl(tmp_path: Path) -> None:
    store, outcomes = ran(written(tmp_path, MIXTURE + WEIGHTED))
    exact = exact_problem(base_config(load_spec(str(tmp_path / "spec.yaml"))))
    assert exact is not None
    for trial_id, outcome in outcomes.items():
        document = certified(store.url(), trial_id[:6])
        assert outcome.kl is not None
        assert document["kl"] == pytest.approx(outcome.kl.mean)
        assert document["rewards"]["right"] == pytest.approx(outcome.rewards["right"].mean)
        assert document["trial_id"] == trial_id
        least = exact.least_kl({"right": outcome.rewards["right"].mean})
        assert document["lower_bound"] == pytest.approx(least.kl)
        assert document["kind"] == "proven"
        fixed = {**outcome.multipliers, **outcome.weights}["right"]
        assert document["multipliers"]["right"] == pytest.approx(fixed)
        # KL(p ‖ p*_λ) = log Z(λ) − λ E[r] + KL, with the exact Z of its multipliers.
        log_partition = np.log(mixture_partition(fixed))
        distance = log_partition - fixed * outcome.rewards["right"].mean + outcome.kl.mean
        assert document["distance"] == pytest.approx(distance, abs=0.05)


def mixture_partition(price: float) -> float:
    """``E_q exp(λ x)`` of the mixture."""
    return float(0.5 * np.exp(-price + 0.15 * price**2) + 0.5 * np.exp(1.5 * price + 0.2 * price**2))


def test_a_trial_is_taken_as_it_was_evaluated_and_measured_anew_on_request(spec: Path) -> None:
    store, outcomes = ran(spec)
    ((trial_id, outcome),) = outcomes.items()
    assert outcome.kl is not None
    stored = certified("tiny", trial_id, "--storage", store.storage)
    again = certified("tiny", trial_id, "--storage", store.storage, "--images", "80")
    for name in ("kl", "kl_low", "distance", "ess"):
        assert again[name] == pytest.approx(stored[name], rel=1e-3, abs=1e-4), name
    assert stored["kl"] == pytest.approx(outcome.kl.mean)
    assert stored["adapter"] == store.adapter_url(trial_id)

    # The adapter alone, by a spec of the sweep's name, or another; and what its card says.
    place = Path(str(store.adapter_url(trial_id)))
    alone = certified(place, "--spec", spec)
    assert (alone["sweep"], alone["kl"]) == ("tiny", pytest.approx(stored["kl"], rel=1e-3, abs=1e-5))
    more = [place, "--spec", spec, "--set", "sampling.steps=5"]
    assert "other sampler settings than the sweep of its name" in refused(*more)
    assert "steps 5, not 4" in refused(*more)
    other = certified(*more, "--set", "name=other")
    assert other["kl"] != pytest.approx(stored["kl"], rel=1e-3)
    sampling = base_config(load_spec(str(spec))).sampling
    stated, ours = sampler_line(sampling), sampling.model_dump(mode="json")
    (place / CARD).write_text(f"---\ntags: [lora]\n{stated}\n---\n\n# Adapter\n")
    assert "--set sampling.steps=4" in refused(*more, "--set", "name=other")
    assert "was trained for another sampler" in refused(*more, "--set", "name=other")

    # A card that is older than orders is of a chain of first order, on the scheduler's own timesteps.
    older = {key: value for key, value in ours.items() if key not in {"order", "spacing"}}
    (place / CARD).write_text(f"---\ncdsweep_sampling: {json.dumps(older)}\n---\n\n# Adapter\n")
    assert certified(place, "--spec", spec)["kl"] == alone["kl"]
    second = ["sampling.order=2", "sampling.rest=1", "sampling.spacing=trailing", "name=other"]
    told = refused(place, "--spec", spec, *(part for change in second for part in ("--set", change)))
    assert "--set sampling.order=1 --set sampling.spacing=null" in told


# ------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_certified_is_one_message_before_anything_starts(
    tmp_path: Path, pipeline: Path, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "measure_adapter", None)  # nothing starts
    wide = tiny_pipeline.write(tmp_path / "wide", cross=16)
    strange = by_diffusers(adapted(wide), tmp_path / "strange")
    fine = by_diffusers(adapted(pipeline), tmp_path / "fine")
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    encoder = tmp_path / "encoder.safetensors"
    save_file({"lora_te_text_model_x.lora_down.weight": torch.zeros(2, 2)}, encoder)
    exact = tmp_path / "exact"
    exact.mkdir()
    mixture = written(exact, MIXTURE)
    for arguments, said in (
        ((tmp_path / "nothing", "--spec", spec), ["there is no adapter", "nothing", "No such file"]),
        ((strange, "--spec", spec), ["belongs to another base", "of width 16", "cross_attention_dim", "12"]),
        ((text, "--spec", spec), ["cannot be read as a LoRA of a UNet", "text.safetensors", "format"]),
        ((encoder, "--spec", spec), ["encoder.safetensors adapts the text encoder too"]),
        ((fine, "--spec", mixture), ["mixture, which takes no adapter"]),
        ((fine, "--spec", tmp_path / "no.yaml"), ["no.yaml"]),
        ((fine,), ["--spec SPEC", "certify SWEEP TRIAL"]),
        ((fine, "abc", "--spec", spec), ["leave out --spec, or 'abc'"]),
        (("nosweep", "abc", "--storage", tmp_path / "results"), ["no sweep 'nosweep'"]),
    ):
        message = refused(*arguments)
        for part in said:
            assert part in message, (part, message)
    assert fine.joinpath(WEIGHTS).is_file()


def test_an_adapter_whose_paths_hardly_overlap_says_so_with_its_kl(
    tmp_path: Path, pipeline: Path, spec: Path
) -> None:
    far = by_diffusers(adapted(pipeline, size=0.15), tmp_path / "far")
    message = refused(far, "--spec", spec)
    broken = by_diffusers(adapted(pipeline, size=float("nan")), tmp_path / "broken")
    assert "is not finite on 80 of 80 samples" in refused(broken, "--spec", spec)
    for part in ("no overlap", "of 80 samples", "effective", "30 are needed", "nats", "--images"):
        assert part in message, message


def test_a_trial_that_failed_or_has_not_finished_has_nothing_to_certify(tmp_path: Path) -> None:
    loaded = load_spec(str(written(tmp_path, MIXTURE + WEIGHTED)))
    plan, baseline = make_plan(loaded), exact_baseline(base_config(loaded))
    assert baseline is not None
    store = SweepStore(loaded.storage, loaded.name)
    store.create(dump_spec(loaded), plan.to_json(baseline=baseline), baseline.model_dump(mode="json"))
    first, second = (trial.trial_id for trial in plan.trials)
    outcome = failed("diverged at step 3", steps=3)
    now = datetime.now(UTC)
    store.write_trial(
        trial_table(make_job(plan.trials[0], baseline), outcome, started_at=now, finished_at=now)
    )
    assert "failed: diverged at step 3" in refused(store.url(), first)
    assert "has not finished" in refused(store.url(), second)
    assert "no trial 'zz'" in refused(store.url(), "zz")
