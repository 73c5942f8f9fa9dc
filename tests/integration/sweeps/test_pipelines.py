"""Sweeps of diffusion pipelines by the real command: results, adapters in plain diffusers, death and resumption."""

import io
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support import tiny_pipeline
from support.processes import Sweep, family, kill, wait_for
from support.sweeps import SHAPES
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.execution.sampling.baseline import Jobs
from orchestrator.plan import PlannedTrial, make_plan
from orchestrator.report.sweep import read_baseline, read_plan
from orchestrator.results.schema import evaluations_table, samples_of
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, load_spec
from trainers.adapters.files import CARD, CONFIG, WEIGHTS
from trainers.config import RewardConfig, TrialJob
from trainers.problem import run_trial
from trainers.rewards.base import build_reward
from trainers.trial_io import LocalTrialIO
from trainers.types import ImageArray, TrialOutcome

TINY = """\
name: tiny
model: {pretrained: ./pipeline, lora: {rank: 2}}
prompts: {train: [red circle, blue square, green triangle], evaluate: [red square, blue circle]}
sampling: {steps: 3, rest: 0, guidance: 3.0}
constraints: [{reward: saturation, at_least: 0.2, unit: sigma}]
training: {steps: 8, batch_per_worker: 2, precision: fp32, gradient_checkpointing: false, checkpoint_every: 2}
evaluation: {images: 6, every: 2}
"""

TRIALS = [
    *("trial_id", "method", "seed", "status", "error", "feasible", "kl", "kl_low", "kl_high", "kl_estimator"),
    *(
        "kl_least",
        "steps",
        "wall_seconds",
        "gpu_seconds",
        "started_at",
        "finished_at",
        "adapter",
        "base_trial",
    ),
]
HISTORY = [
    "trial_id",
    "step",
    "kl",
    "lagrangian",
    "kkt_residual",
    "learning_rate",
    "seconds",
    "images_per_second",
]
NAMED = [
    "reward_{}",
    "reward_{}_low",
    "reward_{}_high",
    "threshold_{}",
    "violation_{}",
    "multiplier_{}",
    "weight_{}",
]


@pytest.fixture
def tiny(sweep: Sweep) -> Sweep:
    """A sweep of a pipeline of random weights, in a directory beside the spec."""
    tiny_pipeline.write(sweep.folder / "pipeline")
    sweep.name = "tiny"
    sweep.write(TINY)
    return sweep


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


