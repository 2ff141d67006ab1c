"""Which paths are in a bucket."""

SCHEME = "gs://"


def is_remote(path: object) -> bool:
    """True for a path in a bucket."""
    return str(path).startswith(SCHEME)
