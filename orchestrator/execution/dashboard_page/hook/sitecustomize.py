"""Puts the cdsweep page into Ray's dashboard: Python runs this at its start where this folder is on PYTHONPATH.

In every process but the dashboard's it does nothing. There it waits for ``ray.dashboard.head``, then imports the page's
module, which Ray finds by its base class. Nothing that goes wrong here may keep Ray from starting.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_AWAITED = "ray.dashboard.head"
_LOG = "cdsweep_page.log"
_MODULE = "orchestrator.execution.dashboard_page.module"


class _AfterHead(importlib.abc.MetaPathFinder):
    """Lets the usual finders find ``ray.dashboard.head``, and adds a step after its execution."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the finder's signature
        target: ModuleType | None = None,  # noqa: ARG002 - the same
    ) -> ModuleSpec | None:
        """Find one module, once."""
        if fullname != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_import_ours(module: ModuleType) -> None:
                execute(module)
                try:
                    importlib.import_module(_MODULE)
                except Exception as error:  # noqa: BLE001 - Ray's dashboard starts as it would without us
                    _say(f"cdsweep: no page in Ray's dashboard: {type(error).__name__}: {error}\n")

            spec.loader.exec_module = then_import_ours  # type: ignore[method-assign] # of this loader only
        return spec


def _say(text: str) -> None:
    """Write to Ray's logs: at this time Ray sends the process's own output nowhere."""
    folders = [part.partition("=")[2] for part in sys.orig_argv if part.startswith("--log-dir=")]
    try:
        with open(os.path.join(folders[0], _LOG), "a", encoding="utf-8") as file:
            file.write(text)
    except (IndexError, OSError):
        sys.stderr.write(text)


def _is_dashboard() -> bool:
    return any(part.replace(os.sep, "/").endswith("ray/dashboard/dashboard.py") for part in sys.orig_argv)


def _run_the_next() -> None:
    """Run the ``sitecustomize`` that this one stands before, if there is one."""
    here = os.path.realpath(os.path.join(__file__, os.pardir))
    others = [folder for folder in sys.path if os.path.realpath(folder or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if _is_dashboard():
    sys.meta_path.insert(0, _AfterHead())
_run_the_next()
