"""gcsfs, set up once: which server is asked, with which limits.

Listings and small files go through etils over gcsfs, arrays through TensorStore's `gcs` driver.
`STORAGE_EMULATOR_HOST` alone switches both to an emulator.
"""

import logging
import os
from functools import cache
from typing import Any

from nnxconv.storage.gcs.retries import timeout_seconds

REQUESTS_AT_ONCE = 32


@cache
def prepare() -> None:
    """Settings that both libraries read when they are used for the first time.

    From then on fsspec gives everybody in this process our `Buckets` for gs:// paths.
    """
    import fsspec
    from fsspec.config import conf

    for name in ("gcsfs", "fsspec"):  # they print the traceback of every failed request
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # What TensorStore writes would not show in a listing that gcsfs remembers.
    options: dict[str, Any] = {"use_listings_cache": False}
    # Hierarchical buckets are looked for with a call that many accounts may not make.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for limit in ("CONNECT_TIMEOUT_SECONDS", "LOW_SPEED_TIME_SECONDS"):
        os.environ.setdefault(f"TENSORSTORE_CURL_{limit}", str(timeout_seconds()))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        url = emulator if "://" in emulator else f"http://{emulator}"
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", url)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
        os.environ.setdefault("NO_GCE_CHECK", "true")
        options["token"] = "anon"

    from nnxconv.storage.gcs.buckets import Buckets

    for protocol in ("gcs", "gs"):
        conf[protocol] = {**options, **conf.get(protocol, {})}
        fsspec.register_implementation(protocol, Buckets, clobber=True)


def filesystem() -> Any:
    """gcsfs, as etils uses it."""
    import fsspec

    prepare()
    return fsspec.filesystem("gcs", finalize_on_close=True)
