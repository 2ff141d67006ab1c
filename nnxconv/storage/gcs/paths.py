"""Which paths are in a bucket, and where in it."""

from etils import epath

SCHEME = "gs://"


def is_remote(path: object) -> bool:
    """True for a path in a bucket."""
    return str(path).startswith(SCHEME)


def bucket_and_name(path: epath.Path) -> tuple[str, str]:
    """The bucket of a path, and the name of an object in it."""
    bucket, _, name = path.as_posix().removeprefix(SCHEME).partition("/")
    return bucket, name
