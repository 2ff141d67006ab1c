"""Run the `nnxconv` command within the test's process, and hold its output against a golden file.

A golden file is one terminal session: the command, what it printed (lines on stderr start with
`2> `), and its exit code. `NNXCONV_WRITE_GOLDEN=1 python -m pytest tests/comparing/test_compare.py`
writes the files anew; the tests that wrote one are then reported as skipped, never as passed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nnxconv.cli.app import nnxconv
from nnxconv.errors import NnxconvError, with_notes

GOLDEN = Path(__file__).parents[1] / "golden"
WRITE_GOLDEN = "NNXCONV_WRITE_GOLDEN"


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    arguments: tuple[str, ...]
    stdout: str
    stderr: str
    exit_code: int


def run(*arguments: object) -> Outcome:
    """Runs the command; deliberate errors become text and exit code as in `cli.app.run`.

    Any other exception is a defect, and is raised.
    """
    words = tuple(map(str, arguments))
    result = CliRunner().invoke(nnxconv, words, standalone_mode=False)
    match result.exception:
        case None:
            return Outcome(words, result.stdout, result.stderr, result.return_value or 0)
        case NnxconvError() as error:
            stderr = result.stderr + with_notes(error.render(), error) + "\n"
            return Outcome(words, result.stdout, stderr, error.exit_code)
        case click.ClickException() as error:
            stderr = result.stderr + f"Error: {error.format_message()}\n"
            return Outcome(words, result.stdout, stderr, error.exit_code)
        case error:
            raise error


def session(outcome: Outcome, names: Mapping[str, object]) -> str:
    """The command and its output as on a terminal, with placeholders in place of paths."""
    text = " ".join(["$ nnxconv", *outcome.arguments]) + "\n" + outcome.stdout
    text += "".join(f"2> {line}".rstrip() + "\n" for line in outcome.stderr.splitlines())
    text += f"[exit code {outcome.exit_code}]\n"
    for name, path in sorted(names.items(), key=lambda pair: -len(str(pair[1]))):
        text = text.replace(str(path), name)
    return text


def check_golden(file: str, text: str) -> None:
    """Fails unless the golden file holds exactly this text."""
    path = GOLDEN / file
    if os.environ.get(WRITE_GOLDEN) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        pytest.skip(f"wrote tests/golden/{file} ({WRITE_GOLDEN}=1)")
    assert text == path.read_text()
