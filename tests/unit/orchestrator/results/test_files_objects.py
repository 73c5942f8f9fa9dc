"""Sweeps on object stores: a real S3 server on loopback, whose wire is cut, and filesystems of fsspec."""

import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from support.object_store import BUCKET, ObjectStore
from support.tiers import further

from orchestrator.errors import StorageError, UsageError
from orchestrator.results.catalog import find_sweep, list_sweeps
from orchestrator.results.files import Files, Patience, addresses, filesystems
from orchestrator.results.schema import VERSION, VERSION_KEY
from orchestrator.results.store import SweepStore
from trainers import patience

SPEC = "name: demo\nstorage: results\ntraining: {steps: 400}\nseeds: [0, 1]\n"
PLAN = {"trials": [{"trial_id": "aa11"}, {"trial_id": "bb22"}]}


def row(trial_id: str, kl: float = 0.5) -> pa.Table:
    schema = pa.schema(
        [("trial_id", pa.string()), ("status", pa.string()), ("kl", pa.float64())],
        metadata={VERSION_KEY: str(VERSION)},
    )
    return pa.table({"trial_id": [trial_id], "status": ["succeeded"], "kl": [kl]}, schema=schema)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    made = ObjectStore()
    yield made
    made.close()


@pytest.fixture
def objects(
    server: ObjectStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> ObjectStore:
    """The server, empty, and an environment that leads to it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_REGION", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE", patience.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    server.empty()
    return server


@pytest.fixture
def storage(objects: ObjectStore) -> str:
    return f"s3://{BUCKET}/results"


class Waits:
    """Stands in for sleeping between attempts: the outage ends at the first wait."""

    def __init__(self, end: Callable[[], Any]) -> None:
        """Call ``end`` at the first wait."""
        self.end, self.count = end, 0

    def __call__(self, seconds: float) -> None:
        self.count += 1
        if self.count == 1:
            self.end()

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch, end: Callable[[], Any]) -> Self:
        made = cls(end)
        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=time.monotonic, sleep=made))
        return made


# ---------------------------------------------------------------------- a sweep's life


def live(store: SweepStore) -> None:
    """What a sweep does with its files, from its creation to its end."""
    assert not store.exists()
    assert store.finished() == frozenset()
    store.create(SPEC, PLAN, {"rewards": {}})
    assert store.plan() == PLAN
    store.redefine(SPEC.replace("400", "200"), PLAN)
    assert store.spec_yaml() == SPEC.replace("400", "200")

    assert store.load_checkpoint("aa11") is None
    for step in (1, 2, 3):
        store.save_checkpoint("aa11", step, {"model": bytes([step]) * 100, "rng-0": b"r"})
    assert store.load_checkpoint("aa11") == (3, {"model": b"\x03" * 100, "rng-0": b"r"})

    assert store.write_trial(row("aa11"))
    assert not store.write_trial(row("aa11", kl=9.0)), "a finished trial is never written again"
    assert store.finished() == {"aa11"}
    assert store.trials().to_pylist() == row("aa11").to_pylist()
    store.drop_checkpoints("aa11")
    store.drop_checkpoints("aa11")
    assert store.load_checkpoint("aa11") is None

    files = {"pytorch_lora_weights.safetensors": b"w" * 1000, "adapter_config.json": b"{}"}
    assert store.write_adapter("aa11", files) == "adapters/aa11"
    assert store.adapter("aa11") == files
    assert store.adapter("bb22") == {}

    assert store.journal() is None
    taken = SweepStore(store.storage, store.name).take_lease(lambda _: None)
    store.hold(taken.number)
    store.write_journal({"state": "running"})
    store.write_journal({"state": "stopped"})
    assert store.journal() == {"state": "stopped"}
    assert not store.stop_requested()
    SweepStore(store.storage, store.name).request_stop()
    assert store.stop_requested()
    assert store.read_file("report.html") is None
    with pytest.raises(StorageError, match=r"baseline\.json.* is missing"):
        SweepStore(store.storage, "other").baseline()
    assert store.problems == []


def test_a_sweep_on_s3(storage: str, objects: ObjectStore) -> None:
    store = SweepStore(storage, "demo")
    live(store)
    assert store.url("spec.yaml") == f"s3://{BUCKET}/results/demo/spec.yaml"
    assert store.storage == storage
    assert objects.keys() == [
        f"results/demo/{name}"
        for name in (
            "adapters/aa11/adapter_config.json",
            "adapters/aa11/pytorch_lora_weights.safetensors",
            "baseline.json",
            "journal.json",
            "journal.parquet",
            "lease/000001.json",
            "lease/000001.stop",
            "plan.json",
            "spec.yaml",
            "trials/aa11.parquet",
        )
    ]
    assert objects.get("results/demo/spec.yaml") == SPEC.replace("400", "200").encode()
    elsewhere = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own bytes
    assert elsewhere.finished() == {"aa11"}
    assert list_sweeps(storage) == ["demo"]
    assert find_sweep(f"{storage}/demo/", "results").plan() == PLAN
    with pytest.raises(UsageError, match="did you mean demo"):
        find_sweep("dmo", storage)


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """An object store that pyarrow has never heard of; it refuses what such a store does badly."""

    protocol = "oss"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its base does
    pseudo_dirs = [""]  # noqa: RUF012 - the same

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("oss://", "memory://")))

    def mv(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("renaming is copying")


@pytest.mark.parametrize("protocol", ["memory", "oss"])
def test_a_sweep_on_a_filesystem_of_fsspec(protocol: str, tmp_path: Path) -> None:
    fsspec.register_implementation("oss", Bucket, clobber=True)
    storage = f"{protocol}://{tmp_path.name}/results"
    store = SweepStore(storage, "demo")
    live(store)
    assert store.url("spec.yaml") == f"{storage}/demo/spec.yaml"
    assert list_sweeps(storage) == ["demo"]
    left = fsspec.filesystem(protocol).find(f"/{tmp_path.name}")
    assert not [path for path in left if path.endswith(".tmp")]


def test_listings_are_complete_beyond_one_page(storage: str, objects: ObjectStore) -> None:
    names = sorted(f"{index:04d}.parquet" for index in range(1100))
    folder = "results/demo/trials"
    objects.fill(f"{folder}/{name}" for name in [*names, ".unfinished.tmp", "inner/file"])
    files = Files(f"{storage}/demo")
    assert files.names("trials") == names
    assert files.folders("trials") == ["inner"]


# ---------------------------------------------------------------------- checkpoints


def test_only_a_save_with_its_manifest_counts(storage: str, objects: ObjectStore) -> None:
    store = SweepStore(storage, "demo")
    for step in (10, 20):
        store.save_checkpoint("aa11", step, {"model": bytes([step]) * 50})
    folder = "results/demo/checkpoints/aa11"
    newest = f"{folder}/000001-step-20"
    assert f"{newest}/manifest.json" in objects.keys(folder)

    # A save that was cut off before its manifest is not one, and no problem.
    objects.client.put_object(Bucket=BUCKET, Key=f"{folder}/000002-step-30/model", Body=b"half")
    assert store.load_checkpoint("aa11") == (20, {"model": b"\x14" * 50})
    assert store.problems == []
    # Nor is one whose removal was cut off.
    objects.client.delete_object(Bucket=BUCKET, Key=f"{newest}/manifest.json")
    assert store.load_checkpoint("aa11") == (10, {"model": b"\x0a" * 50})
    # The next save follows all of them, and is the newest.
    store.save_checkpoint("aa11", 25, {"model": b"new"})
    assert store.load_checkpoint("aa11") == (25, {"model": b"new"})

    (manifest,) = [key for key in objects.keys(folder) if "step-25/manifest" in key]
    objects.client.put_object(Bucket=BUCKET, Key=manifest.replace("manifest.json", "model"), Body=b"bad")
    assert store.load_checkpoint("aa11") == (10, {"model": b"\x0a" * 50})
    assert any("damaged checkpoint" in problem for problem in store.problems)


def test_a_removal_begins_with_the_manifest(
    storage: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SweepStore(storage, "demo")
    for step in (10, 20):
        store.save_checkpoint("aa11", step, {"model": b"m"})

    def cut_off(self: Files, name: str) -> None:
        raise StorageError("cut off")

    monkeypatch.setattr(Files, "remove_folder", cut_off)
    with pytest.raises(StorageError, match="cut off"):
        store.save_checkpoint("aa11", 30, {"model": b"m"})
    assert [key for key in objects.keys("results/demo/checkpoints") if "step-10" in key] == [
        "results/demo/checkpoints/aa11/000000-step-10/model"
    ]
    assert store.load_checkpoint("aa11") == (30, {"model": b"m"})
    assert store.problems == []


# ---------------------------------------------------------------------- outages


def test_writes_wait_for_a_server_that_is_gone(
    storage: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SweepStore(storage, "demo")
    store.create(SPEC, PLAN, {})
    for trial_id in ("aa11", "bb22"):
        waits = Waits.install(monkeypatch, objects.wire.up)
        objects.wire.down()
        store.save_checkpoint(trial_id, 5, {"model": b"m"})
        assert waits.count >= 1, "there was no outage"
        waits = Waits.install(monkeypatch, objects.wire.up)
        objects.wire.down()
        assert store.write_trial(row(trial_id))
        assert waits.count >= 1
    waits = Waits.install(monkeypatch, objects.wire.up)
    objects.wire.down()
    assert store.finished() == {"aa11", "bb22"}
    assert waits.count >= 1
    assert store.load_checkpoint("bb22") == (5, {"model": b"m"})
    assert store.problems == []


@pytest.mark.slow
def test_a_server_that_hangs_is_waited_for(
    storage: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(storage)
    files.write("a", b"before")
    hanging = objects.wire.hanging()
    hanging.__enter__()
    waits = Waits.install(monkeypatch, lambda: hanging.__exit__(None, None, None))
    assert files.read("a") == b"before"
    assert waits.count >= 1


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (500, "InternalError"), *further((429, "TooManyRequests"))]
)
def test_a_server_that_is_busy_is_waited_for(
    status: int, code: str, storage: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(storage)
    for operation in (lambda: files.write("a", b"x"), files.names, lambda: files.exists("a")):
        busy = objects.wire.answering(status, code)
        busy.__enter__()
        waits = Waits.install(monkeypatch, lambda busy=busy: busy.__exit__(None, None, None))
        operation()
        assert waits.count >= 1
    assert files.read("a") == b"x"


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (403, "SignatureDoesNotMatch"), (404, "NoSuchBucket")]
)
def test_what_will_not_change_fails_at_once(
    status: int, code: str, storage: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(storage)
    files.write("a", b"x")
    waits = Waits.install(monkeypatch, lambda: None)
    before = objects.wire.answered
    with (
        objects.wire.answering(status, code),
        pytest.raises(StorageError, match=rf"cannot write {storage}/a: "),
    ):
        files.write("a", b"y")
    assert objects.wire.answered == before + 1
    assert waits.count == 0
    assert files.read("a") == b"x"


def test_missing_files_and_buckets_need_no_waiting(
    storage: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits.install(monkeypatch, lambda: None)
    files = Files(storage)
    with pytest.raises(FileNotFoundError):
        files.read("nothing")
    assert files.size("nothing") is None
    assert files.names("nothing") == []
    files.remove("nothing")
    files.remove_folder("nothing")
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        Files("s3://no-such-bucket/results").write("a", b"x")
    assert waits.count == 0


def test_when_patience_ends_the_error_says_so(objects: ObjectStore, storage: str) -> None:
    files = Files(storage, patience=Patience(seconds=0.01))
    with objects.wire.refusing(), pytest.raises(StorageError, match=r"tried again for 0\.01 s") as caught:
        files.write("a", b"x")
    assert "\n" not in str(caught.value)


def test_a_large_file_goes_in_parts_and_a_torn_upload_never_shows(
    storage: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(storage)
    data = bytes(range(256)) * (25 << 12)  # 25 MiB
    cut = objects.wire.cutting(after=4 << 20)
    cut.__enter__()
    seen: list[list[str]] = []

    def mend() -> None:
        seen.append(objects.keys())
        cut.__exit__(None, None, None)

    waits = Waits.install(monkeypatch, mend)
    files.write("big", data)
    assert waits.count >= 1
    assert seen == [[]], "a torn upload was published"
    assert objects.get("results/big") == data
    assert files.read("big") == data
    etag = objects.client.head_object(Bucket=BUCKET, Key="results/big")["ETag"]
    assert "-" in etag, "not uploaded in parts"


def test_a_torn_read_is_repeated(objects: ObjectStore, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def size(self) -> int:
            return 5

        def read(self) -> bytes:
            return self.data

    class Filesystem:
        answers: Iterator[bytes]

        def open_input_file(self, path: str) -> Stream:
            return Stream(next(self.answers))

    waits = Waits.install(monkeypatch, lambda: None)
    files = Files(storage)
    torn = Filesystem()
    torn.answers = iter([b"", b"hal", b"whole"])
    files._filesystem = torn
    assert files.read("a") == b"whole"
    assert waits.count == 2


# ---------------------------------------------------------------------- locations


def test_options_of_a_uri_survive(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = objects.wire.url.removeprefix("http://")
    storage = f"s3://{BUCKET}/results?endpoint_override={host}&scheme=http&region=us-east-1"
    store = SweepStore(storage, "demo")
    live(store)
    assert store.url() == storage.replace("results?", "results/demo?")
    assert store.storage == storage
    assert find_sweep(store.url(), "elsewhere").finished() == {"aa11"}
    assert find_sweep("demo", storage).finished() == {"aa11"}


def test_the_endpoint_of_s3_alone_comes_first(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", objects.wire.url + "/")
    Files(f"s3://{BUCKET}/results").write("a", b"x")
    assert objects.get("results/a") == b"x"


SECRETS = [
    "s3://AKIA:hush@bucket/results",
    "s3://AKIA:hush/with/slashes@bucket/results",
    "s3://bucket/results?secret_key=hush",
    "s3://bucket/results?access_key=hush",
    "sftp://me:hush@host/results",
    "abfs://c@account.dfs.core.windows.net/p?sig=hush",
]


@pytest.mark.parametrize("location", SECRETS)
def test_credentials_in_a_uri_are_refused_and_not_repeated(location: str) -> None:
    with pytest.raises(StorageError, match="holds credentials") as caught:
        SweepStore(location, "demo")
    assert "hush" not in str(caught.value)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("s3://bucket/results?colour=red", "unknown option 'colour'; there are: endpoint_override, region"),
        ("s3:///results", "names no bucket"),
        ("nosuch://place/results", "Protocol not known: nosuch"),
        ("sftp://host/results", "paramiko"),
    ],
)
def test_a_uri_that_cannot_be_used_says_why(location: str, says: str) -> None:
    with pytest.raises(StorageError) as caught:
        Files(location)
    assert says in str(caught.value)
    assert location in str(caught.value)


@given(
    base=st.sampled_from(
        ["s3://bucket", "s3://bucket/a", "gs://b/a/b?x=1&y=2", "/a/b", "a/b", "/", "file:///a"]
    ),
    names=st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), min_size=1, max_size=3),
)
def test_join_and_split_are_inverse(base: str, names: list[str]) -> None:
    location = base
    for name in names:
        location = addresses.join(location, name)
    for name in reversed(names):
        location, last = addresses.split(location)
        assert last == name
    assert location == base


def test_googles_client_is_sent_to_an_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(filesystems, "_GCS_SECONDS", "1")
    files = Files("gs://bucket/results", patience=Patience(seconds=0))
    assert files.url("a") == "gs://bucket/results/a"
    with pytest.raises(StorageError, match="UNAVAILABLE"):
        files.size("a")
