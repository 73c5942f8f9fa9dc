"""The cdsweep page as a module of Ray's dashboard; imported in the dashboard's process by ``hook/sitecustomize.py``.

It builds on internals of Ray 2.60 (``DashboardHeadModule``, its route table, ``gcs_client``). A test notices when they
change; where they have changed, the import fails, and the dashboard starts without the page.
"""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import web
from ray.dashboard.optional_utils import DashboardHeadRouteTable
from ray.dashboard.utils import DashboardHeadModule

from orchestrator.execution.dashboard_page.announce import NAMESPACE, PREFIX
from orchestrator.execution.dashboard_page.reading import ReaderProcess, ReadingError
from orchestrator.report.dashboard.assets import PAGE, POLICY, assets

STORAGES = "CDSWEEP_DASHBOARD_STORAGES"
"""Environment variable of the head: storages whose sweeps are listed too, separated by commas."""

_API = "/api/cdsweep/sweeps"
_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_KNOWN = {"run", "is_minimal_module"}
if unknown := set(getattr(DashboardHeadModule, "__abstractmethods__", ())) - _KNOWN:
    # Before the class is there: Ray would try to make an instance of it, and fail to start.
    raise ImportError(f"Ray's dashboard modules must have {', '.join(sorted(unknown))} too")


def _get(path: str) -> Callable[[_Handler], _Handler]:
    """Route a path to a method."""
    route: Callable[[_Handler], _Handler] = DashboardHeadRouteTable.get(path)
    return route


class CdsweepHead(DashboardHeadModule):
    """Adds routes; all of them are behind the dashboard's own token check."""

    _reader: ReaderProcess | None = None

    async def run(self) -> None:
        """Nothing runs until somebody looks at the page."""

    @staticmethod
    def is_minimal_module() -> bool:
        """A minimal dashboard has no pages."""
        return False

    @_get(PAGE)
    async def page(self, request: web.Request) -> web.Response:
        """Answer with the page."""
        return _asset(request.path)

    @_get(PAGE + "/{name}")
    async def asset(self, request: web.Request) -> web.Response:
        """Answer with what the page loads."""
        return _asset(request.path)

    @_get(_API)
    async def sweeps(self, request: web.Request) -> web.Response:  # noqa: ARG002 - the handler's signature
        """Answer with the cluster's sweeps and how far they are."""
        try:
            return web.json_response(await self._listed(), headers=_HEADERS)
        except ReadingError as error:
            return _trouble(error)

    @_get(_API + "/{id}")
    async def document(self, request: web.Request) -> web.Response:
        """Answer with the report's document of a listed sweep."""
        try:
            listed = (await self._listed())["sweeps"]
            found = next((sweep for sweep in listed if sweep["id"] == request.match_info["id"]), None)
            if found is None:
                return web.Response(status=404, text="no such sweep is listed", headers=_HEADERS)
            sweep = {"name": found["name"], "storage": found["storage"]}
            known = request.headers.get("If-None-Match", "").strip('"')
            answer, document = await self._ask({"ask": "document", "sweep": sweep, "known": known})
        except ReadingError as error:
            return _trouble(error)
        headers = {**_HEADERS, "ETag": f'"{answer["tag"]}"'}
        if answer["tag"] == known:
            return web.Response(status=304, headers=headers)
        response = web.Response(body=document, content_type="application/json", headers=headers)
        response.enable_compression()
        return response

    async def _listed(self) -> dict[str, Any]:
        storages = [storage.strip() for storage in os.environ.get(STORAGES, "").split(",") if storage.strip()]
        question = {"ask": "list", "sweeps": await self._announced(), "storages": storages}
        answer, _ = await self._ask(question)
        return answer

    async def _announced(self) -> list[dict[str, str]]:
        """Return the sweeps that the cluster was told of, the last one first."""
        client = self.gcs_client
        keys = await client.async_internal_kv_keys(PREFIX, namespace=NAMESPACE, timeout=10)
        values = [await client.async_internal_kv_get(key, namespace=NAMESPACE, timeout=10) for key in keys]
        entries = [json.loads(value) for value in values if value]
        entries.sort(key=lambda entry: entry["announced_at"], reverse=True)
        return [{"name": entry["name"], "storage": entry["storage"]} for entry in entries]

    async def _ask(self, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if self._reader is None:
            self._reader = ReaderProcess()
        return await self._reader.ask(question)


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _asset(path: str) -> web.Response:
    found = assets().get(path)
    if found is None:
        return web.Response(status=404, text="no such file", headers=_HEADERS)
    headers = {**_HEADERS, "Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
    return web.Response(text=found.body, content_type=found.content_type, charset="utf-8", headers=headers)


def _trouble(error: ReadingError) -> web.Response:
    return web.Response(status=503, text=str(error), headers=_HEADERS)
