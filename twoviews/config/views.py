"""What the keys `views` and `view_sizes` say together."""

from collections.abc import Mapping
from typing import Any


def view_differences(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each view the keys in which it differs from the recipe's common values.

    Raises:
        ValueError: if `views` and `view_sizes` do not describe the same number of views.
    """
    given, sizes = cfg.get("views"), cfg["view_sizes"]  # runs of version 0.1.0 lack `views`
    if given is None:
        return [{} for _ in sizes or (0, 0)]
    found = [{key: value for key, value in view.items() if key != "count"} for view in given for _ in range(view.get("count", 1))]
    if sizes and len(sizes) != len(found):
        number = f"views describes {len(found)} views, view_sizes {len(sizes)}"
        raise ValueError(f"{number}: give both the same number, or view_sizes=null")
    return found
