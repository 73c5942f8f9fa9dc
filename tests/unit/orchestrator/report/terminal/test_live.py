"""The live table, in characters."""

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.report.terminal.live import (
    BLOCKS,
    clock,
    live_table,
    seconds_left,
    sparkline,
    worst_violation,
)

FAST: dict[str, Any] = {
    "trial_id": "aaaa",
    "state": "running",
    "label": "constrained right≥1.2 seed 0",
    "step": 100,
    "most_steps": 400,
    "seconds": 50.0,
    "kl": 0.4,
    "kl_trail": [0.1, 0.2, 0.4],
    "violation_right": 0.3,
    "violation_near": -0.1,
    "violation_trail": [0.8, 0.5, 0.3],
}
DEAR = FAST | {"trial_id": "bbbb", "kl": 2.0, "violation_right": -0.2, "step": 390}
LOST = {"trial_id": "cccc", "state": "retrying", "label": "weighted right·1", "most_steps": 400}


def drawn(*running: dict[str, Any], width: int = 80, encoding: str = "utf-8", **options: Any) -> list[str]:
    raw = io.BytesIO()
    console = Console(
        file=io.TextIOWrapper(raw, encoding=encoding, errors="replace"), width=width, force_terminal=False
    )
    console.print(live_table(running, console=console, **options))
    console.file.flush()
    return raw.getvalue().decode(encoding).splitlines()


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == BLOCKS[0] * 2
    assert sparkline([0.0, 1.0]) == BLOCKS[0] + BLOCKS[-1]
    assert sparkline([1.0, 2.0], low=0.0)[0] not in (BLOCKS[0], BLOCKS[-1])


def test_eighty_columns_hold_every_figure() -> None:
    lines = drawn(FAST, LOST, closing=["3 of 20 trials done"])
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("aaaa  100/400  KL 0.400", "right +0.300 missed", "<3 min", "retrying: weighted right·1"):
        assert part in text
    assert lines[-1] == "3 of 20 trials done"
    assert text.index("cccc") < text.index("aaaa"), "what is in trouble comes first"


def test_a_wide_terminal_has_a_line_for_a_trial() -> None:
    lines = drawn(FAST, DEAR, width=140)
    assert len(lines) == 3
    assert "worst violation" in lines[0]


@pytest.mark.parametrize(
    ("order", "first"), [("kl", "bbbb"), ("violation", "aaaa"), ("left", "bbbb"), ("trial", "aaaa")]
)
def test_it_can_be_sorted(order: str, first: str) -> None:
    assert drawn(FAST, DEAR, order=order)[0].startswith(first)


def test_without_block_characters_the_figures_stay() -> None:
    text = "\n".join(drawn(FAST, encoding="ascii"))
    assert "KL 0.400" in text
    assert not set(text) & set(BLOCKS)


def test_the_worst_violation_is_the_largest_one() -> None:
    assert worst_violation(FAST) == ("right", 0.3)
    assert worst_violation(LOST) is None


def test_time_left_is_at_the_present_pace() -> None:
    assert seconds_left(FAST) == pytest.approx(150.0)
    assert seconds_left(LOST) is None
    assert [clock(seconds) for seconds in (42, 200, 9000)] == ["42 s", "4 min", "2.5 h"]
