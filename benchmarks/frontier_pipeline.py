"""One adapter for a box of thresholds on the embedded pipeline, beside what else answers them: one core, in pieces.

    python benchmarks/frontier_adapter.py --pipeline [--thresholds 9] [--seeds 3] [--steps 150] [--batch 8] [--work DIR]

The box of ``sweeps/threshold_grid.yaml``, contrast from 0.3 to 0.7 σ, at evenly spread thresholds:

- ``trials``: a constrained trial for each, as that sweep trains them, the baseline of the ratios;
- ``adapter``: one trial of the method frontier, answers measured on held-out samples;
- ``level``: the same adapter asked, in the mean, for no more than each trial reached: where a trial misses its
  thresholds it pays the less for it; not part of what the adapter took;
- ``soups``: parameter averages of the trials at both ends, at nine shares, the cheapest that meets a threshold;
- ``mixtures``: what ``pick`` makes of the same two, by probabilities;
- ``search``: what it makes of three, of about the compute of the adapter: both ends and the middle, as the certified
  search takes them.

The figure, ``frontier.svg`` and ``.png`` in the folder, has the KL of each way over the threshold, of all seeds.

Every piece is stored in the folder as soon as it is known, and is not computed again: an interrupted run goes on. CPU
seconds are of training and evaluation. Ends with 1 where the adapter's KL is over 1.05 times that of trials in the mean
or 1.15 at worst, where more than one in 27 answers is infeasible, or where it took more than 3 trials.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from embedded_problem import bare, job_of, sampled, start_worker
from matplotlib import rc_context
from safetensors.numpy import load, save

from orchestrator.frontier.bounds import FrontierPoint, OutOfReachError, pick
from orchestrator.plan import PlannedTrial, make_plan
from orchestrator.report.figures.style import RC, from_zero, panels, saved, style
from orchestrator.spec.load import parse_spec
from trainers.adapters.files import WEIGHTS
from trainers.alignment.boxed.stored import open_stored
from trainers.alignment.lagrangian import build_lagrangian
from trainers.config import TrialJob
from trainers.evaluate import estimate, evaluate, feasible
from trainers.models.build import build_policy
from trainers.problem import run_trial
from trainers.rewards.base import build_rewards
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, FloatArray
from trainers.workers.collective import Collective

MEAN, WORST, FEASIBLE, COMPUTE = 1.05, 1.15, 26 / 27, 3.0
ENDS = (0.3, 0.7)
"""σ of contrast."""
SHARES = 9
"""Of soups."""
BASE: dict[str, Any] = {
    "name": "frontier-pipeline",
    "model": {"pretrained": "embedded", "lora": {"rank": 4}},
    "sampling": {"steps": 8, "rest": 2},
    "prompts": {"train": "shapes-tune", "evaluate": "shapes-check"},
    "training": {"steps": 90, "batch_per_worker": 8, "learning_rate": 3.0e-3, "anneal": 0.4},
    "duals": {"kind": "nu_pi", "rate": 0.3, "start": 1.5, "margin": 0.1},
    "convergence": {"window": 20, "tolerance": 0.05},
    "evaluation": {"images": 512, "baseline_images": 2048, "every": 5},
}
BOXED: dict[str, Any] = {
    "training": {"learning_rate": 1.0e-3},
    "duals": {"start": "preview", "paired": "stored"},
}


class Pieces:
    """Results in a folder, computed once."""

    def __init__(self, folder: Path) -> None:
        """Begin with what is there."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a piece, with ``cpu`` seconds."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            began = time.process_time()
            found = compute()
            found["cpu"] = time.process_time() - began
            self._write(path, json.dumps(found).encode())
            print(f"{name}: {found['cpu']:.0f} CPU s", flush=True)
        known: dict[str, Any] = json.loads(path.read_text())
        return known

    def files(self, name: str, compute: Callable[[], Mapping[str, bytes]] | None = None) -> dict[str, bytes]:
        """Return stored files of a name; with ``compute`` they are stored first."""
        place = self._folder / name
        if compute is not None:
            place.mkdir(exist_ok=True)
            for key, content in compute().items():
                self._write(place / key, content)
        return {path.name: path.read_bytes() for path in sorted(place.iterdir())}

    def samples(self, trial: PlannedTrial) -> dict[str, Evaluation]:
        """Return samples of the pretrained model."""
        path = self._folder / "pretrained.npz"
        if not path.exists():
            drawn = sampled(trial.config)
            arrays: dict[str, Any] = {}
            for side, one in drawn.items():
                arrays |= {f"{side}/{key}": getattr(one, key) for key in ("kl", "log_ratio", "seeds")}
                arrays |= {f"{side}/reward/{name}": values for name, values in one.rewards.items()}
                arrays[f"{side}/prompts"] = np.array(one.prompts or ())
            np.savez(path, **arrays)
        held = np.load(path)
        found = {}
        for side in ("train", "evaluate"):
            named = {k.removeprefix(f"{side}/"): held[k] for k in held.files if k.startswith(f"{side}/")}
            found[side] = Evaluation(
                kl=named["kl"],
                log_ratio=named["log_ratio"],
                rewards={k.removeprefix("reward/"): v for k, v in named.items() if k.startswith("reward/")},
                seeds=named["seeds"],
                prompts=tuple(named["prompts"].tolist()),
            )
        return found

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        beside = path.with_suffix(".part")
        beside.write_bytes(content)
        beside.replace(path)


