"""A full disk: said, and nothing torn left behind."""

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.results.files import Files, Patience

IMPATIENT = Patience(full=0.0)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of one mebibyte, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no filesystem can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", str(place)], check=True)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_named_and_the_older_file_stays(tiny_disk: Path) -> None:
    files = Files(str(tiny_disk), patience=IMPATIENT)
    files.write("trials/a.parquet", b"older")
    with pytest.raises(StorageError, match="the disk is full") as caught:
        files.write("trials/a.parquet", b"x" * (2 << 20))
    assert str(tiny_disk / "trials/a.parquet") in str(caught.value)
    assert everything(tiny_disk) == {"trials/a.parquet": b"older"}
    files.write("trials/b.parquet", b"y" * 1000)  # the place it took is free again
    assert files.names("trials") == ["a.parquet", "b.parquet"]


def test_a_full_disk_is_waited_for(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tiny_disk / "others").write_bytes(b"z" * (900 << 10))
    files = Files(str(tiny_disk), patience=Patience(first=0.1, longest=0.5))
    room = threading.Timer(3.0, (tiny_disk / "others").unlink)
    room.start()
    files.write("trials/a.parquet", b"x" * (500 << 10))
    room.join()
    assert files.size("trials/a.parquet") == 500 << 10
    said = [record.getMessage() for record in caplog.records]
    assert any("a.parquet on a full disk, trying for" in line for line in said), said
    assert any("the storage answers again" in line for line in said), said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_the_sync_leaves_no_torn_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    files = Files(str(tmp_path), patience=IMPATIENT)
    files.write("a", b"older")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="the disk is full, or a quota is used up"):
        files.write("a", b"newer")
    assert everything(tmp_path) == {"a": b"older"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EPERM])
def test_a_file_system_that_syncs_no_folders_takes_files_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Files(str(tmp_path), patience=IMPATIENT).write("a", b"whole")
    assert everything(tmp_path) == {"a": b"whole"}


def test_a_disk_that_breaks_at_the_sync_of_a_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError):
        Files(str(tmp_path), patience=IMPATIENT).write("a", b"whole")


def test_other_errors_are_not_blamed_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        Files(str(tmp_path)).write("file/inside", b"x")
    assert "full" not in str(caught.value)


def test_a_file_is_created_only_where_there_is_none(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    assert files.create("a/b", b"mine")
    assert files.create("a/b", b"mine"), "the same again: the answer to the first attempt may have been lost"
    assert not files.create("a/b", b"another's")
    assert everything(tmp_path) == {"a/b": b"mine"}


def test_a_creation_on_a_full_disk_leaves_nothing_in_the_way(tiny_disk: Path) -> None:
    files = Files(str(tiny_disk), patience=IMPATIENT)
    with pytest.raises(StorageError, match="the disk is full"):
        files.create("a", b"x" * (2 << 20))
    assert files.create("a", b"x")


def test_a_guard_is_asked_again_before_a_file_is_put_in_place(tmp_path: Path) -> None:
    Files(str(tmp_path)).write("a", b"older")
    asked: list[int] = []

    def guard() -> None:
        asked.append(len(everything(tmp_path)))
        if len(asked) == 2:
            raise StorageError("another drives")

    with pytest.raises(StorageError, match="another drives"):
        Files(str(tmp_path)).guarded(guard).write("a", b"late")
    assert asked == [1, 2], "the second time it was written, under another name"
    assert everything(tmp_path) == {"a": b"older"}
