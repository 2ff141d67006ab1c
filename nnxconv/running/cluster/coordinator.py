"""The coordinator of `jax.distributed`, and this process's place among its clients.

It is on a state of its own: JAX and Orbax themselves stay as they are where there is one process
alone, and no device is asked for. It stays until the process ends, for further work together.
"""

import atexit
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nnxconv.errors import BadInput, NnxconvError
from nnxconv.running.cluster.failure import lost
from nnxconv.running.cluster.store import ClientStore, ContactLost

JOIN_SECONDS = 300
"""How long processes wait for each other at the beginning: machines do not start at once."""

UNHEARD_SECONDS = 3600
"""When JAX itself would give a silent process up: long after `Member` has, and has told why."""

PATIENCE_SECONDS = 30.0
"""How long process 0 waits at the end, until the others have parted."""

_RECOVERABLE = "jax_enable_recoverability"
"""JAX's setting without which the coordinator would abort all processes where one is lost."""

LAST_SECONDS = 1.0
"""How long the coordinator stays after that: JAX aborts whoever is still in contact."""


@dataclass(frozen=True)
class Address:
    """How the processes find each other; None where the cluster tells.

    Attributes:
      coordinator: `host:port` on the machine of process 0.
      count: how many processes there are.
      number: of this one.
    """

    coordinator: str | None
    count: int | None
    number: int | None


@dataclass
class Service:
    """A process that has found all others.

    Attributes:
      number: of this process.
      count: how many there are.
      address: by which they have found each other.
      state: JAX's.
      runs: how often they have worked together.
      gone: processes that were lost.
    """

    number: int
    count: int
    address: Address
    state: Any
    runs: int = 0
    gone: set[int] = field(default_factory=set)

    def store(self, folder: str) -> ClientStore:
        """Texts of all processes in a folder of their own."""
        return ClientStore(self.state.client, f"nnxconv/{folder}")


_services: list[Service] = []


def service(address: Address) -> Service:
    """The service that this process has joined, or now joins.

    Raises:
      BadInput: the processes do not find each other; or this one belongs to others already, or
        to a program that has its own.
    """
    if not _services:
        _services.append(_joined(address))
        atexit.register(part)
    [found] = _services
    if found.address != address:
        raise BadInput(
            f"this process is number {found.number} of {found.count} already",
            hint="give the same address, number of processes and process in every call",
        )
    return found


def part() -> None:
    """Leaves the others for good; process 0, which keeps the coordinator, is the last to go."""
    for found in list(_services):
        say_goodbye(found)
        found.state.shutdown()
    _services.clear()


def say_goodbye(found: Service) -> None:
    """Tells that this process ends; process 0 waits for the others: its end would abort them."""
    store = found.store("parted")
    with suppress(ContactLost):
        if found.number:
            store.put(str(found.number), True)
        else:
            _await(store, set(range(1, found.count)) - found.gone)


def _await(store: ClientStore, others: set[int]) -> None:
    """Waits until others have parted."""
    until = time.monotonic() + PATIENCE_SECONDS
    for other in others:
        while not store.wait(str(other), 0.25) and time.monotonic() < until:
            pass
    time.sleep(LAST_SECONDS)


def _joined(address: Address) -> Service:
    import jax
    from jax._src import distributed

    if distributed.is_initialized():
        raise BadInput(
            "this program has called `jax.distributed.initialize` itself",
            hint="share the work in processes of its own: `nnxconv ... --distributed`",
        )
    if address.number == 0 and address.coordinator is not None:
        _refuse_taken_port(address.coordinator)
    state = distributed.State()
    state.initialize_preemption_sync_manager = lambda: None  # it would take SIGTERM
    given = (address.coordinator, address.count, address.number)
    before = getattr(jax.config, _RECOVERABLE)
    jax.config.update(_RECOVERABLE, True)
    try:
        state.initialize(
            *given,
            cluster_detection_method=None if None in given else "deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=UNHEARD_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise _not_found(error, address) from error
    finally:
        jax.config.update(_RECOVERABLE, before)
    return Service(state.process_id, state.num_processes, address, state)


def _refuse_taken_port(coordinator: str) -> None:
    """Refuses a port that somebody else has: JAX would crash.

    Raises:
      BadInput: it is taken.
    """
    port = int(coordinator.rpartition(":")[2])
    has_both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=has_both).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise BadInput(
            f"process 0 cannot have the port {port} of `{coordinator}`: {reason}",
            hint="give all processes an address with a port that is free",
        ) from error


def _not_found(error: Exception, address: Address) -> BadInput:
    """Why the processes do not find each other."""
    told = {
        "`--coordinator_address`": address.coordinator,
        "`--num_processes`": address.count,
        "`--process_id`": address.number,
    }
    missing = [name for name, value in told.items() if value is None]
    reason = str(error).splitlines()[0]
    if missing:
        return BadInput(
            f"JAX detects no cluster that tells {', '.join(missing)}",
            details=[reason] if isinstance(error, RuntimeError) else [],
            hint="give all three, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and"
            " JAX_PROCESS_ID",
        )
    return BadInput(
        f"process {address.number} of {address.count} cannot join the others at"
        f" `{address.coordinator}`",
        details=[reason],
        hint="give all processes the one address of process 0",
    )


def why_aborted() -> NnxconvError:
    """Why JAX aborts a process, as it does where the coordinator does not answer any more."""
    if _services:
        return lost(0).as_error()
    return BadInput(
        f"the processes did not find each other within {JOIN_SECONDS} seconds",
        hint="start all of them, each with its own number, and with an address of process 0 that"
        " all can reach",
    )