def planned(contrast: Any, method: Any, seed: int, **sections: Mapping[str, Any]) -> PlannedTrial:
    """Return a trial at thresholds."""
    document = BASE | {name: BASE.get(name, {}) | dict(values) for name, values in sections.items()}
    document |= {
        "constraints": [
            {"reward": "saturation", "at_least": 0.5, "unit": "sigma"},
            {"reward": "local_contrast", "name": "contrast", "at_least": contrast, "unit": "sigma"},
            {"reward": "clip", "at_least": 0.1, "unit": "sigma"},
        ],
        "methods": [method],
        "seeds": [seed],
    }
    return make_plan(parse_spec(json.dumps(document))).trials[0]


def told(evaluation: Evaluation, job: TrialJob) -> dict[str, Any]:
    """Return KL, rewards with their errors, and whether the job's thresholds are met at one-sided 95 %."""
    names = ("kl", *job.config.acting)
    known = {name: estimate(evaluation, name) for name in names}
    return {
        "means": {name: found.mean for name, found in known.items()},
        "margins": {name: found.margin() for name, found in known.items()},
        "feasible": feasible(evaluation, build_lagrangian(job).constraints),
    }


def averaged(one: Mapping[str, bytes], other: Mapping[str, bytes], share: float) -> dict[str, bytes]:
    """Return the LoRA whose matrices are means of two."""
    left, right = load(one[WEIGHTS]), load(other[WEIGHTS])
    mixed = {key: ((1 - share) * left[key] + share * right[key]).astype(np.float32) for key in left}
    return {**one, WEIGHTS: save(mixed, {"format": "pt"})}


