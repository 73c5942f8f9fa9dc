"""What Ray Tune says on its own does not reach stdout, where one JSON document belongs."""

import pytest
from ray.tune.progress_reporter import TrialProgressCallback

from orchestrator.execution.progress import Silent


class Ended:
    """Stands in for a trial that ended without a report."""

    last_result: dict[str, str] = {}  # noqa: RUF012 - Tune's own is a mapping too


@pytest.mark.parametrize(("callback", "prints"), [(TrialProgressCallback, True), (Silent, False)])
def test_a_trial_without_reports_ends_in_silence(
    callback: type[TrialProgressCallback], prints: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    callback().on_trial_complete(1, [], Ended())
    captured = capsys.readouterr()
    assert bool(captured.out or captured.err) == prints
