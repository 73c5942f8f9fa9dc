"""What every family takes of one CUDA device: memory against the plan's estimate, speed, floors of the KL, resume.

    make gpu-check        python benchmarks/gpu_check.py [--tiny] [--families "SD 3" ...] [--minutes 9] [--json FILE]

Nothing is downloaded: networks have their true sizes and random weights, texts are random conditions of the right
shapes. For each family a few steps of training (rewards backpropagated through the whole chain, saturation) and
evaluations in bf16; the most memory they took beside the estimate of ``cdsweep plan --memory``; the floor of the KL in
bf16 and fp32, of images of at most 256 pixels; training on from a checkpoint, which must give the same bits; the
kernels of attention. One family is compiled. Each has a share of the time, in a process of its own; what the device
does not hold, or a share is too short for, is said and left out. ``--tiny`` runs the same with small numbers in the
configurations on the CPU.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
)  # imports that ask for a GPU leave it to the children
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same bits again

import torch
from random_weights import IMAGES, Case, RandomWeights, case_of
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.alignment.kl_floor import kl_floor
from trainers.alignment.setup import Setup, build_setup
from trainers.alignment.state import TrainState
from trainers.config import TrialConfig, TrialJob
from trainers.evaluate import evaluate
from trainers.loop import train
from trainers.memory.estimate import GIB, estimated_memory
from trainers.memory.live import Live
from trainers.pipelines.families import FAMILIES, STABLE_DIFFUSION_3
from trainers.trial_io import LocalTrialIO
from trainers.types import StepRecord
from trainers.workers import checkpoint
from trainers.workers.collective import Collective
from trainers.workers.memory import fits

Row = dict[str, Any]
"""What was found of a family, as JSON has it."""
Packed = tuple[dict[str, Tensor], Any]
"""Tensors of a state, and what else it has."""
FORK = multiprocessing.get_context("fork")
"""Children have what is imported here; only they touch the device."""
SMALL = 256
"""Pixels a side of images at most, of floors of the KL."""
COMPILED = STABLE_DIFFUSION_3
"""A family whose layers are alike, so that its network is compiled in little time."""
RESERVED = 25.0
"""Seconds besides the families: imports, the table."""


@dataclass(kw_only=True)
class Kept(LocalTrialIO):
    """Keeps every checkpoint."""

    saved: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """By step."""

    def save(self, step: int, files: dict[str, bytes], history: Sequence[StepRecord]) -> None:
        """Keep the files."""
        del history
        self.saved[step] = files


class Attention(TorchDispatchMode):
    """Notes the kernels by which ``scaled_dot_product_attention`` computes."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation."""
        name = func.overloadpacket.__name__
        if name.startswith("_scaled_dot_product_"):
            self.kernels.add(name.removeprefix("_scaled_dot_product_").replace("_attention", ""))
        return func(*args, **(kwargs or {}))


def estimated(case: Case, device: str) -> Iterator[Row]:
    """Yield what ``cdsweep plan --memory`` says of the trial."""
    estimate = estimated_memory(case.config, case.form, case.configs)
    yield {"estimate_gib": (estimate.tensors if device == "cpu" else estimate.on_gpu) / GIB}


def check(case: Case, device: str, needed: float) -> Iterator[Row]:
    """Yield what is found, one after another, where a device has the GiB that are needed."""
    if device == "cuda" and needed * GIB > (there := torch.cuda.get_device_properties(0).total_memory):
        yield {"left_out": f"the device has {there / GIB:.0f} GiB"}
        return
    for name, stage in {"training": trained, "the floor in fp32": floor_in_fp32}.items():
        told = stage(case, device)
        while found := fits(partial(next, told, {})):
            yield found
        if found is None:
            yield {"left_out": f"{name}: out of memory"}
        del told
        gc.collect()


