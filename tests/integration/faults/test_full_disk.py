"""A disk that fills up in the middle of a sweep: the sweep says so, waits, and goes on when there is room."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.processes import SPEC, Sweep, wait_for
from support.undisturbed import undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(sweep: Sweep) -> Iterator[Path]:
    """The storage of the sweep as a filesystem of four mebibytes, where this user may mount one."""
    sweep.storage.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(sweep.storage)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting needs privileges")
    yield sweep.storage
    subprocess.run(["/bin/umount", "--lazy", str(sweep.storage)], check=False)


@pytest.mark.exhaustive
def test_a_sweep_waits_for_room_on_its_disk(sweep: Sweep, small_disk: Path) -> None:
    sweep.write(SPEC.replace("steps: 900", "steps: 500").replace("{grid: [0.2, 0.4]}", "0.3"))
    process = sweep.start("run", "spec.yaml", "--address", "local")
    assert process.stderr is not None
    wait_for(sweep.checkpointed, 180, "a first checkpoint")
    hog = small_disk / "hog"
    with hog.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"z" * 4096)
        except OSError:
            pass
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "on a full disk, trying for" in line:
            break
    else:
        raise AssertionError("".join(seen))
    assert process.poll() is None
    status = json.loads(sweep.ask("status", "small", "--json").stdout)
    assert status["state"] == "running", "a driver that waits lives"
    hog.unlink()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "the storage answers again" in err
    expected = undisturbed(sweep.spec)
    rows = {row["trial_id"]: row for row in pq.read_table(sweep.directory / "trials").to_pylist()}
    assert rows.keys() == expected.keys()
    for trial_id, numbers in expected.items():
        assert rows[trial_id]["status"] == "succeeded"
        assert rows[trial_id]["notes"] is None, "nothing was interrupted"
        assert {key: rows[trial_id][key] for key in numbers} == pytest.approx(numbers, rel=1e-6)
