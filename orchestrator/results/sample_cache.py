"""Samples of pretrained models, kept beside the sweeps of a storage by what they depend on."""

import hashlib
import io
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.results.files import Files, addresses
from orchestrator.results.schema import VERSION, version_of
from orchestrator.spec import meant, model_identity
from trainers.config import TrialConfig
from trainers.reward_parameters import SERVED

FOLDER = ".samples"
"""Begins with a dot: it is no sweep."""
_FORMAT = "cdsweep-samples-2"
"""Changes when what our own samplers or rewards compute does, as the tag of trial ids."""


_SAMPLED = ("model", "rewards.")
"""Places of contents that samples depend on; the others are of training."""


@dataclass(frozen=True, kw_only=True)
class CachedSamples:
    """One row per sample, the statistics that thresholds refer to, and some of the pictures."""

    table: pa.Table
    baseline: dict[str, Any]
    image: bytes | None
    drawn_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When they were drawn, UTC."""


def samples_key(config: TrialConfig) -> str:
    """Return a hash of what the samples of a trial's pretrained model depend on; what is trained does not count.

    Pipelines, adapters and weights count by what they hold, wherever they lie (``TrialConfig.contents``).
    """
    evaluation = config.evaluation
    model = model_identity(config)
    model.pop("lora", None)
    data = {
        "format": _FORMAT,
        "model": model,
        "contents": {
            place: content for place, content in config.contents.items() if place.startswith(_SAMPLED)
        },
        "prompts": None if config.prompts is None else config.prompts.model_dump(mode="json"),
        "sampling": config.sampling.model_dump(mode="json", exclude_defaults=True),
        "rewards": sorted(
            json.dumps(meant(r).model_dump(mode="json"), sort_keys=True) for r in config.scored
        ),
        "precision": config.training.precision,
        "samples": [evaluation.images, evaluation.baseline_images, evaluation.seed],
    }
    if evaluation.as_deployed is not None:
        data["deployed"] = evaluation.as_deployed.model_dump(mode="json")
    # A version tells servers of one reward apart, not those of two rewards that are called alike.
    if servers := sorted(r.parameters["url"] for r in config.rewards if r.kind in SERVED):
        data["servers"] = servers
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


class SampleCache:
    """Samples under ``STORAGE/.samples/``; what is damaged counts as absent."""

    def __init__(self, storage: str) -> None:
        """Look under a storage."""
        self._files = Files(addresses.join(storage, FOLDER))

    def get(self, key: str) -> CachedSamples | None:
        """Return what is kept under a key, or None."""
        try:
            document = json.loads(self._files.read(f"{key}.json"))
            baseline, drawn_at = document["baseline"], datetime.fromisoformat(document["drawn_at"])
            table = pq.read_table(io.BytesIO(self._files.read(f"{key}.parquet")))
        except (FileNotFoundError, ValueError, KeyError, TypeError, pa.ArrowException, OSError):
            return None
        if version_of(table.schema) != VERSION or not isinstance(baseline, dict):
            return None
        image = self._files.read(f"{key}.png") if self._files.exists(f"{key}.png") else None
        return CachedSamples(table=table, baseline=baseline, image=image, drawn_at=drawn_at)

    def put(self, key: str, samples: CachedSamples) -> None:
        """Keep samples."""
        sink = pa.BufferOutputStream()
        pq.write_table(samples.table, sink, compression="zstd")
        self._files.write(f"{key}.parquet", sink.getvalue().to_pybytes())
        if samples.image is not None:
            self._files.write(f"{key}.png", samples.image)
        document = {"drawn_at": samples.drawn_at.isoformat(), "baseline": samples.baseline}
        text = json.dumps(document, indent=2) + "\n"
        self._files.write(f"{key}.json", text.encode())  # last: with it the others are complete
