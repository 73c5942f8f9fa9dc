"""Adapters leave a sweep without harm to what is there, and trials are found by the beginning of their id."""

from pathlib import Path

import pytest

from orchestrator.errors import StorageError, UsageError
from orchestrator.results.catalog import find_trial
from orchestrator.results.export import write_adapter
from orchestrator.results.store import SweepStore

FILES = {"pytorch_lora_weights.safetensors": b"weights", "README.md": b"card"}


def test_files_are_written_to_a_new_directory(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    paths = write_adapter(FILES, str(target))
    assert paths == [str(target / "README.md"), str(target / "pytorch_lora_weights.safetensors")]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == FILES
    assert write_adapter(FILES, str(target)) == paths, "what is there already may be written again"


@pytest.mark.parametrize("name", ["README.md", "other.txt", ".git"])
def test_a_directory_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"not empty: it holds {name}"):
        write_adapter(FILES, str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"mine"}


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        write_adapter(FILES, str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot write .*below"):
        write_adapter(FILES, str(tmp_path / "file" / "below"))
    (tmp_path / "taken" / "README.md").mkdir(parents=True)
    with pytest.raises(StorageError, match="directory"):
        write_adapter(FILES, str(tmp_path / "taken"))


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    made = SweepStore(str(tmp_path), "demo")
    made.create("name: demo\n", {"trials": [{"trial_id": name} for name in ("aa11", "aa12", "bb22")]}, None)
    return made


def test_a_trial_is_found_by_its_id_or_its_beginning(store: SweepStore) -> None:
    assert find_trial(store, "aa11") == "aa11"
    assert find_trial(store, "b") == "bb22"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("aa", "2 trials of demo begin with 'aa': aa11, aa12"),
        ("bb23", "no trial 'bb23' in demo; there are: bb22"),
        ("zzz", "no trial 'zzz' in demo; there are: aa11, aa12, bb22"),
    ],
)
def test_any_other_name_is_answered_with_those_there_are(store: SweepStore, written: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        find_trial(store, written)
    assert str(error.value) == said