def trained(case: Case, device: str) -> Iterator[Row]:
    """Train, evaluate, and train on from a checkpoint."""
    host = RandomWeights(case, "bf16", device)
    setup = build_setup(case.job, device, host=host)
    yield {
        "parameters": sum(p.numel() for p in host.parts.network.parameters()),
        "floor_bf16": floor(host, case.config),
    }
    live, attention, io = Live(), Attention(), Kept(device=device)
    for tensor in host.weights:
        live.hold(tensor)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with live if device == "cpu" else nullcontext():
        state = run(case.job, setup, io)
        with attention:
            evaluated(setup)  # not timed
        seconds = evaluated(setup)
    first, last = state.history[0], state.history[-1]
    yield {
        "training_images_s": (last.step - first.step) / (last.seconds - first.seconds),
        "evaluation_images_s": IMAGES / seconds,
        "peak_gib": (live.peak if device == "cpu" else taken()) / GIB,
        "attention": sorted(attention.kernels),
    }
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    again = Kept(device=device)
    whole = packed(run(case.job, setup, again, io.saved[1]))
    resumed = packed(run(case.job, setup, Kept(device=device), again.saved[2]))
    before = checkpoint.stripped("network", checkpoint.unpack(io.saved[1])[0])
    after = checkpoint.stripped("network", whole[0])
    yield {"resumed": same(whole, resumed), "moved": not same((before, None), (after, None))}
    torch.use_deterministic_algorithms(mode=False)


def run(job: TrialJob, setup: Setup, io: Kept, files: dict[str, bytes] | None = None) -> TrainState:
    """Train to the end, from a checkpoint: nothing else of what was before remains."""
    state = TrainState.start(setup, job.config.training)
    if files is not None:
        for parameter in state.parameters.values():
            torch.nn.init.normal_(parameter)
        state.unpack(files, Collective())
    if (said := train(job, state, io, Collective())) is not None:
        raise RuntimeError(said)
    return state


def packed(state: TrainState) -> Packed:
    """Return all of a state but its seconds."""
    tensors, rest = checkpoint.unpack(state.pack(Collective()))
    return tensors, {key: rest[key] for key in ("step", "dual", "monitor", "averaged_multipliers")}


def same(one: Packed, other: Packed) -> bool:
    """Whether two states are the same, bit for bit."""
    return one[1] == other[1] and all(torch.equal(value, other[0][name]) for name, value in one[0].items())


def evaluated(setup: Setup) -> float:
    """Return the seconds of one batch of an evaluation."""
    began = time.perf_counter()
    evaluate(setup.policy, setup.rewards, samples=IMAGES, seed=0, collective=Collective(), batch=IMAGES)
    return time.perf_counter() - began  # the scores have come to the CPU


