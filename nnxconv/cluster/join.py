"""Make the processes of a run find each other, by `jax.distributed`, and part again.

The coordinator and its clients are JAX's, on a state of their own: in each process JAX and Orbax
themselves stay as they are where there is one process alone, and no device is asked for.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnxconv.cluster.crew import Crew
from nnxconv.cluster.store import ClientStore
from nnxconv.errors import BadInput, TeamError
from nnxconv.storage.server_errors import told_plainly
from nnxconv.team import ALONE, Team

JOIN_SECONDS = 300
"""How long processes wait for each other at the beginning: machines do not start at once."""

UNHEARD_SECONDS = 600
"""When JAX itself would give a silent process up: after the crew has, and has told why."""

_HINT = (
    "give `--coordinator_address HOST:PORT`, `--num_processes` and `--process_id`, or set"
    " JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
)
_runs = itertools.count()


@contextmanager
def joined(
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> Iterator[Team]:
    """The team of processes that this one belongs to; itself alone where not `distributed`.

    When the work within fails in one process, it fails in all of them, of the same.

    Args:
      distributed: there are others.
      coordinator_address: `host:port` of process 0, for the coordinator that runs there.
      num_processes: how many there are.
      process_id: of this one, counted from 0. What is None is taken from the environment
        variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from the
        cluster, where JAX detects one.

    Raises:
      BadInput: the processes cannot find each other.
      TeamError: another process has failed, or is lost.
    """
    if not distributed:
        _refuse_addresses(coordinator_address, num_processes, process_id)
        yield ALONE
        return
    state = _connected(
        coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        _number(num_processes, "JAX_NUM_PROCESSES"),
        _number(process_id, "JAX_PROCESS_ID"),
    )
    store = ClientStore(state.client, f"nnxconv/{next(_runs)}")
    crew = Crew(state.process_id, state.num_processes, store)
    try:
        with told_plainly():
            yield crew
    except BaseException as error:
        crew.fail(error)
        first = crew.first_failure()
        if first is None or isinstance(error, TeamError):
            raise
        raise first from error
    finally:
        crew.leave()
        state.shutdown()


def _refuse_addresses(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    for name, value in given.items():
        if value is not None:
            raise BadInput(
                f"`--{name}` is given, but not `--distributed`",
                hint="add `--distributed`, on every process",
            )


def _number(given: int | None, variable: str) -> int | None:
    """A number as it is given, or as the environment has it."""
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise BadInput(f"{variable} is `{text}`, which is no number")
    return int(text)


def _connected(address: str | None, count: int | None, number: int | None) -> Any:
    """JAX's state of a process that has found all others.

    Raises:
      BadInput: it cannot.
    """
    import jax
    from jax._src import distributed

    if count is not None and count < 1:
        raise BadInput(f"`--num_processes {count}` is no number of processes")
    if count is not None and number is not None and not 0 <= number < count:
        raise BadInput(
            f"`--process_id` is {number}, but there are {count} processes, counted from 0"
        )
    state = distributed.State()
    given = (address, count, number)
    # JAX ends a process where another one fails, unless that may recover; and takes SIGTERM.
    settings = {"jax_enable_recoverability": True, "jax_enable_preemption_service": False}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        state.initialize(
            *given,
            cluster_detection_method="deactivate" if None not in given else None,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=UNHEARD_SECONDS,
            shutdown_timeout_seconds=10,
        )
    except (ValueError, RuntimeError) as error:
        raise _apart(error, address, count, number) from error
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    return state


def _apart(
    error: Exception, address: str | None, count: int | None, number: int | None
) -> BadInput:
    """Why the processes do not find each other."""
    names = {"the coordinator's address": address, "their number": count, "this one's": number}
    missing = [name for name, value in names.items() if value is None]
    if not missing:
        reason = str(error).splitlines()[0]
        return BadInput(
            f"process {number} of {count} did not find the others at `{address}`",
            details=[reason],
            hint="start all of them within five minutes, with one address that all can reach",
        )
    return BadInput(
        f"the processes cannot find each other: JAX detects no cluster, and {missing[0]} is not"
        " given",
        details=[str(error).splitlines()[0]],
        hint=_HINT,
    )
