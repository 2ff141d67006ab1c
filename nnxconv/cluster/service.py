"""The coordinator of `jax.distributed`, and this process's place among its clients.

It is on a state of its own: JAX and Orbax themselves stay as they are where there is one process
alone, and no device is asked for. It stays until the process ends, for further work together.
"""

import atexit
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nnxconv.cluster.store import ClientStore, ContactLost
from nnxconv.errors import BadInput

JOIN_SECONDS = 300
"""How long processes wait for each other at the beginning: machines do not start at once."""

UNHEARD_SECONDS = 3600
"""When JAX itself would give a silent process up: long after the crew has, and has told why."""

PATIENCE_SECONDS = 30.0
"""How long process 0 waits at the end, until the others have parted."""

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
    """A process that has found all others."""

    number: int
    count: int
    address: Address
    state: Any
    runs: int = 0

    def store(self, folder: str) -> ClientStore:
        """Texts of all processes in a folder of their own."""
        return ClientStore(self.state.client, f"nnxconv/{folder}")


_services: list[Service] = []


def service(address: Address) -> Service:
    """The service that this process has joined, or now joins.

    Raises:
      BadInput: the processes do not find each other; or this one belongs to others already.
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
    while _services:
        found = _services.pop()
        store = found.store("parted")
        with suppress(ContactLost):
            if found.number:
                store.put(str(found.number), True)
            else:
                _await_others(store, found.count)
        found.state.shutdown()


def _await_others(store: ClientStore, count: int) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    for other in range(1, count):
        while not store.wait(str(other), 0.25) and time.monotonic() < until:
            pass
    time.sleep(LAST_SECONDS)


def _joined(address: Address) -> Service:
    import jax
    from jax._src import distributed

    state = distributed.State()
    given = (address.coordinator, address.count, address.number)
    # JAX ends all processes where one fails, unless that may recover; and would take SIGTERM.
    settings = {"jax_enable_recoverability": True, "jax_enable_preemption_service": False}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        state.initialize(
            *given,
            cluster_detection_method=None if None in given else "deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=UNHEARD_SECONDS,
            shutdown_timeout_seconds=10,
        )
    except (ValueError, RuntimeError) as error:
        raise _not_found(error, address) from error
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    return Service(state.process_id, state.num_processes, address, state)


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
        f"process {address.number} of {address.count} did not find the others at"
        f" `{address.coordinator}`",
        details=[reason],
        hint=f"start all of them within {JOIN_SECONDS} seconds, each with its own number, and with"
        " the address of process 0",
    )
