"""Sphinx: `make docs` builds the pages into build/docs, and a warning is an error."""

from importlib.metadata import version as installed_version

project = "cdsweep"
author = "the cdsweep authors"
release = version = installed_version("cdsweep")
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"cdsweep {release}"
html_static_path: list[str] = []
exclude_patterns = ["_build"]
