"""The script in `examples/ci/` has the exit codes that CI needs, and the workflow calls it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import checkpoints
from tests.support.checkpoints import save_item

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
SCRIPT = EXAMPLES / "check_conversion.sh"


@pytest.fixture
def check(tmp_path):
    """Runs the script with this Python's nnxconv first on the path, in an empty directory."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, code in {
        "nnxconv": '-c "from nnxconv.cli import main; main()"',
        "python3": "",
    }.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {code} "$@"\n')
        (commands / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments, **environment):
        path = os.pathsep.join([str(commands), os.environ["PATH"]])
        python_path = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [str(SCRIPT), *map(str, arguments)],
            cwd=work,
            env={**os.environ, "PATH": path, "PYTHONPATH": python_path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_conversion_matches_and_ends_in_exit_code_0(check, tmp_path):
    a = save_item(tmp_path / "a", checkpoints.linen())
    b = save_item(tmp_path / "b", checkpoints.nnx_pure(axis=1))
    done = check(a, b)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "match: 36 arrays, linen and nnx-pure\n"
    report = json.loads((tmp_path / "work" / "comparison.json").read_text())
    assert report["match"] is True


def test_a_difference_is_listed_and_ends_in_exit_code_1(check, tmp_path):
    tree = checkpoints.linen(step=8)
    del tree["params"]["params"]["decoder"]["norm"]
    a = save_item(
        tmp_path / "a", {k: v for k, v in checkpoints.linen().items() if k != "opt_state"}
    )
    b = save_item(tmp_path / "b", {k: v for k, v in tree.items() if k != "opt_state"})
    summary = tmp_path / "summary.md"
    done = check(a, b, REPORT="found.json", GITHUB_STEP_SUMMARY=str(summary))
    assert (done.returncode, done.stderr) == (1, "")
    assert (
        done.stdout
        == summary.read_text()
        == (
            "2 of 12 arrays differ: 1 missing, 1 value\n"
            "- missing: params.decoder.norm.scale\n"
            "- value: step\n"
        )
    )
    assert json.loads((tmp_path / "work" / "found.json").read_text())["exit_code"] == 1


def test_further_options_reach_compare(check, tmp_path):
    a = save_item(tmp_path / "a", checkpoints.linen())
    b = save_item(tmp_path / "b", checkpoints.linen(step=8))
    done = check(a, b, "--exclude", "step", "--exclude", "opt_state*")
    assert (done.returncode, done.stdout) == (0, "match: 11 arrays, linen and linen\n")


def test_what_cannot_be_compared_ends_in_exit_code_2_without_a_report(check, tmp_path):
    a = save_item(tmp_path / "a", checkpoints.linen(1))
    done = check(a, tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: `{tmp_path / 'nothing'}` does not exist\n"
        f"could not compare {a} with {tmp_path / 'nothing'}\n"
    )
    assert list((tmp_path / "work").iterdir()) == []


def test_the_usage_is_told_with_exit_code_2(check):
    done = check("one")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"usage: {SCRIPT} BEFORE AFTER [options of nnxconv compare]\n"


def test_the_script_can_be_run_and_stops_at_errors():
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
    assert "\nset -euo pipefail\n" in SCRIPT.read_text()


def test_the_workflow_converts_with_a_proof_and_calls_the_script():
    workflow = yaml.safe_load((EXAMPLES / "compare.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["compare"]["steps"]]
    assert 'nnxconv convert "$CHECKPOINT" converted --verify' in commands
    assert 'examples/ci/check_conversion.sh "$CHECKPOINT" converted' in commands
    assert workflow["permissions"] == {"contents": "read"}