def run_seed(
    pieces: Pieces, seed: int, contrasts: FloatArray, trained: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Compute what is missing of a seed; returns a row for each threshold."""
    first = planned(float(contrasts[0]), "constrained", seed)
    samples = pieces.samples(first)
    jobs = {
        float(c): job_of(planned(float(c), "constrained", seed), samples) for c in contrasts
    }  # by contrast
    reference = samples["evaluate"].rewards
    train = samples["train"].rewards, samples["train"].prompts

    def port() -> LocalTrialIO:
        return LocalTrialIO(pretrained=reference, trained_on=train)

    trial = planned({"range": list(ENDS)}, {"frontier": {"points": 3}}, seed, **of_box(trained))
    boxed = job_of(trial, samples)

    def box() -> dict[str, Any]:
        outcome = run_trial(boxed, port())
        assert outcome.status == "succeeded", outcome.error
        pieces.files(f"adapter-{seed}.files", lambda: outcome.adapter)
        return {"steps": outcome.steps}

    def answer() -> dict[str, Any]:
        answering = open_stored(boxed, pieces.files(f"adapter-{seed}.files"), reference)
        asked = [np.array([job.thresholds[c.name] for c in job.config.constraints]) for job in jobs.values()]
        return {
            f"{contrast:.3f}": {"kl": reply.answer.kl.mean, "feasible": bool(reply.answer.feasible)}
            for contrast, reply in zip(jobs, answering.replies(asked), strict=True)
        }

    def level(alone: Mapping[float, Mapping[str, Any]]) -> dict[str, Any]:
        answering = open_stored(boxed, pieces.files(f"adapter-{seed}.files"), reference)
        asked = [
            np.minimum(
                [job.thresholds[c.name] for c in job.config.constraints],
                [alone[contrast]["means"][c.target] for c in job.config.constraints],
            )
            for contrast, job in jobs.items()
        ]
        box = answering.frontier.box
        moves = np.isin(np.arange(len(box.loosest)), box.moving)
        asked = [np.where(moves, box.clipped(one), one) for one in asked]
        return {
            f"{contrast:.3f}": reply.answer.kl.mean
            for contrast, reply in zip(jobs, answering.replies(asked, deviations=0.0), strict=True)
        }

    def single(job: TrialJob, name: str) -> dict[str, Any]:
        outcome = run_trial(job, port())
        assert outcome.evaluation is not None, outcome.error
        pieces.files(name, lambda: outcome.adapter)
        return told(bare(outcome.evaluation), job)

    def soup(share: float) -> dict[str, Any]:
        job = jobs[float(contrasts[0])]
        ends = [pieces.files(f"trial-{seed}-{contrasts[place]:.3f}.files") for place in (0, -1)]
        policy = build_policy(job.config)
        policy.load_adapter(averaged(ends[0], ends[1], share))
        config = job.config
        drawn = evaluate(
            policy,
            build_rewards(config.rewards, config.prompts),
            samples=config.evaluation.images,
            seed=config.evaluation.seed,
            collective=Collective(),
        )
        found = dataclasses.replace(bare(drawn), reference=reference)
        return told(found, job)

    order = sorted(jobs, key=lambda c: (c not in {float(contrasts[0]), float(contrasts[-1])}, c))
    whole = pieces(f"adapter-{seed}", box)
    found = pieces(f"answers-{seed}", answer)
    answers = {c: found[f"{c:.3f}"] for c in jobs}
    cpu = whole["cpu"] + found["cpu"]
    alone = {}
    for contrast in order:
        name = f"trial-{seed}-{contrast:.3f}"
        alone[contrast] = pieces(name, lambda: single(jobs[contrast], f"{name}.files"))  # noqa: B023 - now
    levelled = pieces(f"level-{seed}", lambda: level(alone))
    soups = [pieces(f"soup-{seed}-{share:.3f}", lambda: soup(share)) for share in np.linspace(0, 1, SHARES)]  # noqa: B023
    rows = rows_of(seed, jobs, answers, cpu, alone, soups)
    return [row | {"level": levelled[f"{row['contrast']:.3f}"]} for row in rows]


def of_box(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of the trial for the box, with what ``training`` has otherwise."""
    return BOXED | {"training": BOXED["training"] | dict(trained)}


def rows_of(
    seed: int,
    jobs: Mapping[float, TrialJob],
    answers: Mapping[float, Mapping[str, Any]],
    cpu: float,
    alone: Mapping[float, Mapping[str, Any]],
    soups: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return what each way pays at each threshold."""
    names = next(iter(jobs.values())).config.acting
    ends = [alone[contrast] for contrast in (min(alone), max(alone))]

    def point_of(trial: Mapping[str, Any]) -> FrontierPoint:
        means = trial["means"]
        return FrontierPoint(rewards=np.array([means[n] for n in names]), kl=means["kl"])

    points = [point_of(end) for end in ends]
    pretrained = next(iter(jobs.values())).baseline.rewards
    points.append(FrontierPoint.pretrained(np.array([pretrained[n].mean for n in names])))
    middle = alone[min(alone, key=lambda one: abs(one - (min(alone) + max(alone)) / 2))]
    searched = [*points, point_of(middle)]
    rows = []
    for contrast, job in jobs.items():
        answer = answers[contrast]
        allowed = {c.name: c.allowance for c in build_lagrangian(job).constraints}
        wanted = np.array([job.thresholds[c.name] - allowed[c.name] for c in job.config.constraints])
        cheapest = [soup["means"]["kl"] for soup in soups if _meets(soup, job)]
        rows.append(
            {
                "seed": seed,
                "contrast": contrast,
                "trial": alone[contrast]["means"]["kl"],
                "trial_feasible": alone[contrast]["feasible"],
                "trial_cpu": alone[contrast]["cpu"],
                "adapter": answer["kl"],
                "adapter_feasible": answer["feasible"],
                "adapter_cpu": cpu,
                "soup": min(cheapest, default=None),
                "mixture": _mixed(points, wanted),
                "search": _mixed(searched, wanted),
            }
        )
    return rows


def _meets(measured: Mapping[str, Any], job: TrialJob) -> bool:
    """Whether thresholds are met at one-sided 95 %, by means and how far their bounds lie beyond them."""
    means, margins = measured["means"], measured["margins"]
    return all(
        c.violation(means[c.quantity]) + margins[c.quantity] <= c.allowance
        for c in build_lagrangian(job).constraints
    )


def _mixed(points: list[FrontierPoint], wanted: FloatArray) -> float | None:
    """Return the KL of what ``pick`` makes of points; None where they do not reach."""
    try:
        return float(pick(points, wanted).kl)
    except OutOfReachError:
        return None


def main(folder: Path, thresholds: int, seeds: int, trained: Mapping[str, Any]) -> int:
    """Run what is missing, print the table; returns the exit status."""
    start_worker()
    pieces = Pieces(folder)
    contrasts = np.linspace(*ENDS, thresholds).round(6)
    rows = [row for seed in range(seeds) for row in run_seed(pieces, seed, contrasts, trained)]
    print("seed contrast | trial  met | adapter  met  ratio | level  ratio |   soup mixture search")
    for row in rows:
        ratio = row["adapter"] / row["trial"]
        print(
            f"{row['seed']:4d} {row['contrast']:8.2f} | {row['trial']:5.3f} {_met(row['trial_feasible'])} | "
            f"{row['adapter']:7.3f} {_met(row['adapter_feasible'])} {ratio:6.2f} | {row['level']:5.3f} "
            f"{row['level'] / row['trial']:6.2f} | {_number(row['soup'])} "
            f"{_number(row['mixture'])} {_number(row['search'])}"
        )
    with rc_context(RC):
        for name, content in draw(rows).items():
            (folder / name).write_bytes(content)
    ratios = [row["adapter"] / row["trial"] for row in rows]
    held = float(np.mean([row["adapter_feasible"] for row in rows]))
    compute = float(
        np.mean([row["adapter_cpu"] for row in rows]) / np.mean([row["trial_cpu"] for row in rows])
    )
    print(
        f"KL of the adapter over that of trials: {np.mean(ratios):.2f} in the mean, {max(ratios):.2f} at worst; "
        f"{sum(row['adapter_feasible'] for row in rows)} of {len(rows)} feasible; it took {compute:.2f} trials"
    )
    level = [row["level"] / row["trial"] for row in rows]
    print(f"held to what the trials reached {np.mean(level):.2f} in the mean, {max(level):.2f} at worst")
    good = np.mean(ratios) <= MEAN and max(ratios) <= WORST and held >= FEASIBLE and compute <= COMPUTE
    return 0 if good else 1


WAYS = {
    "trial": ("constrained", "a trial for each"),
    "adapter": ("frontier", "one adapter"),
    "soup": ("interpolated", "averages of two trials"),
    "mixture": ("weighted", "draws from two trials"),
    "search": ("three", "draws from three trials"),
}
"""Of answering a threshold: style and words."""


def draw(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Return the figure, by file: the KL of each way over the threshold, hollow where a seed's answer is infeasible."""
    figure, (axes,) = panels(1, 5.0, 3.6)
    for place, (way, (method, words)) in enumerate(WAYS.items()):
        colour, marker = style(method)
        known = [row for row in rows if row[way] is not None]
        contrasts = sorted({row["contrast"] for row in known})
        means = [np.mean([row[way] for row in known if row["contrast"] == one]) for one in contrasts]
        axes.plot(contrasts, means, color=colour, marker=marker, label=words, markersize=4)
        for row in known:
            fill = colour if row.get(f"{way}_feasible", True) else "none"
            beside = row["contrast"] + 0.003 * (place - 1.5)  # seeds of two ways would lie on each other
            axes.scatter(
                beside, row[way], s=9, marker=marker, edgecolors=colour, facecolors=fill, linewidths=0.7
            )
    axes.set_xlabel("threshold of contrast, σ")
    axes.set_ylabel("KL, nats")
    from_zero(axes)
    axes.legend(frameon=False)
    return saved(figure, "frontier")


def _met(feasible: bool) -> str:
    return "yes" if feasible else " no"


def _number(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:6.3f}"
