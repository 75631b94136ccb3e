"""The documentation site: `make docs` builds it into docs/_build/html, and any warning is an error."""

import re
from importlib import metadata

project = "TwoViews"
author = "The TwoViews developers"
copyright = "The TwoViews developers, MIT licence"
release = version = metadata.version("twoviews")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "TwoViews"
html_static_path: list[str] = []
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False

REPOSITORY = "https://github.com/twoviews/twoviews/blob/main"


def _outside(app: object, name: str, source: list[str]) -> None:
    """Point links to files outside docs/ at the repository."""
    depth = name.count("/")
    up = r"\.\./" * (depth + 1)
    source[0] = re.sub(rf"\]\({up}([^)]*)\)", rf"]({REPOSITORY}/\1)", source[0])


def setup(app: object) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", _outside)  # type: ignore[attr-defined]
