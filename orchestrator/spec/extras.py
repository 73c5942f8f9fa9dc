"""Packages that only some specs need, and the extras that bring them."""

from importlib.util import find_spec


def missing_package(package: str, extra: str) -> str | None:
    """Return what to install where a package is not there, as the end of a rule; None where it is."""
    if find_spec(package) is not None:
        return None
    return f"needs the package {package}, which is not installed: pip install 'cdsweep[{extra}]'"
