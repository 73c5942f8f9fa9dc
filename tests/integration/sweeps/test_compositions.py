"""Compositions by the real command: AND, OR, results and frontier, and what does not compose."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.processes import Sweep
from support.tiers import exhaustive
from typer.testing import CliRunner

from orchestrator.cli import app

SPEC = """\
name: and
models:
  left: {mixture: {weights: [1.0], means: [[-1.0]], covariances: [[[0.5]]]}}
  twin: {mixture: {weights: [1.0], means: [[-0.9]], covariances: [[[0.5]]]}}
  right: {mixture: {weights: [1.0], means: [[1.0]], covariances: [[[0.5]]]}}
objective: {minmax_kl: [left, twin, right]}
methods: [constrained, {weighted: {weights: equal}}]
training: {batch_per_worker: 1024}
evaluation: {images: 4096}
"""


@pytest.fixture
def composed(shared: Sweep) -> Sweep:
    """A composition of three mixtures."""
    shared.write(SPEC)
    shared.name = "and"
    return shared


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("direction", ["reverse", *exhaustive("forward")])
def test_a_composition_keeps_every_model_equally_near(composed: Sweep, direction: str) -> None:
    done = composed.run("run", "spec.yaml", "--json", "--set", f"objective.direction={direction}")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [method["method"] for method in document["methods"]] == ["constrained", "weighted"]
    assert document["bound"]["kind"] == "proven"
    assert document["bound"]["gap"] == pytest.approx(0.0, abs=0.05)

    rows = {}
    for path in (composed.directory / "trials").glob("*.parquet"):
        [row] = pq.read_table(path).to_pylist()
        rows[row["method"]] = row
    for row in rows.values():
        kls = {name: row[f"kl_{name}"] for name in ("left", "twin", "right")}
        assert row["kl"] == max(kls.values())
        assert sum(row[f"multiplier_{name}"] for name in kls) == pytest.approx(1.0)
    best = rows["constrained"]
    assert best["kl_right"] == pytest.approx(best["kl_left"], rel=0.1)
    assert best["kl_least"] == pytest.approx(best["kl"], rel=0.1)
    assert rows["weighted"]["kl_right"] > 1.5 * rows["weighted"]["kl_left"]
    assert rows["weighted"]["multiplier_right"] == pytest.approx(1 / 3)
    assert (composed.directory / "figures" / "frontier.svg").stat().st_size > 0
    again = composed.ask("frontier", "and", "--json")
    assert json.loads(again.stdout)["bound"] == document["bound"]
    history = pq.read_table(next((composed.directory / "history").glob("*.parquet")))
    assert {"kl_left", "multiplier_right", "kkt_residual"} <= set(history.column_names)


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
def test_models_without_common_support_are_explained(composed: Sweep) -> None:
    spec = SPEC.replace("[[1.0]], covariances: [[[0.5]]]", "[[90.0]], covariances: [[[0.01]]]")
    composed.write(spec.replace(", {weighted: {weights: equal}}", ""))
    done = composed.run("run", "spec.yaml")
    assert "Traceback" not in done.stderr
    [row] = pq.read_table(next((composed.directory / "trials").glob("*.parquet"))).to_pylist()
    assert row["status"] == "infeasible"
    assert "hardly overlap" in row["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("twin]", "twim]"), "twin"),
        (("weights: equal", "weights: {left: 0.5, right: 0.6}"), "1.1"),
        (
            (
                "means: [[-0.9]], covariances: [[[0.5]]]",
                "means: [[-0.9, 0]], covariances: [[[1, 0], [0, 1]]]",
            ),
            "dimension",
        ),
        (
            ("{mixture: {weights: [1.0], means: [[1.0]], covariances: [[[0.5]]]}}", "{prompt: a cat}"),
            "mixtures compose with mixtures only",
        ),
    ],
)
def test_what_does_not_compose_is_said_before_anything_starts(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    text = SPEC.replace("[left, twin, right]", "[left, right, twin]").replace(*change)
    (tmp_path / "spec.yaml").write_text(text)
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "spec.yaml")])
    assert done.exit_code == 2
    assert message in done.stderr
