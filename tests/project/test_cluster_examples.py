"""What lies in `examples/cluster/` starts processes that find each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nnxconv
from nnxconv.cli.app import nnxconv as command
from tests.support import processes

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "examples" / "cluster"
SOURCE = REPOSITORY / "examples" / "linen_checkpoint"

SRUN = """#!/usr/bin/env bash
# what srun does for two machines, both of them this one
[[ "$1" == --kill-on-bad-exit=0 ]] && shift
export SLURM_STEP_NODELIST="localhost" SLURM_NTASKS=2 SLURM_LOCALID=0
SLURM_PROCID=1 "$@" &
SLURM_PROCID=0 "$@" && wait "$!"
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def run(script: str, target: Path, *options: str, **env: str) -> subprocess.CompletedProcess:
    """A script, with an `nnxconv` that is the one under test."""
    programs = target.parent / "bin"
    program(
        programs, "nnxconv", f'#!/bin/sh\nexec {sys.executable} -c "{processes.COMMAND}" "$@"\n'
    )
    program(programs, "srun", SRUN)
    known = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        ["bash", str(CLUSTER / script), str(SOURCE), str(target), *options],
        env={**known, **path, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def holds_the_same(target: Path) -> bool:
    report = nnxconv.compare(str(SOURCE), str(target), compare_values=True, compare_only="all")
    return report.is_match


@pytest.mark.full
def test_two_processes_on_loopback_share_a_conversion(tmp_path):
    port = str(processes.free_port())
    done = run("loopback.sh", tmp_path / "out", "--to", "nnx", PORT=port)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("converted linen to nnx\n")
    assert " by 2 processes; " in done.stdout
    assert holds_the_same(tmp_path / "out")


@pytest.mark.full
def test_slurm_tells_processes_who_they_are(tmp_path):
    done = run("convert.slurm", tmp_path / "out", "--to", "nnx", SLURM_JOB_ID=str(os.getpid()))
    assert (done.returncode, done.stderr) == (0, "")
    assert " by 2 processes; " in done.stdout
    assert holds_the_same(tmp_path / "out")


def test_the_pods_of_the_jobset_get_a_command_and_every_variable():
    jobset = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())
    name = jobset["metadata"]["name"]
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert container["command"] == ["nnxconv"]
    function, *arguments = container["args"]
    options = command.commands[function].make_context(function, list(arguments)).params
    assert options["distributed"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    host = f"{name}-{replicated['name']}-0-0.{name}"
    assert environment == {
        "JAX_COORDINATOR_ADDRESS": f"{host}:1234",
        "JAX_NUM_PROCESSES": str(job["completions"]),
        "JAX_PROCESS_ID": None,  # of the pod
    }
    assert (job["completions"], job["completionMode"]) == (job["parallelism"], "Indexed")
