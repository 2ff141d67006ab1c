"""Work on one thing together: what fails in one process fails in all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from nnxconv.errors import BadInput, TeamError
from nnxconv.running.cluster.coordinator import Address, Service, say_goodbye, service
from nnxconv.running.cluster.member import Member
from nnxconv.running.cluster.team import SINGLE_PROCESS, Team
from nnxconv.storage import interrupt, last_resort
from nnxconv.storage.gcs import told_plainly


@contextmanager
def joined(
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> Iterator[Team]:
    """The team of processes that this one belongs to; itself alone where not `distributed`.

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
        yield SINGLE_PROCESS
        return
    found = service(_address(coordinator_address, num_processes, process_id))
    found.runs += 1
    member = Member(found.number, found.count, found.store(str(found.runs)))
    try:
        with last_resort(lambda: _end(member, found)):
            member.gather("here")
            with told_plainly():
                yield member
    except BaseException as error:
        member.fail(error)
        first = member.first_failure(error)
        if first is error or isinstance(error, TeamError):
            raise
        raise first from error
    finally:
        member.leave()
        found.gone |= member.silent()


def _end(member: Member, found: Service) -> None:
    """Tells the others of the signal that ends this process, before it does."""
    member.fail(interrupt())
    found.gone |= member.silent()
    say_goodbye(found)


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


def _address(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Address:
    """What is given, or what the environment has instead.

    Raises:
      BadInput: the address or a number is none, or the process is not one of them.
    """
    address = Address(
        coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS") or None,
        _number(num_processes, "JAX_NUM_PROCESSES"),
        _number(process_id, "JAX_PROCESS_ID"),
    )
    count, number = address.count, address.number
    host, _, port = (address.coordinator or "localhost:0").rpartition(":")
    if not host or not port.isdecimal():
        raise BadInput(f"the coordinator's address is `{address.coordinator}`, not HOST:PORT")
    if count is not None and count < 1:
        raise BadInput(f"{count} is not a number of processes")
    if count is not None and number is not None and not 0 <= number < count:
        raise BadInput(f"there is no process {number} of {count}: they are counted from 0")
    return address


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise BadInput(f"{variable} is `{text}`, which is no number")
    return int(text)