# ------------------------------------------------------------------------------------------- the whole path


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_the_shipped_pipeline_from_run_to_sample(sweep: Sweep, runner: CliRunner) -> None:
    """Files and columns; then the exported adapter, in plain diffusers, draws the very images of the evaluation."""
    sweep.name = "shapes"
    sweep.write(SHAPES)
    run = sweep.run("run", "spec.yaml", "--json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert {m["method"]: m["trials"] for m in document["methods"]} == {"constrained": 1, "weighted": 1}

    where = ["--storage", str(sweep.storage)]
    assert json.loads(runner.invoke(app, ["frontier", "shapes", "--json", *where]).stdout) == document
    status = json.loads(runner.invoke(app, ["status", "shapes", "--json", *where]).stdout)
    assert status["trials"] == {
        "planned": 2,
        "running": 0,
        "succeeded": 2,
        "failed": 0,
        "infeasible": 0,
        "stopped": 0,
    }

    check_thresholds(sweep)
    check_files(sweep)
    for trial_id in sorted(sweep.finished()):
        check_adapter(sweep, trial_id, runner)
    check_exports(sweep, runner)


def check_thresholds(sweep: Sweep) -> None:
    """They are absolute after the run, by the statistics of the stored samples."""
    plan = json.loads((sweep.directory / "plan.json").read_text())
    rewards = json.loads((sweep.directory / "baseline.json").read_text())["rewards"]
    samples = pq.read_table(sweep.directory / "baseline.parquet")
    assert samples["set"].to_pylist() == ["train"] * 16 + ["evaluate"] * 16
    for name, sigmas in (("saturation", 0.2), ("clip", 0.1)):
        drawn = samples_of(samples, "train")[name]
        assert rewards[name]["mean"] == pytest.approx(drawn.mean())
        assert rewards[name]["std"] == pytest.approx(drawn.std(ddof=1))
        for trial in plan["trials"]:
            expected = rewards[name]["mean"] + sigmas * rewards[name]["std"]
            assert trial["thresholds"][name] == pytest.approx(expected)
            assert trial["units"][name] == "absolute"
            assert trial["written"][name] == {"value": sigmas, "unit": "sigma"}


def check_files(sweep: Sweep) -> None:
    """Every file and column that others rely on."""
    named = [column.format(name) for name in ("saturation", "clip") for column in NAMED]
    held_out = samples_of(pq.read_table(sweep.directory / "baseline.parquet"), "evaluate")
    trials = {trial["trial_id"]: trial for trial in read_rows(sweep, "trials")}
    for trial_id, trial in trials.items():
        assert not {*TRIALS, *named} - set(trial)
        assert trial["status"] == "succeeded"
        assert trial["adapter"] == f"adapters/{trial_id}"
        adapter = {path.name for path in (sweep.directory / trial["adapter"]).iterdir()}
        assert adapter == {WEIGHTS, CONFIG, CARD}
        moved = "multiplier" if trial["method"] == "constrained" else "weight"
        assert trial[f"{moved}_saturation"] > 0

        history = pq.read_table(sweep.directory / "history" / f"{trial_id}.parquet")
        assert not {*HISTORY, *named} - set(history.column_names)
        assert history["step"].to_pylist() == [2, 4]

        rows = pq.read_table(sweep.directory / "evaluations" / f"{trial_id}.parquet")
        assert rows.num_rows == 8
        assert not {"trial_id", "prompt", "seed", "kl"} - set(rows.column_names)
        for name in ("saturation", "clip"):
            assert rows[f"reference_{name}"].to_pylist() == held_out[name][:8].tolist()
            assert rows[f"reward_{name}"].to_pylist() != held_out[name][:8].tolist()
    assert {"constrained", "weighted"} == {trial["method"] for trial in trials.values()}
    front = pq.read_table(sweep.directory / "frontier.parquet").to_pylist()
    assert {row["trial_id"] for row in front} <= set(trials)
    assert front
    assert not [*sweep.directory.glob("checkpoints/*/*")], "finished trials need none"


def check_adapter(sweep: Sweep, trial_id: str, runner: CliRunner) -> None:
    """The lines of the card, and ``cdsweep sample``, draw what the evaluation drew."""
    where = ["--storage", str(sweep.storage)]
    target = sweep.folder / f"exported-{trial_id}"
    # The beginning of an id is enough.
    exported = runner.invoke(app, ["export", "shapes", trial_id[:6], str(target), "--json", *where])
    assert exported.exit_code == 0, exported.stderr
    document = json.loads(exported.stdout)
    assert document["trial_id"] == trial_id
    assert {Path(path).name for path in document["files"]} == {WEIGHTS, CONFIG, CARD}

    rows = pq.read_table(sweep.directory / "evaluations" / f"{trial_id}.parquet").to_pylist()
    first, second = rows[:2]
    pretrained, tuned = tiles((sweep.directory / "images" / f"{trial_id}.png").read_bytes(), 8)
    (beside,) = tiles((sweep.directory / "images" / "pretrained.png").read_bytes(), 16)
    assert np.array_equal(pretrained[:8], beside[:8])
    code = (target / CARD).read_text().split("```python\n")[1].split("```")[0]
    assert repr(first["prompt"]) in code
    for index, row in enumerate((first, second)):
        lines = code.replace('DIRECTORY")', f'{target}")').replace(
            "manual_seed(0)", f"manual_seed({row['seed']})"
        )
        image = drawn_by(lines.replace(repr(first["prompt"]), repr(row["prompt"])))
        assert np.abs(image.astype(int) - tuned[index].astype(int)).max() <= 1
        assert saturation(image) == pytest.approx(row["reward_saturation"], abs=1e-3)
    assert abs(first["reward_saturation"] - first["reference_saturation"]) > 1e-4, "else it shows nothing"

    seed = ["--seed", str(first["seed"]), "--count", "2"]
    sampled = runner.invoke(app, ["sample", "shapes", trial_id, *seed, "--json", *where])
    assert sampled.exit_code == 0, sampled.stderr
    document = json.loads(sampled.stdout)
    assert Path(document["grid"]).is_file()
    for index, row in enumerate((first, second)):
        made = document["images"][index]
        assert (made["prompt"], made["seed"]) == (row["prompt"], row["seed"])
        assert_alike(np.asarray(Image.open(made["tuned"])), tuned[index])
        assert_alike(np.asarray(Image.open(made["pretrained"])), pretrained[index])


def check_exports(sweep: Sweep, runner: CliRunner) -> None:
    """What cannot be exported or sampled is one message."""
    where = ["--storage", str(sweep.storage)]
    trial_id = min(sweep.finished())
    full = sweep.folder / "full"
    full.mkdir()
    (full / CARD).write_text("mine")
    for arguments, said in (
        (["export", "shapes", trial_id, str(full)], ["not empty", CARD]),
        (["export", "shapes", trial_id, str(sweep.spec)], ["cannot write"]),
        (["export", "shapes", "nothing", str(sweep.folder / "new")], ["no trial 'nothing'", trial_id]),
        (["sample", "shapes", "nothing"], ["no trial 'nothing'", trial_id]),
        (["sample", "shapes", trial_id, "--out", str(sweep.spec)], ["cannot write"]),
    ):
        result = runner.invoke(app, [*arguments, *where])
        assert result.exit_code == 2, result.output
        check_message(result.stderr, said)
    assert (full / CARD).read_text() == "mine"
    again = runner.invoke(
        app, ["export", "shapes", trial_id, str(sweep.folder / f"exported-{trial_id}"), *where]
    )
    assert again.exit_code == 0, "the same files are there already"


def drawn_by(code: str) -> ImageArray:
    """Return the image that the lines of a card draw."""
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - what users are told to run
    image: Image.Image = names["image"]
    return np.asarray(image)


def saturation(image: ImageArray) -> float:
    reward = build_reward(RewardConfig(name="saturation", kind="saturation", parameters={"aim": "high"}))
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    return float(reward(pixels, ("",))[0])


def tiles(png: bytes, across: int) -> list[NDArray[np.uint8]]:
    """Return the images of a strip, ``[across, h, w, 3]`` for each of its rows, at their own size."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    size = 32
    scale = -(-96 // size)
    small = picture[::scale, ::scale]
    return [
        np.stack([small[row : row + size, x * size : (x + 1) * size] for x in range(across)])
        for row in range(0, small.shape[0], size)
    ]


def assert_alike(image: ImageArray, other: ImageArray) -> None:
    """Equal but for rounding: sums in batches of another size have another order."""
    assert np.abs(image.astype(int) - other.astype(int)).max() <= 1


# ------------------------------------------------------------------------------------------- other contents


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_a_pipeline_that_was_retrained_in_place_is_not_answered_for_by_old_results(tiny: Sweep) -> None:
    def sampled(*arguments: str) -> str:
        done = tiny.run(*arguments)
        assert done.returncode == 0, done.stderr
        (line,) = [
            line for line in done.stderr.splitlines() if line.startswith(("sampling ", "using samples "))
        ]
        return line

    run = ("run", "spec.yaml", "--no-preview", "--yes")
    assert sampled(*run).startswith("sampling the pretrained model")
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    assert sampled("preview", "spec.yaml").startswith(f"using samples drawn on {date} ")
    assert sampled("preview", "spec.yaml", "--fresh").startswith("sampling ")
    fresh = tiny.ask(*run, "--fresh")
    assert fresh.returncode == 2
    assert "--fresh needs another --name" in fresh.stderr

    shutil.rmtree(tiny.folder / "pipeline" / "unet")
    other = tiny_pipeline.write(tiny.folder / "other", unet={"act_fn": "gelu"})
    (other / "unet").rename(tiny.folder / "pipeline" / "unet")
    assert sampled("preview", "spec.yaml").startswith("sampling ")
    for command in (run, ("resume", "tiny"), ("sample", "tiny", next(iter(tiny.finished())))):
        refused = tiny.ask(*command)
        assert refused.returncode == 2, command
        assert "model" in refused.stderr
        assert (
            "holds the results of another spec" if command == run else "was planned with other contents"
        ) in (refused.stderr)
    before = tiny.finished()
    assert sampled(*run, "--name", "retrained").startswith("using samples "), "those of the preview"
    assert not {path.stem for path in (tiny.storage / "retrained" / "trials").glob("*.parquet")} & before


# ------------------------------------------------------------------------------------------- death, gangs


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
def test_after_a_killed_driver_resume_comes_to_the_same_adapters(
    tiny: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(
        TINY.replace("steps: 8", "steps: 30")
        + "methods: [constrained, {weighted: {weights: equal, scale: 0.2}}]\n"
    )
    process = tiny.start("run", "spec.yaml", "--address", "local")
    interrupted = wait_for(
        lambda: tiny.checkpointed() - tiny.finished(), 180, "a trial between two checkpoints"
    )
    tiny.orphans = family(process.pid)
    kill(process.pid)
    process.wait(30)
    wait_for(lambda: not tiny.orphaned_trials(), 30, "no trial runs on without its driver")
    interrupted &= tiny.checkpointed() - tiny.finished()
    assert interrupted, "nothing was left to resume"

    resumed = tiny.run("resume", "tiny", "--address", "local")
    assert resumed.returncode == 0, resumed.stderr
    for trial_id in interrupted:
        last = [line for line in resumed.stderr.splitlines() if trial_id in line][-1]
        assert "continued from step" in last

    monkeypatch.chdir(tiny.folder)  # the directory of the pipeline is relative
    store = SweepStore(str(tiny.storage), "tiny")
    for trial in read_plan(store).trials:
        job, outcome = undisturbed(store, trial)
        adapter = tiny.directory / "adapters" / trial.trial_id
        assert {name: (adapter / name).read_bytes() for name in outcome.adapter} == outcome.adapter
        assert outcome.evaluation is not None
        assert store.evaluations(trial.trial_id).equals(evaluations_table(job, outcome.evaluation))
        (row,) = pq.read_table(tiny.directory / "trials" / f"{trial.trial_id}.parquet").to_pylist()
        assert row["steps"] == outcome.steps
        assert {f"multiplier_{n}": row[f"multiplier_{n}"] for n in outcome.multipliers} == {
            f"multiplier_{n}": value for n, value in outcome.multipliers.items()
        }
        history = pq.read_table(tiny.directory / "history" / f"{trial.trial_id}.parquet")
        assert history["step"].to_pylist() == [record.step for record in outcome.history]
        assert history["kl"].to_pylist() == [record.kl for record in outcome.history]


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.usefixtures("shared")
def test_two_workers_come_to_what_one_with_the_doubled_batch_does(
    tiny: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(TINY + "resources: {workers: 2}\n")
    run = tiny.run("run", "spec.yaml", "--json")
    assert run.returncode == 0, run.stderr
    json.loads(run.stdout)
    (row,) = read_rows(tiny, "trials")
    assert row["status"] == "succeeded", row["error"]

    monkeypatch.chdir(tiny.folder)
    store = SweepStore(str(tiny.storage), "tiny")
    (trial,) = read_plan(store).trials
    assert trial.config.workers == 2
    doubled = trial.config.training.model_copy(update={"batch_per_worker": 4})
    alone = trial.config.model_copy(update={"workers": 1, "training": doubled})
    _, outcome = undisturbed(store, trial.model_copy(update={"config": alone}))
    assert outcome.kl is not None
    assert row["kl"] == pytest.approx(outcome.kl.mean, rel=1e-3)
    assert row["reward_saturation"] == pytest.approx(outcome.rewards["saturation"].mean, rel=1e-4)
    assert row["multiplier_saturation"] == pytest.approx(outcome.multipliers["saturation"], rel=1e-3)
    assert row["steps"] == outcome.steps


def undisturbed(store: SweepStore, trial: PlannedTrial) -> tuple[TrialJob, TrialOutcome]:
    """Run a trial in this process, without Ray, from the sweep's own samples of the pretrained model."""
    torch.set_num_threads(1)
    tiny_pipeline.silence()
    job = Jobs(store, read_baseline(store))(trial)
    samples = store.baseline_samples()
    assert samples is not None
    return job, run_trial(job, LocalTrialIO(pretrained=samples_of(samples, "evaluate")))


def read_rows(sweep: Sweep, folder: str) -> list[dict[str, Any]]:
    table: pa.Table = pq.ParquetDataset(sweep.directory / folder).read()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


# ------------------------------------------------------------------------------------------- bad input


def break_nothing(folder: Path) -> None:
    """Leave the pipeline whole."""


def empty_directory(folder: Path) -> None:
    (folder / "empty").mkdir()


def take_the_index(folder: Path) -> None:
    (folder / "pipeline" / "model_index.json").unlink()


def take_the_vae(folder: Path) -> None:
    (folder / "pipeline" / "vae").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "old", "new", "said"),
    [
        (take_the_index, "", "", ["no model_index.json", "it holds", "unet"]),
        (empty_directory, "./pipeline", "./empty", ["no model_index.json", "nothing"]),
        (take_the_vae, "", "", ["lacks", "vae"]),
        (break_nothing, "./pipeline", "./pipelnie", ["No such file or directory"]),
        (break_nothing, "./pipeline", "spec.yaml/a/b", ["cannot be read as a directory"]),
        (break_nothing, "./pipeline", "~/models/sd15", ["~ is not expanded"]),
    ],
    ids=["no index", "empty", "no vae", "absent", "not a directory", "home"],
)
def test_a_directory_that_is_no_pipeline_is_refused_before_anything_starts(
    tiny: Sweep,
    runner: CliRunner,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    old: str,
    new: str,
    said: list[str],
) -> None:
    damage(tiny.folder)
    tiny.write(TINY.replace(old, new))
    monkeypatch.chdir(tiny.folder)
    for command in (["plan", "spec.yaml"], ["run", "spec.yaml", "--dry-run"], ["run", "spec.yaml"]):
        result = runner.invoke(app, command)
        assert result.exit_code == 2, result.output
        check_message(result.stderr, ["spec.yaml, line 2, column", "model.pretrained", *said])
    assert not tiny.storage.exists(), "nothing was started"


