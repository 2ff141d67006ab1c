"""Statistics of differences as JSON values."""

import math
from typing import Any

from nnxconv.comparing import Difference


def statistics_json(found: Difference) -> dict[str, Any]:
    """Statistics as JSON values; infinities are spelled as strings."""
    return {
        "count": found.count,
        "unequal": found.unequal,
        "beyond_tolerance": found.beyond,
        "max_abs": number(found.max_abs),
        "mean_abs": number(found.mean_abs),
        "max_rel": number(found.max_rel),
        "worst": None if found.worst is None else list(found.worst),
    }


def number(value: float) -> float | str:
    """A number that JSON can hold; `inf` and `nan` as text."""
    return value if math.isfinite(value) else str(value)