def taken() -> float:
    """Return the most bytes of the device that this process had: its context, and what torch held at once."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved()


def floor_in_fp32(case: Case, device: str) -> Iterator[Row]:
    """Measure the floor of the KL again."""
    yield {"floor_fp32": floor(RandomWeights(case, "fp32", device), case.config)}


def floor(host: RandomWeights, config: TrialConfig) -> float:
    """Return the floor of the KL of smaller images, nats."""
    assert config.model.height is not None, "the spec says it"
    size = min(config.model.height, SMALL)
    model = config.model.model_copy(update={"height": size, "width": size})
    return kl_floor(host.policy(config.model_copy(update={"model": model}), ""), config.evaluation.seed)


def compiled(case: Case, device: str) -> Iterator[Row]:
    """Yield what compiling costs and gives; on the CPU without code of its own, which needs a compiler of C++."""
    training = case.config.training.model_copy(update={"compile": True})
    job = case.job.model_copy(update={"config": case.config.model_copy(update={"training": training})})
    light = mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager"))
    with light if device == "cpu" else nullcontext():
        setup = build_setup(job, device, host=RandomWeights(case, "bf16", device))
        yield {"compile_s": evaluated(setup)}
        yield {"compiled_images_s": IMAGES / evaluated(setup)}


class Process:
    """Work in a process of its own, which says what it finds as it finds it."""

    def __init__(self, work: Callable[[], Iterator[Row]]) -> None:
        """Start it."""
        self._found, sender = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=self._work, args=(sender, work))
        self._process.start()
        sender.close()

    @staticmethod
    def _work(sender: Any, work: Callable[[], Iterator[Row]]) -> None:
        torch.set_num_threads(1)
        for found in work():
            sender.send(found)

    def into(self, row: Row, seconds: float) -> None:
        """Add to a row what it finds in some seconds, and end it."""
        ends = time.monotonic() + seconds
        while self._found.poll(max(0.0, ends - time.monotonic())):
            try:
                found = self._found.recv()
            except EOFError:
                self._process.join()
                row["failed"] = row.get("failed", False) or self._process.exitcode != 0
                return
            row["left_out"] += [found.pop("left_out")] if "left_out" in found else []
            row.update(found)
        self._process.kill()
        self._process.join()
        row["left_out"].append(f"what was not done in {seconds:.0f} s")


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "family": lambda row: row["family"],
    "10⁹ weights": lambda row: f"{row['parameters'] / 1e9:.3g}",
    "peak, GiB": lambda row: f"{row['peak_gib']:.3g}",
    "estimate": lambda row: f"{row['estimate_gib']:.3g}",
    "peak / estimate": lambda row: f"{row['peak_gib'] / row['estimate_gib']:.2f}",
    "images/s, training": lambda row: f"{row['training_images_s']:.3g}",
    "evaluation": lambda row: f"{row['evaluation_images_s']:.3g}",
    "floor bf16, nats": lambda row: f"{row['floor_bf16']:.1e}",
    "fp32": lambda row: f"{row['floor_fp32']:.1e}",
    "resumed": lambda row: "bit for bit" if row["resumed"] else "OTHERWISE",
    "SDPA": lambda row: ", ".join(row["attention"]) or "none",
    "compiled": lambda row: f"{row['compile_s']:.0f} s, {row['compiled_images_s']:.3g} images/s",
    "left out": lambda row: "; ".join(row["left_out"]) + (" FAILED" if row["failed"] else ""),
}
"""Of the table: what a row says, where it was found."""


def printed(rows: Sequence[Row], title: str) -> None:
    """Print the table."""
    table = Table(*COLUMNS, title=title)
    for row in rows:
        cells = []
        for tell in COLUMNS.values():
            try:
                cells.append(tell(row))
            except KeyError:  # not found
                cells.append("-")
        table.add_row(*cells)
    console = Console()
    Console(width=max(console.width, 200)).print(table)


def right(row: Row) -> bool:
    """Whether what was found of a family is as it must be."""
    floors = (row.get("floor_bf16", 0.0), row.get("floor_fp32", 0.0))
    return not row["failed"] and row.get("resumed", True) and all(map(math.isfinite, floors))


def main() -> None:
    """Check families, print the table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny networks, on the CPU")
    names = [form.name for form in FAMILIES]
    parser.add_argument(
        "--families", nargs="+", choices=names, default=names, metavar="NAME", help="which; by default all"
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--json", type=Path, default=Path("build/gpu_check.json"))
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.device_count():
        parser.error("there is no CUDA device; --tiny runs the same with tiny networks on the CPU")
    device, ends = "cpu" if options.tiny else "cuda", time.monotonic() + 60 * options.minutes - RESERVED
    cases = [case_of(form, tiny=options.tiny) for form in FAMILIES if form.name in options.families]
    rows: list[Row] = [
        {"family": c.form.name, "model": c.name, "left_out": [], "failed": False} for c in cases
    ]
    estimate = Process(partial(estimated, cases[0], device))
    for number, (case, row) in enumerate(zip(cases, rows, strict=True)):
        # The last share is that of compiling; what one leaves of its own, the others have.
        until = time.monotonic() + (ends - time.monotonic()) / (len(cases) + 1 - number)
        estimate.into(row, until - time.monotonic())
        if number + 1 < len(cases):  # it takes the CPU alone, beside what the device does
            estimate = Process(partial(estimated, cases[number + 1], device))
        if "estimate_gib" in row:
            work = partial(check, case, device, row["estimate_gib"])
            Process(work).into(row, until - time.monotonic())
        print(json.dumps(row), file=sys.stderr, flush=True)
    for case, row in zip(cases, rows, strict=True):
        if case.form == COMPILED:
            Process(partial(compiled, case, device)).into(row, ends - time.monotonic())
    title = "cpu, tiny networks" if options.tiny else torch.cuda.get_device_name(0)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    printed(rows, f"{title}, torch {torch.__version__}, {date}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"date": date, "device": title, "torch": torch.__version__, "families": rows}
    options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(map(right, rows)) else 1)


if __name__ == "__main__":
    main()
