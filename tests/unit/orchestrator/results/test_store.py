"""The sweep's directory: whole files, one spec per name, damage survived."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StorageError, UsageError
from orchestrator.results.catalog import find_sweep, list_sweeps
from orchestrator.results.files import Files
from orchestrator.results.schema import (
    VERSION_KEY,
    Names,
    evaluations_table,
    history_table,
    trial_table,
)
from orchestrator.results.store import SweepStore
from trainers.config import (
    BaselineStatistics,
    ConstraintConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    LinearParameters,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    RewardConfig,
    RewardStatistics,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)
from trainers.types import Evaluation, Interval, StepRecord, TrialOutcome

SPEC = "name: demo\nstorage: results\ntraining: {steps: 400}\nseeds: [0, 1]\n"
PLAN = {"trials": [{"trial_id": "aa11"}, {"trial_id": "bb22"}]}
NOW = datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def make_job(trial_id: str = "aa11", *, kl_budget: bool = False) -> TrialJob:
    constraints = [
        ConstraintConfig(name="right", kind="reward", target="right", bound=1.0, unit="absolute"),
    ]
    if kl_budget:
        constraints.append(
            ConstraintConfig(name="kl", kind="kl", target="pretrained", bound=2.0, unit="nats")
        )
    config = TrialConfig(
        model=ModelConfig(mixture=MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))),
        sampling=SamplingConfig(),
        rewards=(
            RewardConfig(
                name="right", kind="linear", parameters=LinearParameters(direction=(1.0,)).model_dump()
            ),
        ),
        objective=ObjectiveConfig(),
        constraints=tuple(constraints),
        method="constrained",
        weights={},
        seed=3,
        training=TrainingConfig(),
        duals=DualConfig(),
        convergence=ConvergenceConfig(),
        evaluation=EvaluationConfig(),
    )
    return TrialJob(
        trial_id=trial_id,
        config=config,
        baseline=BaselineStatistics(rewards={"right": RewardStatistics(mean=0.0, std=1.0)}, samples=None),
        thresholds={constraint.name: constraint.bound for constraint in constraints},
    )


def make_outcome(kl: float | None = 0.5, reward: float = 1.0, **changes: object) -> TrialOutcome:
    fields = {
        "status": "succeeded",
        "error": None,
        "feasible": True,
        "kl": None if kl is None else Interval(mean=kl, low=kl - 0.01, high=kl + 0.01),
        "kl_estimator": "path",
        "rewards": {"right": Interval(mean=reward, low=reward - 0.02, high=reward + 0.02)},
        "violations": {"right": 1.0 - reward},
        "multipliers": {"right": 1.02},
        "weights": {},
        "steps": 400,
        "wall_seconds": 12.5,
        "evaluation": None,
        "history": (),
    }
    return TrialOutcome(**(fields | changes))  # type: ignore[arg-type]


def row(trial_id: str = "aa11", **changes: object) -> pa.Table:
    return trial_table(
        make_job(trial_id), make_outcome(**changes), started_at=NOW, finished_at=NOW, kl_least=0.48
    )


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    made = SweepStore(str(tmp_path), "demo")
    made.create(SPEC, PLAN, {"rewards": {}})
    return made


def objects(tmp_path: Path) -> SweepStore:
    """A store on a filesystem that is not known to rename."""
    store = SweepStore(str(tmp_path), "demo")
    store._tables.files = Files("demo", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    assert not store._files.local
    return store


# ---------------------------------------------------------------------- what the sweep is


def test_what_defines_a_sweep_is_read_again(store: SweepStore) -> None:
    assert store.exists()
    assert store.spec_yaml() == SPEC
    assert store.plan() == PLAN
    assert store.baseline() == {"rewards": {}}


def test_a_sweep_that_has_grown_says_anew_what_its_thresholds_and_columns_are(store: SweepStore) -> None:
    store.write_preview({"points": []})
    store.write_units([Names(rewards=("right",), constraints=("right",))])
    more = SPEC.replace("400", "200")
    store.redefine(more, {"trials": []})
    assert (store.spec_yaml(), store.plan(), store.preview()) == (more, {"trials": []}, None)
    assert not store._files.exists("units.parquet")


def test_a_forgotten_trial_counts_as_never_begun(store: SweepStore, tmp_path: Path) -> None:
    for trial_id in ("aa11", "bb22"):
        store.write_trial(row(trial_id, status="failed"))
        store.save_checkpoint(trial_id, 3, {"a": b"a"})
    store.trials()
    store.write_journal({})
    store.forget(["aa11"])
    assert SweepStore(str(tmp_path), "demo").finished() == {"bb22"}
    assert store.trial("aa11") is None
    assert store.finished() == {"bb22"}
    assert store.load_checkpoint("aa11") is None
    assert store.load_checkpoint("bb22") is not None
    assert store.write_trial(row("aa11", status="succeeded"))
    for reader in (store, SweepStore(str(tmp_path), "demo")):
        assert {r["trial_id"]: r["status"] for r in reader.trials().to_pylist()} == {
            "aa11": "succeeded",
            "bb22": "failed",
        }


def test_a_reader_with_a_memory_sees_what_came_in_place_of_a_forgotten_trial(store: SweepStore) -> None:
    memory: dict[str, Any] = {}
    store.write_trial(row("aa11", status="failed"))
    store.write_journal({"lease": 1, "forgotten": 0})
    first = SweepStore(store.storage, "demo").tolerant(memory)
    assert first.trials()["status"].to_pylist() == ["failed"]
    memory["picture"] = None
    store.forget(["aa11"])
    store.write_trial(row("aa11", status="succeeded"))
    store.write_journal({"lease": 1, "forgotten": 1})
    assert SweepStore(store.storage, "demo").tolerant(memory).trials()["status"].to_pylist() == ["succeeded"]
    assert "picture" not in memory


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StorageError, match=r"cannot (read|write) .*file"):
        SweepStore(str(tmp_path / "file"), "demo").create(SPEC, PLAN, {})
    with pytest.raises(StorageError, match="nosuch"):
        SweepStore("nosuch://bucket", "demo")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="Permission denied"):
        SweepStore(str(tmp_path), "demo").create(SPEC, PLAN, {})


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 201])
def test_names_that_are_no_path_component(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name of a sweep"):
        SweepStore(str(tmp_path), name)


def test_relative_storage_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SweepStore("results", "demo")
    store.create(SPEC, PLAN, {})
    monkeypatch.chdir("/")
    assert store.exists()
    assert store.url("spec.yaml") == str(tmp_path / "results/demo/spec.yaml")
    assert pickle.loads(pickle.dumps(store)).plan() == PLAN  # noqa: S301 - our own bytes


def test_uri(tmp_path: Path) -> None:
    store = SweepStore(tmp_path.as_uri(), "demo")
    store.create(SPEC, PLAN, {})
    assert SweepStore(str(tmp_path), "demo").plan() == PLAN


def test_finding_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("threshold-grid", "another"):
        SweepStore(str(tmp_path), name).create(SPEC, PLAN, {})
    (tmp_path / "no-sweep").mkdir()
    storage = str(tmp_path)
    assert list_sweeps(storage) == ["another", "threshold-grid"]
    assert list_sweeps(str(tmp_path / "missing")) == []
    monkeypatch.chdir(tmp_path)
    for sweep in (
        "threshold-grid",
        f"{storage}/threshold-grid",
        f"{storage}/threshold-grid/",
        f"file://{storage}/threshold-grid",
        "./threshold-grid",
    ):
        assert find_sweep(sweep, storage).name == "threshold-grid"
    assert find_sweep("another", "missing").name == "another"  # a path relative to here
    with pytest.raises(UsageError, match="did you mean threshold-grid"):
        find_sweep("treshold-grid", storage)
    with pytest.raises(UsageError, match="there are: another, threshold-grid"):
        find_sweep("zzz", storage)
    with pytest.raises(UsageError, match="there is no such storage"):
        find_sweep("..", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="no sweeps yet"):
        find_sweep("..", str(tmp_path / "no-sweep"))


# ---------------------------------------------------------------------- results


def test_trials_round_trip_and_are_never_rewritten(store: SweepStore) -> None:
    assert store.finished() == frozenset()
    assert store.trials().num_rows == 0
    assert store.write_trial(row())
    assert not store.write_trial(row(kl=9.0))
    assert store.write_trial(row("bb22", status="failed", feasible=None, kl=None, rewards={}, error="NaN"))
    table = store.trials()
    assert table["kl"].to_pylist() == [0.5, None]
    assert table["reward_right"].to_pylist() == [1.0, None]
    assert table["started_at"].to_pylist() == [NOW, NOW]
    assert store.finished() == {"aa11", "bb22"}
    assert store.problems == []
    assert table.schema.metadata[VERSION_KEY] == b"1"
    assert table.schema.field("kl").metadata[b"unit"] == b"nats"


def test_trials_with_other_constraints_are_joined(store: SweepStore) -> None:
    store.write_trial(row())
    job = make_job("bb22", kl_budget=True)
    outcome = make_outcome(multipliers={"right": 1.0, "kl": 0.5}, violations={"right": 0.0, "kl": -1.5})
    store.write_trial(trial_table(job, outcome, started_at=NOW, finished_at=NOW))
    table = store.trials()
    assert table["threshold_kl"].to_pylist() == [None, 2.0]
    assert table["multiplier_kl"].to_pylist() == [None, 0.5]
    assert "reward_kl" not in table.column_names


def test_rows_that_were_seen_are_not_read_again(store: SweepStore, tmp_path: Path) -> None:
    for name in ("aa11", "bb22", "cc33"):
        store.write_trial(row(name))
    assert store.finished() == {"aa11", "bb22", "cc33"}
    store.write_journal({"state": "running"})
    store.write_trial(row("dd44"))
    # Emptied, so that what is read of it comes from elsewhere; and one whose own file is gone, is gone.
    trials = next(tmp_path.rglob("trials"))
    (trials / "aa11.parquet").write_bytes(b"")
    (trials / "bb22.parquet").unlink()
    for reader in (store, SweepStore(str(tmp_path), "demo"), pickle.loads(pickle.dumps(store))):  # noqa: S301 - ours
        assert reader.trials()["trial_id"].to_pylist() == ["aa11", "cc33", "dd44"]
        assert reader.trial("aa11") is not None
        assert reader.problems == []


def test_a_damaged_journal_costs_time_alone(store: SweepStore, tmp_path: Path) -> None:
    store.write_trial(row("aa11"))
    store.trials()
    store.write_journal({"state": "running"})
    for path in tmp_path.rglob("journal.*"):
        path.write_bytes(b"no table")
    other = SweepStore(str(tmp_path), "demo")
    assert other.trials()["trial_id"].to_pylist() == ["aa11"]
    assert other.journal() is None
    assert [problem.split(": ")[0].rsplit("/")[-1] for problem in other.problems] == [
        "journal.json",
        "journal.parquet",
    ]


def test_a_reader_with_a_memory_reads_tables_of_finished_trials_once(
    store: SweepStore, tmp_path: Path
) -> None:
    memory: dict[str, Any] = {}
    samples = Evaluation(kl=np.ones(3), rewards={"right": np.ones(3)}, seeds=np.arange(3), prompts=None)
    for name in ("aa11", "bb22"):
        store.write_evaluations(name, evaluations_table(make_job(name), samples))
    store.write_trial(row("aa11"))
    reader = store.tolerant(memory)
    reader.trials()
    assert reader.evaluations("aa11").num_rows > 0
    assert reader.evaluations("bb22").num_rows > 0
    for path in tmp_path.rglob("evaluations/*"):
        path.unlink()
    again = store.tolerant(memory)
    assert again.evaluations("aa11").num_rows > 0
    assert again.evaluations("bb22").num_rows == 0, "it has not finished, and may be written anew"


def test_a_damaged_file_is_skipped_named_and_mended(store: SweepStore) -> None:
    store.write_trial(row())
    store.write_trial(row("bb22"))
    path = Path(store.url("trials/bb22.parquet"))
    path.write_bytes(path.read_bytes()[:100])
    Path(store.url("trials/note.txt")).write_text("not a table")
    Path(store.url("trials/.bb22.parquet.123.tmp")).write_text("unfinished")
    pq.write_table(pa.table({"a": [1]}), store.url("trials/foreign.parquet"))
    assert store.finished() == {"aa11"}
    assert store.trials().num_rows == 1
    assert [problem.split(": ")[0].rsplit("/", 1)[1] for problem in store.problems] == [
        "bb22.parquet",
        "foreign.parquet",
    ]
    assert store.write_trial(row("bb22"))
    assert store.finished() == {"aa11", "bb22"}
    assert len(store.problems) == 1


def test_a_newer_schema_is_refused_with_advice(store: SweepStore) -> None:
    table = row()
    newer = table.replace_schema_metadata(table.schema.metadata | {VERSION_KEY: b"2"})
    pq.write_table(newer, Path(store.url()) / "newer.parquet")
    (Path(store.url()) / "trials").mkdir()
    (Path(store.url()) / "newer.parquet").rename(store.url("trials/aa11.parquet"))
    with pytest.raises(StorageError, match=r"version 2 .* reads version 1"):
        store.trials()


def test_history_may_grow(store: SweepStore) -> None:
    job = make_job()
    records = [
        StepRecord(
            step=step,
            kl=0.1 * step,
            lagrangian=1.0,
            kkt_residual=0.1,
            learning_rate=1e-3,
            seconds=0.5 * step,
            images_per_second=100.0,
            rewards={"right": 0.5},
            violations={"right": 0.5},
            multipliers={"right": 0.2},
        )
        for step in (20, 40)
    ]
    store.write_history("aa11", history_table(job, records[:1]))
    store.write_history("aa11", history_table(job, records))
    store.write_history("bb22", history_table(make_job("bb22"), records[:1]))
    assert store.history("aa11")["step"].to_pylist() == [20, 40]
    assert store.history().num_rows == 3
    assert store.history("nothing").num_rows == 0
    assert store.history()["threshold_right"].to_pylist() == [1.0] * 3


@given(
    samples=st.lists(st.tuples(finite, finite, st.integers(0, 2**62)), min_size=1, max_size=50),
    prompts=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_evaluations_round_trip(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[float, float, int]], prompts: bool
) -> None:
    store = SweepStore(str(tmp_path_factory.mktemp("sweep")), "demo")
    kl, reward, seeds = (np.array(column) for column in zip(*samples, strict=True))
    texts = tuple(f"prompt {index}" for index in range(len(kl))) if prompts else None
    evaluation = Evaluation(kl=kl, log_ratio=-kl, rewards={"right": reward}, seeds=seeds, prompts=texts)
    store.write_evaluations("aa11", evaluations_table(make_job(), evaluation))
    table = store.evaluations()
    np.testing.assert_array_equal(table["kl"].to_numpy(), kl)
    np.testing.assert_array_equal(table["log_ratio"].to_numpy(), -kl)
    np.testing.assert_array_equal(table["reward_right"].to_numpy(), reward)
    np.testing.assert_array_equal(table["seed"].to_numpy(), seeds)
    assert table["prompt"].to_pylist() == list(texts or [None] * len(kl))


def test_evaluations_from_before_log_ratios_are_read_beside_those_with_them(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "demo")
    evaluation = Evaluation(
        kl=np.ones(2), log_ratio=np.full(2, 0.5), rewards={"right": np.zeros(2)}, seeds=np.arange(2)
    )
    table = evaluations_table(make_job(), evaluation)
    store.write_evaluations("aa11", table.drop_columns(["log_ratio"]))
    assert "log_ratio" not in store.evaluations().column_names
    store.write_evaluations("bb22", table)
    assert store.evaluations()["log_ratio"].to_pylist() == [None, None, 0.5, 0.5]


def test_tables_without_a_schema_version_are_not_written(store: SweepStore) -> None:
    with pytest.raises(ValueError, match=r"results\.schema"):
        store.write_frontier(pa.table({"kl": [1.0]}))


# ---------------------------------------------------------------------- life, figures, object stores


def test_damaged_documents_are_said_plainly(store: SweepStore) -> None:
    Path(store.url("plan.json")).write_text("{")
    with pytest.raises(StorageError, match=r"plan\.json is damaged"):
        store.plan()
    Path(store.url("baseline.json")).unlink()
    with pytest.raises(StorageError, match=r"baseline\.json is missing"):
        store.baseline()


def test_object_stores(tmp_path: Path) -> None:
    store = objects(tmp_path)
    store.create(SPEC, PLAN, {})
    assert store.write_trial(row())
    assert not store.write_trial(row())
    assert store.finished() == {"aa11"}
    for step in (1, 2, 3):
        store.save_checkpoint("aa11", step, {"model": bytes([step])})
    assert store.load_checkpoint("aa11") == (3, {"model": b"\x03"})
    store.drop_checkpoints("aa11")
    store.drop_checkpoints("aa11")
    assert store.load_checkpoint("aa11") is None
    assert store.write_figure("frontier.svg", b"<svg/>").endswith("demo/figures/frontier.svg")


# ---------------------------------------------------------------------- checkpoints


def test_checkpoints_keep_two_and_return_the_newest(store: SweepStore) -> None:
    assert store.load_checkpoint("aa11") is None
    for step in (50, 100, 150):
        store.save_checkpoint("aa11", step, {"model": b"m" * step, "rng-0": b"r"})
    assert store.load_checkpoint("aa11") == (150, {"model": b"m" * 150, "rng-0": b"r"})
    assert len(list(Path(store.url("checkpoints/aa11")).iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "lose", "manifest", "unfinished"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(store: SweepStore, damage: str) -> None:
    for step in (50, 100):
        store.save_checkpoint("aa11", step, {"model": b"m" * step})
    newest = max(Path(store.url("checkpoints/aa11")).iterdir())
    model, manifest = newest / "model", newest / "manifest.json"
    match damage:
        case "truncate":
            model.write_bytes(b"m" * 99)
        case "flip":
            model.write_bytes(b"x" * 100)
        case "lose":
            model.unlink()
        case "manifest":
            manifest.write_text("{")
        case _:
            manifest.unlink()
    assert store.load_checkpoint("aa11") == (50, {"model": b"m" * 50})
    assert bool(store.problems) == (damage != "unfinished")
    # The next save goes on from there, and becomes the newest although a later step lies about.
    store.save_checkpoint("aa11", 75, {"model": b"m" * 75})
    assert store.load_checkpoint("aa11") == (75, {"model": b"m" * 75})


def test_checkpoint_names_are_checked(store: SweepStore) -> None:
    with pytest.raises(UsageError, match="checkpoint file"):
        store.save_checkpoint("aa11", 1, {"../model": b""})
    with pytest.raises(ValueError, match="manifest"):
        store.save_checkpoint("aa11", 1, {"manifest.json": b""})


# ---------------------------------------------------------------------- kill -9

WRITER = """
import sys
from orchestrator.results.store import SweepStore
store = SweepStore(sys.argv[1], "demo")
print("ready", flush=True)
content = 0
while True:
    content = (content + 1) % 250
    data = bytes([content]) * 3_000_000
    store.write_file("figures/big.bin", data)
    store.save_checkpoint("aa11", content, {"a": data, "b": data})
