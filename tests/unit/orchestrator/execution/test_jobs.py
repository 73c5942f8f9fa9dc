"""What a job is asked for and what it carries, without a cluster."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.models.networks import write_adapter
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.errors import StorageError, UsageError
from orchestrator.execution import package
from orchestrator.execution.jobs import Job, Jobs, render, shared_storage, storage_link
from orchestrator.execution.trials import paths
from orchestrator.plan import base_config, make_plan
from orchestrator.results.files import addresses, filesystems
from orchestrator.spec.load import dump_spec, load_spec, parse_spec
from trainers.config import TrialConfig

GOLDEN = Path(__file__).parents[3] / "golden" / "job_request.json"
SPEC = """\
name: small
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: 0.3}]
storage: s3://bucket/sweeps
"""
ADAPTERS = """\
name: adapters
models:
  ours: {adapter: mine/ours}
  shipped: {adapter: contrast}
objective: {minmax_kl: [ours, shipped]}
"""


def test_the_request_is_the_recorded_one() -> None:
    """To accept a change: CDSWEEP_ACCEPT_GOLDEN=1 pytest tests/unit/orchestrator/execution/test_jobs.py."""
    spec = parse_spec(SPEC)
    request = render(
        spec,
        {"/data/mine": "carried/0f0f0f0f-mine"},
        preview=False,
        now=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        nonce="abc123",
    )
    found = {
        "entrypoint": request.entrypoint,
        "submission_id": request.submission_id,
        "metadata": request.metadata,
        "env_vars": request.env_vars,
    }
    if os.environ.get("CDSWEEP_ACCEPT_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_fresh_samples_are_asked_for() -> None:
    assert render(parse_spec(SPEC), {}, fresh=True).entrypoint.endswith("--yes --fresh")


def test_ids_of_two_requests_differ() -> None:
    spec = parse_spec(SPEC)
    assert render(spec, {}).submission_id != render(spec, {}).submission_id


@pytest.mark.parametrize(
    ("location", "link"),
    [
        ("s3://bucket/a/b", "https://console.aws.amazon.com/s3/buckets/bucket?prefix=a/b/"),
        ("s3://bucket/a?endpoint_override=minio:9000", None),
        ("gs://bucket/a", "https://console.cloud.google.com/storage/browser/bucket/a"),
        ("/mnt/sweeps/a", "file:///mnt/sweeps/a"),
        ("abfs://container/a", None),
    ],
)
def test_links(location: str, link: str | None) -> None:
    assert storage_link(location) == link


def test_a_storage_that_only_this_machine_knows_is_refused_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_storage("results", here=True) == str(tmp_path / "results")
    with pytest.raises(UsageError, match=r"'results' is a directory relative .* --storage s3://BUCKET"):
        shared_storage("results", here=False)
    for known in ("s3://bucket/a", "/mnt/sweeps"):
        assert shared_storage(known, here=False) == known
    with pytest.raises(StorageError, match="holds credentials") as caught:
        shared_storage("s3://AKIA:geheim@bucket/a", here=False)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:geheim@bucket/a", "s3://***@bucket/a"),
        ("s3://bucket/a?region=x&secret_key=geheim&scheme=http", "s3://bucket/a?region=x&secret_key=***&scheme=http"),
        ("cannot write abfs://c/a?sig=geheim: no", "cannot write abfs://c/a?sig=*** no"),
        ("s3://bucket/a?pwd=geheim&region=x", "s3://bucket/a?pwd=***&region=x"),
        ("s3://bucket/AKIAIOSFODNN7EXAMPLE/a", "s3://bucket/***/a"),
        ("s3://bucket/a@b?region=x", "s3://bucket/a@b?region=x"),
        ("/mnt/me@home/sweeps", "/mnt/me@home/sweeps"),
    ],
)  # fmt: skip
def test_masking(text: str, shown: str) -> None:
    assert addresses.masked(text) == shown
    assert "geheim" not in shown


@pytest.mark.parametrize(
    "location",
    [
        "s3://bucket/a?pwd=geheim",
        "sftp://host/a?passphrase=geheim",
        "s3://AKIAIOSFODNN7EXAMPLE@bucket/geheim",
        "nowhere://host/a?auth=geheim",
        "nowhere://me:geheim@host/a",
    ],
)
def test_credentials_are_refused_before_anything_is_planned_and_never_shown(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC.replace("s3://bucket/sweeps", f'"{location}"'))
    for arguments in (
        ["plan", "spec.yaml"],
        ["plan", "spec.yaml", "--set", f"storage={location}"],
        ["run", "spec.yaml", "--dry-run", "--storage", location],
        ["list", "--storage", location],
        ["status", "small", "--storage", location],
        ["status", f"{location}/small"],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2, arguments
        assert "holds credentials" in done.stderr, arguments
        assert "geheim" not in done.output, arguments


@pytest.mark.parametrize("location", ["s3:/bucket/a", "gs:/bucket", "file:/data"])
def test_half_a_uri_is_no_directory(location: str) -> None:
    with pytest.raises(StorageError, match="is neither a path nor a URI"):
        filesystems.resolve(location)


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [
        ("PENDING", None, "planned"),
        ("RUNNING", None, "running"),
        ("SUCCEEDED", 0, "finished"),
        ("FAILED", 3, "finished"),  # some trials failed
        ("FAILED", 130, "stopped"),
        ("FAILED", 1, "interrupted"),
        ("STOPPED", None, "stopped"),
    ],
)
def test_states(status: str, code: int | None, state: str) -> None:
    job = Job(
        submission_id="i", sweep="s", storage="/r", status=status, message="", started_at=None, exit_code=code
    )
    assert job.state == state


RAYLET = """\
import subprocess, sys
told = "import sys; print(sys.prefix); print(len(sys.argv), file=sys.stderr)"
subprocess.run(["sh", "-c", f"sh python.sh -c '{told}' an argument; true"], check=True)
"""


@pytest.mark.parametrize("folder", ["venv", "a venv"])
def test_a_job_runs_the_interpreter_that_runs_the_cluster(tmp_path: Path, folder: str) -> None:
    """As Ray starts it: by its full path, which is not in PATH; a raylet's command line tells of it."""
    venv.create(tmp_path / folder, symlinks=True)
    python = str(tmp_path / folder / "bin" / "python")
    (tmp_path / "package").mkdir()
    made = package.build(tmp_path / "package", dump_spec(parse_spec(SPEC)), {})
    workers = subprocess.list2cmdline(
        [python, f"{tmp_path}/{folder}/ray/setup_worker.py", "default_worker.py"]
    )
    for raylet, prefix in ((f"--python_worker_command={workers}", tmp_path / folder), ("--other", None)):
        done = subprocess.run(
            [sys.executable, "-c", RAYLET, raylet],
            capture_output=True,
            text=True,
            check=True,
            cwd=made.working_dir,
            env={"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )
        assert done.stderr == "3\n", "a log has errors and progress too"
        if prefix is not None:
            assert done.stdout.strip() == str(prefix)
        else:
            assert done.stdout.strip() != str(tmp_path / folder), "without a raylet it is the python of PATH"


def test_a_log_is_passed_on_once_and_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tail that breaks begins anew with the whole log, and one that ends with the job may lack the last lines."""
    job = Job(
        submission_id="i",
        sweep="s",
        storage="/r",
        status="RUNNING",
        message="",
        started_at=None,
        exit_code=None,
    )
    tails = iter([["one\ntw", "o\n"], ["one\ntwo\n", "three\n"]])
    states = iter([job, replace(job, status="SUCCEEDED")])

    class Client:
        async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
            for lines in next(tails):
                yield lines

    jobs = object.__new__(Jobs)
    jobs.url, jobs._client = "http://127.0.0.1:8265", Client()
    monkeypatch.setattr(jobs, "job", lambda _: next(states))
    monkeypatch.setattr(jobs, "logs", lambda _: "one\ntwo\nthree\nfour\n")
    written: list[str] = []
    assert jobs.follow(job, written.append).status == "SUCCEEDED"
    assert "".join(written) == "one\ntwo\nthree\nfour\n"


# What is carried -------------------------------------------------------------------------------------


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    """The config of a spec that names a directory."""
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "mine" / "ours")
    (tmp_path / "spec.yaml").write_text(ADAPTERS)
    return base_config(load_spec("spec.yaml"))


def test_what_a_spec_names_by_path_is_found_where_the_job_has_carried_it(
    composed: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.local_paths(composed) == [str(tmp_path / "mine/ours")], "and no shipped adapter, no hub id"
    carried = package.carried_names(paths.local_paths(composed))
    folder = tmp_path / "package"
    folder.mkdir()
    made = package.build(folder, dump_spec(load_spec("spec.yaml")), carried)
    (tmp_path / "mine").rename(tmp_path / "gone")

    # As in the job, on a machine that has only what was carried.
    monkeypatch.chdir(made.working_dir)
    monkeypatch.setenv(paths.CARRIED, json.dumps(carried))
    received = load_spec(package.SPEC, resolved=True)
    assert received == parse_spec((made.working_dir / package.SPEC).read_text())
    ours = paths.absolute(base_config(received)).model.composition
    assert ours is not None
    adapter = Path(str(ours.models[0].adapter))
    assert adapter.is_relative_to(made.working_dir)
    assert (adapter / "pytorch_lora_weights.safetensors").is_file()
    assert ours.models[1].adapter == "contrast"
    ids = [trial.trial_id for trial in make_plan(received).trials]
    (tmp_path / "gone").rename(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert ids == [trial.trial_id for trial in make_plan(load_spec("spec.yaml")).trials], "the same trials"


def test_the_package_runs_by_itself(tmp_path: Path) -> None:
    made = package.build(tmp_path, dump_spec(parse_spec(SPEC)), {})
    assert {path.name for path in (tmp_path / "code").iterdir()} == {module.name for module in made.modules}
    assert [path.name for path in sorted(made.working_dir.iterdir())] == [package.PYTHON, package.SPEC]
    assert not list(tmp_path.rglob("__pycache__"))
    script = (
        "import importlib.metadata as m, orchestrator, trainers\n"
        "from orchestrator.spec.records import registry\n"
        "print(orchestrator.__file__); print(trainers.__file__)\n"
        "print(m.distribution('cdsweep').locate_file(''))\n"
        "from orchestrator.cli import app\n"
        "app(['plan', 'spec.yaml', '--json'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=made.working_dir,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "code")},
    )
    *places, document = done.stdout.split("\n", 3)
    assert all(Path(place).is_relative_to(tmp_path / "code") for place in places), places
    assert json.loads(document)["trials"]
    assert [module.name.split("-")[0] for module in made.modules] == ["orchestrator", "trainers", "cdsweep"]
    size = sum(path.stat().st_size for path in (tmp_path / "code").rglob("*") if path.is_file())
    assert size < package.LIMIT / 2


def test_what_is_too_large_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    for name, size in {"small": 10, "large": 2000}.items():
        (tmp_path / name / ".cache").mkdir(parents=True)
        (tmp_path / name / "weights").write_bytes(bytes(size))
        (tmp_path / name / ".cache" / "left-out").write_bytes(bytes(5000))
    named = [str(tmp_path / "small"), str(tmp_path / "large")]
    package.check_sizes(named, limit=2010)
    with pytest.raises(UsageError, match=r"files of .* at most .*large .*small .*hub id"):
        package.check_sizes(named, limit=2009)


def test_two_paths_of_one_name_go_to_two_places() -> None:
    names = package.carried_names(["/a/x", "/b/x"])
    assert len(set(names.values())) == 2
    assert names == package.carried_names(["/a/x", "/b/x"])
