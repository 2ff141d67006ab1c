"""How long a server is asked again: a number of tries, with growing pauses between them.

`NNXCONV_GCS_RETRIES` says how often a request is repeated; 8 by default, which is 40 seconds.
"""

import os
import sys
from collections import Counter
from typing import Any

from nnxconv.errors import BadInput

RETRIES = "NNXCONV_GCS_RETRIES"
_DEFAULT_RETRIES = 8
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 16.0

CONNECT_SECONDS = 30
SILENCE_SECONDS = 60
"""After so long without a byte, a request counts as lost."""


def retries() -> int:
    """How often a request is repeated.

    Raises:
      BadInput: the variable of the environment is no number.
    """
    text = os.environ.get(RETRIES, str(_DEFAULT_RETRIES))
    if not text.isdecimal():
        raise BadInput(f"`{RETRIES}` is `{text}`, not a number of repetitions")
    return int(text)


def pauses() -> list[float]:
    """Seconds before each repetition."""
    return [min(FIRST_PAUSE_SECONDS * 2**n, LONGEST_PAUSE_SECONDS) for n in range(retries())]


def for_tensorstore() -> dict[str, Any]:
    """The same, as TensorStore's `gcs_request_retries`."""
    return {
        "max_retries": retries(),
        "initial_delay": f"{FIRST_PAUSE_SECONDS}s",
        "max_delay": f"{LONGEST_PAUSE_SECONDS}s",
    }


_repeated: Counter[str] = Counter()


def count_repetition() -> None:
    """Counts a request that gcsfs repeats."""
    _repeated["gcsfs"] += 1


def repeated_requests() -> int:
    """How many requests this process has had to repeat, by whichever library."""
    tensorstore = sys.modules.get("tensorstore")
    if tensorstore is None:
        return _repeated["gcsfs"]
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/gcs/retries")
    by_tensorstore = sum(value["value"] for metric in metrics for value in metric["values"])
    return _repeated["gcsfs"] + by_tensorstore
