"""The documentation site: `make docs` builds it into docs/_build/html, and any warning is an error."""

import re
from importlib import metadata
from pathlib import Path

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
copybutton_exclude = ".linenos, .gp, .c1"  # comments of shell commands: zsh would run them
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False

# Files of the repository that are no pages: a link to one becomes its name.
OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+|(?=results/|twoviews/|tests/|examples/|LOG\.md|CITATION\.cff))([^)]*)\)")


def _outside(app: object, name: str, source: list[str]) -> None:
    """Replace links to files that are no pages of the site."""

    def named(found: re.Match[str]) -> str:
        path = found[3].partition("#")[0]
        if not found[2] and ((Path(__file__).parent / name).parent / path).is_file():
            return found[0]  # a page of the site
        page = {"RESULTS.md": "results.md", "README.md": "index.md"}.get(path)
        depth = "../" * name.count("/")
        return f"[{found[1]}]({depth}{page})" if page else f"{found[1]} (`{path}`)" if found[1].strip("`") != path else f"`{path}`"

    inside = name.count("/")
    source[0] = OUTSIDE.sub(lambda found: named(found) if len(found[2]) > 3 * inside or not found[2] else found[0], source[0])


def _included(app: object, path: object, parent: str, content: list[str]) -> None:
    _outside(app, parent, content)


def _described(app: object, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Keep a description of what is returned whole: napoleon takes the words before its first colon for a type."""
    for i, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            text = lines[i + 1].lstrip()
            lines[i + 1] = f"{' ' * (len(lines[i + 1]) - len(text))}: {text}"


def setup(app: object) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", _outside)  # type: ignore[attr-defined]
    app.connect("include-read", _included)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", _described, priority=100)  # type: ignore[attr-defined]  # before napoleon
