"""Sphinx."""

from __future__ import annotations

from safemigrate import __version__

project = "safemigrate"
author = "safemigrate contributors"
copyright = "2026, safemigrate contributors"  # noqa: A001
release = version = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"safemigrate {release}"

# The lexer of SQL does not know the $...$ around the body of a PostgreSQL function, and takes the block as it can.
suppress_warnings = ["misc.highlighting_failure"]
