"""What processes tell each other, here as threads over one store in memory."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nnxconv.comparing.difference import Difference
from nnxconv.errors import BadInput, NnxconvError, TeamError
from nnxconv.running.cluster import member as crews
from nnxconv.running.cluster.failure import Failure, failure_of, lost
from nnxconv.running.cluster.member import Member
from nnxconv.running.events import Event, ignore
from nnxconv.storage.interrupts import Terminated


class Memory:
    """A store in memory, with which a process may lose contact."""

    def __init__(self):
        self._values = {}
        self._changed = threading.Condition()

    def put(self, key, value):
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def put_first(self, key, value):
        with self._changed:
            self._values.setdefault(key, value)

    def get(self, key):
        return self._values.get(key)

    def wait(self, key, seconds):
        with self._changed:
            self._changed.wait_for(lambda: key in self._values, seconds)
        return self._values.get(key)

    def below(self, prefix):
        found = dict(self._values)
        return {k.rpartition("/")[2]: v for k, v in found.items() if k.startswith(prefix + "/")}


@pytest.fixture
def member(monkeypatch):
    """Makes so many members, in one store, who are quick to lose patience."""
    monkeypatch.setattr(crews, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(crews, "POLL_SECONDS", 0.02)
    made = []

    def make(count):
        store = Memory()
        made.extend(Member(number, count, store) for number in range(count))
        return made

    yield make
    for one in reversed(made):
        one.leave()


def by_all(members, work):
    """What each member's work gives, or the error that it ends with."""

    def tried(member):
        try:
            return work(member)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(tried, members))


def test_everybody_hears_what_everybody_says_in_order(member):
    members = member(3)
    for what in ("first", "second"):
        said = by_all(members, lambda one, what=what: one.gather(what, [what, one.number]))
        assert said == [[[what, 0], [what, 1], [what, 2]]] * 3


def test_nobody_goes_on_before_the_last_one_has_come(member):
    members = member(2)
    arrived = []

    def work(one):
        time.sleep(0.2 * one.number)
        arrived.append(one.number)
        one.gather("here")
        return len(arrived)

    assert by_all(members, work) == [2, 2]


def test_what_is_said_is_made_into_one_value_by_the_first(member):
    members = member(3)
    assert by_all(members, lambda one: one.combine("sum", one.number, sum)) == [3, 3, 3]


def test_the_first_one_says_what_it_has_to_say_without_waiting(member):
    first, second = member(2)
    assert first.ask_first("a") == "a"
    assert second.ask_first() == "a"


def test_nobody_is_given_up_once_the_first_one_needs_nobody(member, monkeypatch):
    monkeypatch.setattr(crews, "LOST_SECONDS", 0.1)
    members = member(3)
    by_all(members, lambda one: one.gather("here"))
    time.sleep(0.1)
    members[0].settle()
    members[2]._is_over.set()  # as if it were killed
    time.sleep(0.4)
    assert by_all(members[:2], lambda one: one.ask_first("committed")) == ["committed"] * 2


def test_the_watcher_of_the_first_is_told_how_far_all_are(member):
    members = member(2)
    events = []

    def work(one):
        watch = one.watching(events.append if one.number == 0 else ignore)
        watch(Event(one.number, 2, 10 * one.number, 20))
        one.gather("done")

    by_all(members, work)
    assert events[-1] == Event(1, 4, 10, 40)


def test_what_fails_first_fails_all(member):
    members = member(3)
    broken = BadInput("`a` is broken", where="a", details=("b",), hint="mend it")

    def work(one):
        if one.number == 1:
            one.fail(broken)
            one.leave()
            raise one.first_failure(broken)
        one.gather("never")

    first, second, third = by_all(members, work)
    assert second is broken
    assert [type(error) for error in (first, third)] == [TeamError, TeamError]
    message = "error: `a` is broken\n  at a\n  b\n  in process 1\n\nhint: mend it"
    assert [error.render() for error in (first, third)] == [message, message]


def test_who_fails_later_fails_of_what_the_first_one_said(member):
    first, second = member(2)
    second.fail(BadInput("one"))
    second.leave()
    other = BadInput("another")
    first.fail(other)
    assert str(first.first_failure(other)) == "one\n  in process 1"
    same = BadInput("one")
    assert first.first_failure(same) is same


def test_who_tells_nothing_any_more_is_lost(member, monkeypatch):
    monkeypatch.setattr(crews, "LOST_SECONDS", 0.3)
    members = member(3)
    by_all(members, lambda one: one.gather("here"))
    time.sleep(0.1)
    silent = members[2]
    silent._is_over.set()  # as if it were killed
    found = by_all(members[:2], lambda one: one.gather("never"))
    assert [error.render() for error in found] == [lost(2).as_error().render()] * 2
    assert members[0].silent() == {2}


def test_the_first_process_waits_until_the_others_have_stopped(member):
    first, second = member(2)
    left = []

    def leave():
        time.sleep(0.3)
        left.append(True)
        second.leave()

    thread = threading.Thread(target=leave)
    thread.start()
    first.fail(BadInput("over"))
    assert left == [True]
    thread.join()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadInput("no", where="a"), Failure(1, 2, "no", "a")),
        (Terminated(), Failure(1, 143, "terminated")),
        (KeyboardInterrupt(), Failure(1, 130, "interrupted")),
        (PermissionError(13, "Permission denied", "a"), Failure(1, 2, "Permission denied", "a")),
        (KeyError("x"), Failure(1, 70, "a defect of nnxconv: KeyError: 'x'")),
    ],
)
def test_every_error_is_told_with_its_exit_code(error, told):
    assert failure_of(error, 1) == told
    assert Failure.from_json(told.to_json()) == told
    raised = told.error()
    match raised:
        case NnxconvError():
            assert raised.exit_code == told.exit_code
        case _:
            assert type(raised) is type(error)


def test_statistics_are_told_without_loss():
    found = Difference(3, 2, 1, float("inf"), 0.1 + 0.2, 1e-300, (4, 5), 1)
    found.histogram.update({-3: 2, 0: 1})
    assert Difference.from_json(found.to_json()) == found
    assert Difference.from_json(Difference().to_json()) == Difference()
