"""The commands as their users meet them: exit codes, JSON on stdout alone, files, messages."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.processes import Sweep
from support.sweeps import SWEEPS, plannable
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.plan import make_plan
from orchestrator.spec.load import load_spec

QUICK = """\
name: quick
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
sampling: {steps: 8}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: {grid: [0.3, 0.6]}, unit: sigma}]
methods: [constrained, {weighted: {weights: equal, scale: 0.5}}]
training: {steps: 80, batch_per_worker: 64, width: 16}
convergence: {window: 20}
evaluation: {images: 4096}
"""


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def quick(sweep: Sweep) -> Sweep:
    """A sweep whose trials take a second."""
    sweep.write(QUICK)
    sweep.name = "quick"
    return sweep


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--json", str(SWEEPS[0])], ["schema"]])
def test_help_plan_and_schema_need_neither_torch_nor_ray(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from orchestrator.cli import app\n"
        f"sys.argv = ['cdsweep', *{arguments!r}]\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "slow = {'torch', 'ray', 'diffusers', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_version(runner: CliRunner) -> None:
    assert runner.invoke(app, ["--version"]).stdout.startswith("cdsweep 0.")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_planned_and_named_in_the_readme(
    path: Path, runner: CliRunner, tmp_path: Path
) -> None:
    spec = str(plannable(path, tmp_path))
    result = runner.invoke(app, ["plan", spec, "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    count = len(document["trials"])
    assert count == len({trial["trial_id"] for trial in document["trials"]})
    count += document["searched"]  # at most
    assert count > 0
    rows = path.with_name("README.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in rows if line.startswith(f"| `{path.name}` |")]
    assert row.split("|")[4].strip() == str(count), "trials, as the README has them"

    storage = tmp_path / "results"
    dry = runner.invoke(app, ["run", spec, "--dry-run", "--storage", str(storage), "--json"])
    assert dry.exit_code == 0, dry.stderr
    planned = json.loads(dry.stdout)
    assert [trial["trial_id"] for trial in planned["trials"]] == [t["trial_id"] for t in document["trials"]]
    assert not storage.exists()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_changes_that_a_shipped_sweep_mentions_are_valid(
    path: Path, runner: CliRunner, tmp_path: Path
) -> None:
    comments = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if "#" in line]
    changes = [
        quoted or plain for quoted, plain in re.findall(r"--set (?:'([^']*)'|(\S+))", " ".join(comments))
    ]
    if path.stem in {"sd15_mps_saturation_contrast", "sd15_single_rewards"}:
        assert changes
    every = [part for change in changes for part in ("--set", change.rstrip(";,."))]
    result = runner.invoke(app, ["plan", str(plannable(path, tmp_path)), *every])
    assert result.exit_code == 0, result.stderr


def test_the_plan_has_absolute_thresholds_of_exact_problems(quick: Sweep, runner: CliRunner) -> None:
    document = json.loads(runner.invoke(app, ["plan", str(quick.spec), "--json"]).stdout)
    thresholds = [t["thresholds"]["right"] for t in document["trials"] if t["method"] == "constrained"]
    assert thresholds == pytest.approx([0.3, 0.6])
    assert document["gpu_hours"] == 0


def test_a_threshold_beyond_the_reward_is_warned_of_at_plan(quick: Sweep, runner: CliRunner) -> None:
    quick.write(QUICK.replace("{linear: {direction: [1.0]}}", "{quadratic: {center: [0.0]}}").replace(
        "{grid: [0.3, 0.6]}, unit: sigma", "0.1"))  # fmt: skip
    result = runner.invoke(app, ["plan", str(quick.spec), "--json"])
    assert result.exit_code == 0
    assert "right" in result.stderr
    assert "warning" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("linear:", "linaer:", ["line 4", "linaer", "linear"]),
        ("sampling: {steps: 8}", "sampling: {steps: 8, eta: 0}", ["line 3", "eta", "infinite"]),
        ("[0.3, 0.6]", "[]", ["line 4", "grid"]),
        ("name: quick", "name: quick\nname: again", ["line 2", "name"]),
        ("methods: [constrained,", "methods: [constraint,", ["line 5", "constraint", "constrained"]),
    ],
)
def test_a_broken_spec_is_one_message_and_exit_code_2(
    quick: Sweep, runner: CliRunner, old: str, new: str, said: list[str]
) -> None:
    quick.write(QUICK.replace(old, new))
    for command in (["plan"], ["run", "--dry-run"], ["run"]):
        result = runner.invoke(
            app, [command[0], str(quick.spec), *command[1:], "--set", f"storage={quick.storage}"]
        )
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr
        assert not [word for word in [*said, quick.spec.name] if word not in result.stderr], result.stderr
    assert not quick.storage.exists(), "nothing was started"


def test_a_dry_run_writes_and_starts_nothing(quick: Sweep, runner: CliRunner) -> None:
    result = runner.invoke(
        app, ["run", str(quick.spec), "--dry-run", "--storage", str(quick.storage), "--json"]
    )
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["trials"]) == 3
    assert not quick.storage.exists()


def test_storage_that_cannot_be_written_is_refused_before_anything_starts(
    quick: Sweep, runner: CliRunner
) -> None:
    blocker = quick.folder / "file"
    blocker.write_text("not a directory")
    result = runner.invoke(app, ["run", str(quick.spec), "--storage", str(blocker / "results")])
    assert result.exit_code == 2
    assert str(blocker) in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_sweeps_are_refused_with_the_nearest_name(runner: CliRunner, tmp_path: Path) -> None:
    for command in ("status", "resume", "frontier", "stop"):
        result = runner.invoke(app, [command, "nothing", "--storage", str(tmp_path)])
        assert result.exit_code == 2
        assert "nothing" in result.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_the_whole_path(quick: Sweep) -> None:
    """Run, run again, list, status, frontier; another spec under the same name; one trial that always fails."""
    first = quick.run("run", "spec.yaml", "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert {m["method"] for m in document["methods"]} == {"constrained", "weighted"}
    assert all(m["feasible"] for m in document["methods"])
    assert document["bound"]["kind"] == "proven"
    assert document["bound"]["gap"] < 0.05
    figure = quick.directory / "figures" / "frontier.svg"
    assert figure.read_text().lstrip().startswith("<?xml")
    report = (quick.directory / "report.html").read_text(encoding="utf-8")
    assert '"state":"finished"' in report
    assert all(f'"id":"{trial_id}"' in report for trial_id in quick.finished())

    units = pq.read_table(quick.directory / "units.parquet").to_pylist()
    known = {(row["table"], row["column"]) for row in units}
    files = [path.relative_to(quick.directory) for path in quick.directory.glob("[!.]*/*.parquet")]
    for file in (*files, Path("frontier.parquet"), Path("units.parquet")):
        columns = pq.read_schema(quick.directory / file).names
        assert {(file.parts[0].removesuffix(".parquet"), column) for column in columns} <= known, file

    # Nothing is repeated: the second run shows the same at once, without Ray.
    again = quick.ask("run", "spec.yaml", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout) == document
    assert "Ray:" not in again.stderr

    assert json.loads(quick.ask("list", "--json").stdout)["sweeps"][0]["state"] == "finished"
    status = json.loads(quick.ask("status", "quick", "--json").stdout)
    assert status["trials"] == {
        "planned": 3,
        "running": 0,
        "succeeded": 3,
        "failed": 0,
        "infeasible": 0,
        "stopped": 0,
    }
    assert json.loads(quick.ask("frontier", str(quick.directory), "--json").stdout) == document
    table = quick.run("frontier", "quick")
    # A pipe has no columns: what a terminal of 80 would fold stays on its line.
    assert max(len(line) for line in table.stdout.splitlines()) > 80

    # The stored spec is the resolved one, and plans into the same trials.
    stored = load_spec(quick.directory / "spec.yaml")
    planned = {
        trial["trial_id"] for trial in json.loads((quick.directory / "plan.json").read_text())["trials"]
    }
    assert {trial.trial_id for trial in make_plan(stored).trials} == planned == quick.finished()
    assert yaml.safe_load((quick.directory / "spec.yaml").read_text())["training"]["learning_rate"] > 0

    quick.write(QUICK.replace("0.6]", "0.7]"))
    other = quick.ask("run", "spec.yaml")
    assert other.returncode == 2
    assert "another spec" in other.stderr
    assert "0.7" in other.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_a_trial_that_diverges_ends_as_failed_without_blocking_the_rest(quick: Sweep) -> None:
    # A weight of a million nats per sigma sends the KL beyond every limit.
    quick.write(
        QUICK.replace("scale: 0.5", "scale: 1.0e9").replace("width: 16", "width: 16, learning_rate: 50.0")
    )
    result = quick.run("run", "spec.yaml", "--json")
    assert result.returncode == 3, result.stderr
    rows = pq.ParquetDataset(quick.directory / "trials").read().to_pylist()
    assert len(rows) == 3
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    assert all("diverged at step" in row["error"] for row in failed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_a_plan_that_can_never_be_placed_is_refused_with_the_numbers(quick: Sweep) -> None:
    result = quick.run("run", "spec.yaml", "--set", "resources.cpus_per_worker=1000")
    assert result.returncode == 2
    assert "1000" in result.stderr
    assert "cpus_per_worker" in result.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_two_workers_of_a_train_job_come_to_what_one_with_the_doubled_batch_does(quick: Sweep) -> None:
    spec = QUICK.replace("methods: [constrained, {weighted: {weights: equal, scale: 0.5}}]\n", "")
    quick.write(spec.replace("{grid: [0.3, 0.6]}", "0.6"))
    one = quick.run("run", "spec.yaml", "--name", "one", "--set", "resources.workers=1")
    two = quick.run(
        "run", "spec.yaml", "--name", "two",
        "--set", "resources.workers=2", "--set", "training.batch_per_worker=32",
    )  # fmt: skip
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    tables = [
        pq.ParquetDataset(quick.storage / name / "trials").read().to_pylist() for name in ("one", "two")
    ]
    for alone, gang in zip(*(sorted(t, key=lambda row: row["threshold_right"]) for t in tables), strict=True):
        for column in ("kl", "reward_right", "multiplier_right", "steps"):
            assert gang[column] == pytest.approx(alone[column], rel=2e-3), column
