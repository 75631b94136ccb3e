"""`twoviews methods`: the methods, their papers, and the recipes of each."""

import inspect
import re
import sys

from twoviews.config import Config
from twoviews.config.files import recipes_of
from twoviews.methods import METHODS

PAPER = re.compile(r"\A(?P<name>[^(.]+) \((?P<authors>[^,]+? \d{4}).*?(?P<address>https://[^\s),]+)", re.S)  # of a file's first lines


def run(cfg: Config) -> int:
    """Print a method per paragraph: its key, its paper and its recipes."""
    for key, method in METHODS.items():
        about = inspect.getdoc(sys.modules[method.__module__]) or ""
        paper = PAPER.match(about)
        title = f"{paper['name']}, {paper['authors']}, {paper['address']}" if paper else about.splitlines()[0]
        print(f"{key:14}{title}{', uses labels' if method.uses_labels else ''}")
        print(f"{'':14}recipe={', '.join(recipes_of(key))}")
    return 0
