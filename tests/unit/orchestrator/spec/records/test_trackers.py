"""The trackers of a spec and of the environment."""

from pathlib import Path

import pytest

from orchestrator.errors import SpecError, UsageError
from orchestrator.plan import make_plan
from orchestrator.spec import extras
from orchestrator.spec.load import dump_spec, parse_spec
from orchestrator.spec.records import trackers

BASE = Path(__file__).parents[5].joinpath("sweeps/mixture_grid.yaml").read_text(encoding="utf-8")


def parsed(written: str, **options: str) -> tuple[trackers.Tracker, ...]:
    extra = [f"{key}={value}" for key, value in options.items()]
    return parse_spec(f"{BASE}\ntrackers: {written}\n", overrides=extra, directory=Path()).trackers


def test_names_and_settings_are_read_and_written_back() -> None:
    text = (
        "[tensorboard, {mlflow: {tracking_uri: 'http://host:5000', experiment: e}}, {wandb: {mode: offline}}]"
    )
    found = parsed(text)
    assert [trackers.tracker_name(tracker) for tracker in found] == ["tensorboard", "mlflow", "wandb"]
    spec = parse_spec(f"{BASE}\ntrackers: {text}\n")
    assert parse_spec(dump_spec(spec)) == spec


def test_trial_ids_do_not_depend_on_trackers() -> None:
    without, with_them = (make_plan(parse_spec(BASE + text)) for text in ("", "\ntrackers: [tensorboard]\n"))
    assert [t.trial_id for t in without.trials] == [t.trial_id for t in with_them.trials]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[tensorbord]", "did you mean 'tensorboard'?"),
        ("[{mlflow: {experiments: e}}]", "unknown key 'experiments'; did you mean 'experiment'?"),
        ("[{wandb: {api_key: secret}}]", "unknown key 'api_key'; allowed: project, entity, mode"),
        ("[{wandb: {mode: ofline}}]", "did you mean 'offline'?"),
        ("[mlflow, {mlflow: {}}]", "mlflow is in the list twice"),
        ("mlflow", "must be a list"),
    ],
)
def test_mistakes_are_named(written: str, message: str) -> None:
    with pytest.raises(SpecError, match="trackers") as caught:
        parsed(written)
    assert message in str(caught.value)


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(SpecError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        parsed("[{mlflow: {tracking_uri: 'https://ada:hunter2@host'}}]")
    assert "hunter2" not in str(caught.value)


def test_event_files_need_a_directory() -> None:
    with pytest.raises(SpecError, match=r"tensorboard: \{directory: DIR\}"):
        parsed("[tensorboard]", storage="s3://bucket/sweeps")
    assert parsed("[{tensorboard: {directory: runs}}]", storage="s3://bucket/sweeps")


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match=r"pip install 'cdsweep\[wandb\]'"):
        parsed("[wandb]")
    assert parse_spec(f"{BASE}\ntrackers: [wandb]\n").trackers == ("wandb",), (
        "a stored sweep can be read anywhere"
    )
    with pytest.raises(UsageError, match=r"pip install 'cdsweep\[mlflow\]'"):
        trackers.chosen_trackers((), {trackers.VARIABLE: "mlflow"})


def test_the_environment_adds_trackers() -> None:
    spec = parsed("[{mlflow: {experiment: e}}]")
    assert trackers.chosen_trackers(spec, {trackers.VARIABLE: "mlflow, tensorboard"}) == (
        *spec,
        "tensorboard",
    )
    assert trackers.chosen_trackers(spec, {}) == spec
    with pytest.raises(UsageError, match=r"CDSWEEP_TRACKERS names 'tensorbord'.*did you mean 'tensorboard'"):
        trackers.chosen_trackers((), {trackers.VARIABLE: "tensorbord"})
