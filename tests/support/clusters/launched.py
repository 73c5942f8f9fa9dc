"""A Ray head of its own for tests: own folder, own token, own ports; nothing of another cluster is touched."""

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).parents[3] / "cluster/local_autoscaling.py"


def _launcher() -> Any:
    """The shipped launcher, which starts such heads and ends them."""
    name = "cluster_local_autoscaling"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@contextlib.contextmanager
def head(cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Run a head with CPUs of its own and no other nodes; ``environment`` is that of its processes."""
    config = json.loads((_SCRIPT.parent / "local-autoscaling/cluster.json").read_text(encoding="utf-8"))
    config["available_node_types"]["ray.head.default"]["resources"] = {"CPU": cpus}
    config["max_workers"] = 0
    config["available_node_types"].pop("worker")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"OMP_NUM_THREADS": "1"} | dict(environment or {})).items():
            patch.setenv(name, value)
        with _launcher().local_autoscaling(config) as cluster:
            yield cluster


def variables(cluster: Any) -> dict[str, str]:
    """The environment of a command that uses the cluster."""
    return {**os.environ, **cluster.environment, "OMP_NUM_THREADS": "1"}