def test_targets_that_match_nothing_are_refused_before_anything_starts(
    tiny: Sweep, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(TINY.replace("rank: 2}", "rank: 2, targets: [to_q, to_qq]}"))
    monkeypatch.chdir(tiny.folder)
    for command in (["plan", "spec.yaml"], ["run", "spec.yaml"]):
        result = runner.invoke(app, command)
        assert result.exit_code == 2, result.output
        said = ["spec.yaml, line", "model.lora.targets", "'to_qq'", "did you mean 'to_q'", "to_out.0"]
        check_message(result.stderr, said)
    assert not tiny.storage.exists(), "nothing was started"


@pytest.mark.ray
@pytest.mark.slow
def test_what_only_loading_shows_ends_the_run_with_one_message(
    tiny: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tiny.folder / "cache"))
    tiny.write(TINY.replace("{reward: saturation,", "{reward: pick_score,"))
    result = tiny.run("run", "spec.yaml", "--address", "local", "--json")
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    message = result.stderr[result.stderr.index("error: ") :]
    check_message(
        message, ["'pick_score'", "yuvalkirstain/PickScore_v1", "HF_HUB_OFFLINE", "hf download", "`model:`"]
    )
    assert "\n" not in message.strip()
    assert not tiny.finished()


def test_a_mixture_has_no_adapter(sweep: Sweep, runner: CliRunner) -> None:
    """Neither export nor sample can do anything with a trial of it, finished or not."""
    spec = load_spec(sweep.spec)
    plan = make_plan(spec)
    SweepStore(str(sweep.storage), "small").create(dump_spec(spec), plan.to_json(), None)
    trial_id = plan.trials[0].trial_id
    for arguments in (
        ["export", "small", trial_id, str(sweep.folder / "new")],
        ["sample", "small", trial_id],
    ):
        result = runner.invoke(app, [*arguments, "--storage", str(sweep.storage)])
        assert result.exit_code == 2
        check_message(result.stderr, [trial_id, "no adapter", "mixture"])
    assert not (sweep.folder / "new").exists()


def check_message(text: str, said: list[str]) -> None:
    """One message for people."""
    assert "Traceback" not in text
    assert text.count("error: ") == 1, text
    assert not [word for word in said if word not in text], text
