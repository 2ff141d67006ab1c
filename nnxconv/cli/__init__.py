"""The `nnxconv` command. Parses, calls the library, renders."""

import signal


def main() -> None:
    """Runs the command; from its first moment on, signals end it with one line."""
    answered = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, answered)  # until somebody is there to answer them
    from nnxconv.storage import answer_signals

    answer_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, answered)
    from nnxconv.cli.app import run

    run()
