"""A sweep whose reward is given by a server, which is killed in the middle of it and started again."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.processes import Sweep, wait_for
from support.reward_servers import TOKEN, Process, answering, offers, scoring

from trainers.patience import VARIABLE
from trainers.types import WATCH

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

OUTAGE_SECONDS = 6.0

SERVED = """\
name: served
model: {pretrained: embedded}
constraints: [{reward: saturation, name: colour, at_least: 0.5, unit: sigma}]
"""

SPEC = """\
name: small
model: {{pretrained: embedded}}
prompts: {{train: [a red circle, a blue square, a green moon], evaluate: [a pink star, a red square]}}
sampling: {{steps: 3, rest: 1}}
constraints:
  - {{reward: {reward}, name: colour, at_least: 0.5, unit: sigma}}
training: {{steps: 20, batch_per_worker: 8, primal: log_variance, checkpoint_every: 5}}
convergence: {{tolerance: 1.0e-9}}
evaluation: {{images: 32, baseline_images: 64, every: 5}}
"""
HTTP = "{{http: {{url: '{}', name: {}}}}}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setenv("CDSWEEP_REWARD_TOKEN", TOKEN)
    spec = tmp_path / "served.yaml"
    spec.write_text(SERVED)
    process = Process(spec)
    yield process
    process.kill()


def test_a_server_that_is_killed_and_comes_back_loses_nothing(sweep: Sweep, server: Process) -> None:
    sweep.write(SPEC.format(reward=HTTP.format(server.url, "colour")))
    process = sweep.start("run", "spec.yaml", "--address", "local", "--no-preview")

    def saved() -> bool:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        return bool(sweep.checkpointed())

    wait_for(saved, 300, "a first checkpoint")
    server.kill()
    time.sleep(OUTAGE_SECONDS)
    assert process.poll() is None, "the run ended in the outage"
    assert not sweep.finished()
    server.start()
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert f"at {server.url}, trying for" in err, "the outage was not noticed"
    assert "retrying" not in err, "a trial was started again"

    (trial_id,) = sweep.finished()
    row = pq.read_table(sweep.directory / "trials" / f"{trial_id}.parquet").to_pylist()[0]
    assert (row["status"], row["steps"]) == ("succeeded", 20)
    notes = [note for note in (row["notes"] or "").split("; ") if note and not note.startswith(WATCH)]
    assert notes == [], "a score is missing"
    assert json.loads(row["provenance"])["reward_colour"].startswith("0.1.0+")
    scores = pq.read_table(sweep.directory / "evaluations" / f"{trial_id}.parquet")["reward_colour"]
    assert scores.null_count == 0
    assert (scores.to_numpy() > 0.01).all(), "no score is 0"
    steps = pq.read_table(sweep.directory / "history" / f"{trial_id}.parquet")["step"].to_pylist()
    assert steps == list(range(5, 21, 5))

    # The same trial by the reward itself, whose pixels are not rounded to 8 bits, and with nothing killed.
    direct = Sweep(sweep.folder / "direct")
    direct.folder.mkdir()
    direct.write(SPEC.format(reward="saturation"))
    done = direct.run("run", "spec.yaml", "--address", "local", "--no-preview")
    assert done.returncode == 0, done.stderr
    (other,) = direct.finished()
    expected = pq.read_table(direct.directory / "trials" / f"{other}.parquet").to_pylist()[0]
    assert row["kl"] == pytest.approx(expected["kl"], rel=0.1)
    assert row["reward_colour"] == pytest.approx(expected["reward_colour"], abs=0.01)


@pytest.mark.exhaustive
def test_scores_that_are_missing_are_null_and_too_many_fail_the_trial(sweep: Sweep) -> None:
    asked = [0]

    def score(question: dict[str, object]) -> dict[str, object]:
        images = question["images"]
        assert isinstance(images, list)
        scores: list[float | None] = []
        for image in images:
            asked[0] += 1
            scores.append(None if asked[0] % 20 == 0 else (sum(image.encode()) % 1000) / 1000)
        return {"scores": scores, "errors": [None] * len(images), "version": "1"}

    with answering(scoring(score)) as url:
        text = SPEC.format(reward=HTTP.format(url, "dots")).replace("steps: 20", "steps: 5")
        sweep.write(text.replace("at_least: 0.5", "at_least: 0.01"))
        done = sweep.run("run", "spec.yaml", "--address", "local", "--no-preview", "--json")
        assert done.returncode in {0, 3}, done.stderr
        (trial_id,) = sweep.finished()
        row = pq.read_table(sweep.directory / "trials" / f"{trial_id}.parquet").to_pylist()[0]
        assert "scores of 'colour' could not be had" in row["notes"]
        scores = pq.read_table(sweep.directory / "evaluations" / f"{trial_id}.parquet")["reward_colour"]
        assert 0 < scores.null_count < 10
        there = scores.drop_null().to_numpy()
        assert np.isfinite(there).all()
        for command in (
            ["frontier", "small", "--json"],
            ["report", "small"],
            ["preview", "spec.yaml", "--json"],
        ):
            shown = sweep.ask(*command)
            assert shown.returncode == 0, shown.stderr
            assert "NaN" not in shown.stdout


def test_a_server_that_stays_away_or_is_another_ends_the_run_with_one_message(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with answering(lambda *_: offers()) as url:
        pass
    sweep.write(SPEC.format(reward=HTTP.format(url, "dots")))
    done = sweep.run("run", "spec.yaml", "--address", "local")
    assert done.returncode == 2
    assert f"the reward server at {url} cannot ask for its rewards: " in done.stderr
    assert "(tried again for 1 s)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.exhaustive
def test_all_trials_together_have_no_more_requests_under_way_than_one_may(sweep: Sweep) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def score(question: dict[str, object]) -> dict[str, object]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.03)
        with lock:
            now[0] -= 1
        images = question["images"]
        assert isinstance(images, list)
        return {"scores": [(sum(i.encode()) % 1000) / 1000 for i in images], "version": "1"}

    with answering(scoring(score)) as url:
        text = SPEC.format(reward=f"{{http: {{url: '{url}', name: dots, batch: 1, concurrency: 3}}}}")
        small = text.replace("steps: 20", "steps: 3").replace(
            "images: 32, baseline_images: 64", "images: 8, baseline_images: 24"
        )
        sweep.write(small + "seeds: [0, 1]\nresources: {concurrent_trials: 2}\n")
        done = sweep.run("run", "spec.yaml", "--address", "local", "--no-preview")
    assert done.returncode in {0, 3}, done.stderr
    assert "2 trial(s) at a time" in done.stderr, "nothing was at the same time"
    assert len(sweep.finished()) == 2
    assert most[0] == 3
