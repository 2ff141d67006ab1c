"""The progress bar, drawn with rich."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from nnxconv.running import Event, Watcher
from nnxconv.storage.gcs import repeated_requests


class RepetitionsColumn(ProgressColumn):
    """How many requests a server has made this command repeat; nothing while there are none."""

    def __init__(self) -> None:
        super().__init__()
        self._before = repeated_requests()

    def render(self, task: Task) -> Text:
        """Looks again each time the bar is drawn, also while every request waits."""
        count = repeated_requests() - self._before
        return Text(f"{count:,} requests tried again" if count else "", style="yellow")


@contextmanager
def drawn() -> Iterator[Watcher]:
    """A watcher that draws on stderr how much is done, how fast, and the time left."""
    columns = (
        TextColumn("{task.fields[arrays]} arrays"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        RepetitionsColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None, arrays="0")

    def watch(event: Event) -> None:
        bar.start()  # with the first event: of several processes, one alone has any
        arrays = f"{event.arrays:,}/{event.total_arrays:,}"
        bar.update(task, completed=event.done_bytes, total=event.total_bytes, arrays=arrays)

    try:
        yield watch
    finally:
        bar.stop()
