"""How Ray's dashboard comes to have the cdsweep page: by the import path of its process."""

import os
from importlib.resources import files


def search_path(before: str) -> str:
    """Return the value of PYTHONPATH with which Ray's dashboard has the page.

    Args:
        before: Its value so far.
    """
    hook = str(files("orchestrator").joinpath("execution", "dashboard_page", "hook"))
    others = [part for part in before.split(os.pathsep) if part and part != hook]
    return os.pathsep.join([hook, *others])
