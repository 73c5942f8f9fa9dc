"""Tells the cluster which sweeps run on it: names and places, nothing secret. Ray's dashboard reads it."""

import json
import logging
from datetime import UTC, datetime

from orchestrator.report.dashboard.reader import sweep_id
from orchestrator.results.store import SweepStore

NAMESPACE = b"cdsweep"
"""Of the key-value store of Ray's control service; it lasts as long as the cluster."""
PREFIX = b"sweep:"

_log = logging.getLogger(__name__)


def announce(store: SweepStore) -> None:
    """Put a sweep into the cluster's list, where it stays when it has finished.

    The store is internal to Ray: where it is not as expected, the page does not list the sweep, and the sweep runs.
    """
    sweep = {"name": store.name, "storage": store.storage}
    entry = {**sweep, "announced_at": datetime.now(UTC).isoformat()}
    try:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(PREFIX + sweep_id(sweep).encode(), json.dumps(entry).encode(), namespace=NAMESPACE)
    except Exception as error:  # noqa: BLE001 - whatever differs in Ray, the sweep runs
        _log.warning("the sweep is not listed in Ray's dashboard: %s", error)
