"""How long a server is asked again: a number of tries, with growing pauses between them.

`NNXCONV_GCS_RETRIES` says how often a request is repeated: 8 times by default, which takes 40
seconds. `NNXCONV_GCS_TIMEOUT` says after how many seconds without a byte one is lost: 60.
`NNXCONV_GCS_LEASE` says for how many seconds a run that writes may be silent: 60.
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

TIMEOUT = "NNXCONV_GCS_TIMEOUT"
_DEFAULT_TIMEOUT_SECONDS = 60

LEASE = "NNXCONV_GCS_LEASE"
_DEFAULT_LEASE_SECONDS = 60


def retries() -> int:
    """How often a request is repeated.

    Raises:
      BadInput: the variable of the environment is no whole number.
    """
    return _whole_number(RETRIES, _DEFAULT_RETRIES)


def timeout_seconds() -> int:
    """After how long without a byte a request is lost.

    Raises:
      BadInput: the variable of the environment is no whole number.
    """
    return _whole_number(TIMEOUT, _DEFAULT_TIMEOUT_SECONDS)


def lease_seconds() -> int:
    """After how long without a word a run that writes to a bucket is taken for dead.

    Raises:
      BadInput: the variable of the environment is no whole number.
    """
    return max(1, _whole_number(LEASE, _DEFAULT_LEASE_SECONDS))


def _whole_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not (text.isascii() and text.isdecimal()):
        raise BadInput(f"`{variable}` is `{text}`, which is no whole number")
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