"""


def test_a_killed_writer_leaves_no_partial_file(store: SweepStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline() == "ready\n"
                until = time.monotonic() + 0.05 + 0.2 * rng.random()
                while time.monotonic() < until:
                    _check_whole(store)
            finally:  # also after a failed check, else the test would wait for the writer for ever
                os.kill(writer.pid, signal.SIGKILL)
        _check_whole(store)
    assert store.load_checkpoint("aa11") is not None
    assert Files(str(tmp_path)).names("demo/figures") == ["big.bin"]


def _check_whole(store: SweepStore) -> None:
    if store._files.exists("figures/big.bin"):
        data = store._files.read("figures/big.bin")
        assert len(data) == 3_000_000
        assert data == data[:1] * 3_000_000
    loaded = store.load_checkpoint("aa11")
    if loaded is not None:
        step, files = loaded
        assert files["a"] == files["b"] == bytes([step]) * 3_000_000


def test_a_sweep_whose_pretrained_model_was_never_sampled_is_hollow(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "s")
    store.create("name: s\nseeds: [0]\n", {"trials": [{"trial_id": "a"}]}, None)
    assert store.hollow()
    store._write_json("baseline.json", {})
    assert not store.hollow()


def test_units_are_written_once_and_whole(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "demo")
    store.write_units([Names(rewards=("right",), constraints=("right",))])
    path = tmp_path / "demo" / "units.parquet"
    written, before = path.read_bytes(), path.stat()
    units = {(row["table"], row["column"]): row["unit"] for row in pq.read_table(path).to_pylist()}
    assert units["trials", "multiplier_right"] == "nats per reward unit"
    store.write_units([Names(rewards=("right",), constraints=("right",))])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (written, before.st_mtime_ns)
    assert [file.name for file in path.parent.iterdir()] == ["units.parquet"], "no unfinished file is left"


def test_a_sweep_that_is_removed_and_run_again_is_another_one_to_trackers(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "s")
    first = store.tracked_as()
    assert SweepStore(str(tmp_path), "s").tracked_as() == store.tracked_as() == first
    shutil.rmtree(tmp_path / "s")
    assert SweepStore(str(tmp_path), "s").tracked_as() != first


def test_a_row_that_says_stopped_is_read_as_infeasible(store: SweepStore) -> None:
    table = row(
        "cc33", status="infeasible", feasible=False, error="infeasible: constraint 'clip' stayed violated"
    )
    place = table.column_names.index("status")
    earlier = table.set_column(place, table.schema.field(place), [["stopped"]])
    folder = Path(store.url("trials"))
    folder.mkdir()
    pq.write_table(earlier, folder / "cc33.parquet")
    assert store.trials()["status"].to_pylist() == ["infeasible"]
    found = store.trial("cc33")
    assert found is not None
    assert found["status"] == "infeasible"
    assert store.finished() == {"cc33"}
