"""Are fixed weights as well trained as what they are compared with? Sweeps of other rates and steps, side by side.

    cdsweep run sweeps/threshold_grid.yaml --name rate-3 --set training.learning_rate=3e-3
    cdsweep run sweeps/threshold_grid.yaml --name rate-1 --set training.learning_rate=1e-3
    python benchmarks/equally_trained.py results/rate-3 results/rate-1

Every trial is judged by the Lagrangian that it minimises, ``L = KL − Σ λ_i (r_i − r_ref,i)``, nats. The λ of a weighted
trial are its weights. The constrained trials of one threshold share one λ, the mean of the multipliers that they found
in all the sweeps: by duality the best policy for a threshold is also the best at its multipliers. Less is better, and
what a sweep has more than the least is what its rates and steps leave on the table.
"""

import argparse
from collections import defaultdict
from typing import Any

import numpy as np

from orchestrator.report.sweep import read_baseline, read_plan
from orchestrator.results.catalog import find_sweep

Setting = tuple[str, tuple[float, ...]]


def main() -> None:
    """Print a line per setting, a column per sweep."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", nargs="+")
    parser.add_argument("--storage", default="results")
    arguments = parser.parse_args()
    stores = [find_sweep(sweep, arguments.storage) for sweep in arguments.sweeps]
    baseline, config = read_baseline(stores[0]), read_plan(stores[0]).trials[0].config
    names = [c.target for c in config.constraints if c.kind == "reward"]
    scale = np.array([baseline.rewards[n].std for n in names])
    mean = np.array([baseline.rewards[n].mean for n in names])

    found: dict[Setting, list[list[dict[str, Any]]]] = defaultdict(lambda: [[] for _ in stores])
    for number, store in enumerate(stores):
        for row in store.trials().to_pylist():
            if row["status"] == "succeeded":
                found[_setting(row, names, mean, scale)][number].append(row)

    for number, store in enumerate(stores):
        training = read_plan(store).trials[0].config.training
        print(
            f"[{number}] {arguments.sweeps[number]}: rate {training.learning_rate:g}, {training.steps} steps"
        )
    heads = "".join(f"{f'[{number}] KL':>9}{'L':>8}{'steps':>6}" for number in range(len(stores)))
    print(f"\n{'':12}{'σ or nats per σ':>18} {heads}")
    for (method, values), sweeps in sorted(found.items()):
        rows = [row for rows in sweeps for row in rows]
        prices = np.array(values)
        if method == "constrained":
            priced = [
                row for row in rows if row[f"multiplier_{names[0]}"] is not None
            ]  # of a state, or unknown
            prices = np.mean([[row[f"multiplier_{n}"] for n in names] for row in priced], axis=0) * scale
        cells = []
        for of_sweep in sweeps:
            if not of_sweep:
                cells.append(f"{'-':>9}{'-':>8}{'-':>6}")
                continue
            kl = np.mean([row["kl"] for row in of_sweep])
            gains = (
                np.mean([[row[f"reward_{n}"] for n in names] for row in of_sweep], axis=0) - mean
            ) / scale
            steps = np.mean([row["steps"] for row in of_sweep])
            cells.append(f"{kl:9.3f}{kl - prices @ gains:8.3f}{steps:6.0f}")
        print(f"{method:12}{' '.join(f'{v:.2f}' for v in values):>18} {''.join(cells)}")


def _setting(row: dict[str, Any], names: list[str], mean: np.ndarray, scale: np.ndarray) -> Setting:
    """Return method, and thresholds in σ or weights per σ."""
    if row["method"] == "constrained":
        values = (np.array([row[f"threshold_{n}"] for n in names]) - mean) / scale
    else:
        values = np.array([row[f"weight_{n}"] for n in names]) * scale
    return row["method"], tuple(float(v) for v in np.round(values, 6) + 0.0)


if __name__ == "__main__":
    main()
