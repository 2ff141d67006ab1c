"""The command says what the function says: one error, exit code 2, and no traceback."""

import os
import subprocess
import sys

from tests.support.safety import CANNOT, KERNEL, delete_keys, snapshot


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from nnxconv.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )


def test_the_command_says_the_same_and_exits_with_2(source, old, tmp_path):
    before = snapshot(tmp_path)
    run = command("convert", source, old)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.replace(str(tmp_path), "$") == (
        "error: `$/out/nnx` exists\n\nhint: add `--overwrite` to replace it\n"
    )
    assert snapshot(tmp_path) == before


def test_the_command_prints_no_traceback_for_a_damaged_source(source, tmp_path):
    delete_keys(source, f"{KERNEL}/0.0")
    before = snapshot(tmp_path)
    run = command("convert", source, tmp_path / "nnx")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(CANNOT.format(KERNEL))
    assert "Traceback" not in run.stderr
    assert "WARNING" not in run.stderr
    assert snapshot(tmp_path) == before


def test_the_command_prints_nothing_but_the_error_where_it_may_not_write(source, tmp_path):
    (tmp_path / "notes").write_text("mine")
    run = command("convert", source, tmp_path / "notes" / "nnx")
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr
