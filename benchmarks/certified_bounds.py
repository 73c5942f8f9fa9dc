"""What one look at the bounds of a certified search costs: the largest gap, from so many finished trials.

    python benchmarks/certified_bounds.py [--constraints 2 3 4 5 6] [--trials 25 50 100]

Trials are exact optima of independent standard normal rewards, at random thresholds of at most 1 nat. ``whole``: the
far corner of the box is reached, too. ``part``: it is not, and the gap is that of what mixtures reach. Printed is the
processor time of a look, in milliseconds and as a share of that of the plain way in the same run: one table of all
places and pieces (whole, gigabytes at six constraints and 400 trials), a list of all vertices of what mixtures reach
(part; at six constraints it ends in an error of Qhull or takes minutes, and is left out).
"""

import argparse
import time
from unittest.mock import patch

import numpy as np

from orchestrator.frontier.bounds.bounds import Bounds, Box, FrontierPoint

MODULE = "orchestrator.frontier"
PLAIN = {"whole": (f"{MODULE}.pieces._BLOCK", 1 << 40), "part": (f"{MODULE}.bounds._LISTED", 5)}
"""What makes a look plain."""


def optima(constraints: int, trials: int, *, corner: bool) -> list[FrontierPoint]:
    """The pretrained model, and trials."""
    rng = np.random.default_rng(0)
    prices = rng.exponential(size=(trials, constraints))
    lengths = np.sqrt(2.0) * rng.uniform(size=trials) ** (1 / constraints)
    prices *= (lengths / np.linalg.norm(prices, axis=1))[:, None]
    if corner:
        prices[0] = np.sqrt(2.0 / constraints)
    return [FrontierPoint.pretrained(np.zeros(constraints))] + [
        FrontierPoint(rewards=price, kl=0.5 * float(price @ price), multipliers=price) for price in prices
    ]


def look(points: list[FrontierPoint], box: Box) -> float:
    """Processor seconds of what the search does: the best of two."""
    took = []
    for _ in range(2):
        began = time.process_time()
        bounds = Bounds(points, box)
        bounds.gaps(bounds.widest()).max()
        took.append(time.process_time() - began)
    return min(took)


def main() -> None:
    """Print a line for each number of constraints and trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constraints", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--trials", type=int, nargs="+", default=[25, 50, 100])
    arguments = parser.parse_args()
    print("constraints trials   whole: ms of plain   part: ms of plain")
    for constraints in arguments.constraints:
        for trials in arguments.trials:
            cells = []
            for reach, plain in PLAIN.items():
                points = optima(constraints, trials, corner=reach == "whole")
                far = np.sqrt(2.0 / constraints) if reach == "whole" else 1.5
                box = Box(low=np.zeros(constraints), high=np.full(constraints, far))
                took, share = look(points, box), "-"
                if reach == "whole" or constraints < 6:
                    with patch(*plain):
                        share = f"{took / look(points, box):.2f}"
                cells.append(f"{1000 * took:9.0f} {share:>8}")
            print(f"{constraints:11} {trials:6}  {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
