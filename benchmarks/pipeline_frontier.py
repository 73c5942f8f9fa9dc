"""What constraints bought on a finished sweep of a pipeline: reach, feasibility, and KL against weights.

    cdsweep run sweeps/threshold_grid.yaml
    python benchmarks/pipeline_frontier.py results/threshold-grid

A threshold combination is *reachable by reweighting* when the pretrained model's own samples, tilted to meet it
(mathematics: exponential tilting), keep an effective size above 30 of 512. Weighted settings are held against each
combination: what they violate, or how much more KL they pay. Figures are means over seeds.
"""

import argparse
from collections import defaultdict
from typing import Any

import numpy as np

from orchestrator.report.sweep import read_baseline, read_plan
from orchestrator.results.catalog import find_sweep
from orchestrator.results.schema import samples_of
from trainers.duality.tilting import tilted_start

SAMPLES, ENOUGH = 512, 30


def main() -> None:
    """Print two tables: constrained trials, and every weighted setting against every threshold combination."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep")
    parser.add_argument("--storage", default="results")
    arguments = parser.parse_args()
    store = find_sweep(arguments.sweep, arguments.storage)
    baseline, config = read_baseline(store), read_plan(store).trials[0].config
    names = [c.target for c in config.constraints if c.kind == "reward"]
    scale = np.array([baseline.rewards[n].std for n in names])
    mean = np.array([baseline.rewards[n].mean for n in names])
    table = store.baseline_samples()
    assert table is not None, "the sweep has samples of its pretrained model"
    train = samples_of(table, "train")
    samples = np.stack([train[n][:SAMPLES] for n in names], axis=1) / scale

    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in store.trials().to_pylist():
        if row["status"] != "succeeded":
            continue
        kind = row["method"]
        prices = (
            [row[f"threshold_{n}"] for n in names]
            if kind == "constrained"
            else [row[f"weight_{n}"] for n in names]
        )
        settings[(kind, *np.round(prices, 9))].append(row)
    constrained = {key: rows for key, rows in settings.items() if key[0] == "constrained"}
    weighted = {key: rows for key, rows in settings.items() if key[0] == "weighted"}

    print("constrained: thresholds and rewards in σ over the pretrained mean, multipliers in nats per σ")
    print(
        f"{'thresholds':>18} {'rewards':>20} {'multipliers':>18} {'KL':>6} {'by seed':>14} feasible  effective"
    )
    tolerance = config.evaluation.tolerance
    for key, rows in sorted(constrained.items()):
        bound = np.array(key[1:])
        tilt = tilted_start(samples, bound / scale)
        priced = [row for row in rows if row[f"multiplier_{names[0]}"] is not None]  # of a state, or unknown
        multipliers = np.mean([[row[f"multiplier_{n}"] for n in names] for row in priced], axis=0) * scale
        print(
            f"{_vector((bound - mean) / scale):>18} {_vector((_reached(rows, names) - mean) / scale):>20} "
            f"{_vector(multipliers):>18} {_kl(rows):6.3f} {_vector([row['kl'] for row in rows]):>14} "
            f"{sum(bool(row['feasible']) for row in rows)} of {len(rows)}    {tilt.effective_samples:5.0f}"
            f"{' reachable' if tilt.effective_samples > ENOUGH else ' out of reach of the samples'}"
        )
    print(
        "\nweighted: what each setting violates (σ beyond tolerance), or its KL as a multiple of the constrained one"
    )
    heads = [_vector((np.array(key[1:]) - mean) / scale) for key in sorted(constrained)]
    print(f"{'weights per σ':>18} {'rewards':>20} {'KL':>6}  " + "  ".join(f"{head:>18}" for head in heads))
    for key, rows in sorted(weighted.items(), key=lambda item: _kl(item[1])):
        reached = _reached(rows, names)
        cells = []
        for target in sorted(constrained):
            short = (np.array(target[1:]) - reached) / scale
            missed = [f"{n} −{s:.2f}" for n, s in zip(names, short, strict=True) if s > tolerance]
            cells.append(", ".join(missed) or f"{_kl(rows) / _kl(constrained[target]):.2f} × KL")
        print(
            f"{_vector(np.array(key[1:]) * scale):>18} {_vector((reached - mean) / scale):>20} {_kl(rows):6.3f}  "
            + "  ".join(f"{cell:>18}" for cell in cells)
        )
    equal = {key: rows for key, rows in weighted.items() if np.ptp(np.array(key[1:]) * scale) < 1e-6}
    for target, ours in sorted(constrained.items()):
        bound = np.array(target[1:])
        met = [
            _kl(rows)
            for rows in equal.values()
            if ((bound - _reached(rows, names)) / scale <= tolerance).all()
        ]
        text = (
            f"{_kl(ours) / min(met):.2f} of the KL of the cheapest equal weights that meet them"
            if met
            else ("no equal weights that were tried meet them")
        )
        print(f"thresholds {_vector((bound - mean) / scale)}: {text}")


def _reached(rows: list[dict[str, Any]], names: list[str]) -> np.ndarray:
    return np.mean([[row[f"reward_{n}"] for n in names] for row in rows], axis=0)


def _kl(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([row["kl"] for row in rows]))


def _vector(values: Any) -> str:
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
