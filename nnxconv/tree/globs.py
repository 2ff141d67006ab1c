"""Which keys a glob fits."""

import re


def matches(name: str, glob: str) -> bool:
    """True when the glob fits the whole name; `*` and `?` stand for any characters.

    >>> matches("params.decoder.layers[3].mlp.wi.kernel", "*.layers[3].*")
    True
    """
    pattern = re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, name) is not None
