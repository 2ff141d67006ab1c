"""A progress bar on stderr, where stderr is a terminal; nothing is loaded for it elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nnxconv.running import Watcher, ignore


@contextmanager
def progress() -> Iterator[Watcher]:
    """A watcher that shows how far the work is, to somebody who looks on."""
    if not sys.stderr.isatty():
        yield ignore
        return
    from nnxconv.cli.progress_bar import drawn

    with drawn() as watch:
        yield watch
