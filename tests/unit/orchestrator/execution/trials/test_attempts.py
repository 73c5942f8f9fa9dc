"""Errors of a trial and losses of machines have counts of their own."""

import pytest

from orchestrator.execution.trials.attempts import Attempts, one_line
from orchestrator.spec.records.models import RetriesSpec


def test_errors_of_the_trial_are_few() -> None:
    attempts = Attempts(RetriesSpec(errors=2, losses=1))
    assert attempts.announce("a", "ValueError: no")
    attempts.failed("a")
    assert attempts.why("a") == "ValueError: no"
    assert attempts.announce("a", "ValueError: again")
    attempts.failed("a")
    assert not attempts.announce("a", "ValueError: still")
    assert attempts.verdict("a", "what Ray says") == "failed in 3 attempts; the last: ValueError: still"


def test_losses_are_not_the_fault_of_a_trial_that_gets_further() -> None:
    attempts = Attempts(RetriesSpec(errors=0, losses=2))
    for step in range(20, 400, 20):
        assert attempts.failed("a"), "one more may follow"
        assert attempts.reached("a", step)
    assert attempts.failed("a")
    assert attempts.reached("a", 20), "nothing new, but one is left"
    assert not attempts.failed("a"), "the next one ends it"
    assert not attempts.reached("a", 20)
    assert attempts.why("a") == "its process or node was lost"
    assert "lost its process or node 3 times without getting further; the last: killed" in attempts.verdict(
        "a", "killed"
    )


def test_losses_leave_the_count_of_errors_alone() -> None:
    attempts = Attempts(RetriesSpec(errors=1, losses=16))
    assert all(attempts.failed("a") for _ in range(15))
    assert attempts.announce("a", "RuntimeError: once")
    assert attempts.failed("a")
    assert not attempts.failed("a")
    assert attempts.failed("b"), "every trial has counts of its own"


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("a\nb"), "ValueError: a"), (RuntimeError(), "RuntimeError"), (OSError(" "), "OSError")],
)
def test_an_error_in_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line
