"""What trials were made with, and which ones differ."""

import json

import pyarrow as pa

from orchestrator.report.page.made import made_with


def _trials(*made: dict[str, str] | None) -> pa.Table:
    written = [None if each is None else json.dumps(each) for each in made]
    return pa.table({"trial_id": [f"t{place}" for place in range(len(made))], "provenance": written})


def test_what_all_have_in_common_is_said_once() -> None:
    assert made_with(_trials(*[{"torch": "2.5", "host": "a"}] * 3, None)) == {"torch": "2.5", "host": "a"}


def test_trials_that_differ_are_named() -> None:
    old, new = {"torch": "2.5", "device": "H200"}, {"torch": "2.6", "device": "H200", "commit": "abc"}
    assert made_with(_trials(old, new, old, old)) == {
        "torch": "2.5 (3 trials); 2.6 (t1)",
        "device": "H200",
        "commit": "none (3 trials); abc (t1)",
    }
    assert (
        made_with(_trials(*[old] * 6, *[new] * 5))["torch"] == "2.5 (6 trials); 2.6 (t6, t7, t8 and 2 more)"
    )


def test_sweeps_of_before_say_nothing() -> None:
    assert made_with(pa.table({"trial_id": ["a"]})) == {}
