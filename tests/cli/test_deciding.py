"""`match --interactive`: a person decides on a terminal what is not certain."""

import os
import pty
import re
import select
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.support.command import run
from tests.support.models import save

SECONDS = 120
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
ONE, ANOTHER = np.ones((4, 9)), np.ones((3, 3))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of which one pair is turned or not, and two may be each other's."""
    root = tmp_path_factory.mktemp("deciding")
    old = {"head": {"kernel": ANOTHER}, "left": ONE, "right": ONE}
    new = {"head": {"weight": ANOTHER}, "first": ONE, "second": ONE, "new": np.ones(2)}
    return save(root / "old", {"params": old}), save(root / "new", {"params": new})


class Terminal:
    """A command with a terminal of its own for its input and what it asks."""

    def __init__(self, *arguments: object) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "nnxconv", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=slave, stderr=slave, stdout=subprocess.PIPE, text=True
        )
        os.close(slave)

    def asked(self) -> str:
        """What is shown until an answer is wanted, or to the end."""
        shown = ""
        while not shown.endswith("> "):
            ready, _, _ = select.select([self.master], [], [], SECONDS)
            assert ready, shown
            try:
                shown += os.read(self.master, 65536).decode()
            except OSError:  # the other side is closed
                break
        return ANSI.sub("", shown).replace("\r\n", "\n")

    def answer(self, text: str) -> str:
        os.write(self.master, f"{text}\n".encode())
        return self.asked()

    def ended(self) -> tuple[int, str]:
        """The exit code, and what was printed as the answer."""
        out, _ = self.process.communicate(timeout=SECONDS)
        os.close(self.master)
        return self.process.returncode, out


def rules_in(path: Path) -> dict[str, object]:
    return tomllib.loads(path.read_text())["rules"]


def test_one_module_at_a_time_is_decided_and_the_rules_are_written(both, tmp_path) -> None:
    rules = tmp_path / "rules.toml"
    terminal = Terminal("match", *both, "--output", rules, "--interactive")
    first = terminal.asked()
    assert "1 of 3: head\n  kernel f64[3,3]\nthe counterpart is certain" in first
    assert re.search(r"^1 +head +weight f64\[3,3\] +same; .*the same name", first, re.M)
    second = terminal.answer("2")
    assert "2 of 3: left\n" in second
    third = terminal.answer("2")
    assert re.search(r"^2 +second +f64\[4,9\] +chosen for left", third, re.M)
    assert "2 has been chosen for left" in terminal.answer("2")
    assert "`9` is no answer here" in terminal.answer("9")
    assert "3 of 3 decided" in terminal.answer("1")
    assert re.search(r"^\*1 +first", terminal.answer("b"), re.M)
    assert "2 of 3 decided" in terminal.answer("s")
    terminal.answer("b")
    terminal.answer("1")
    terminal.answer("w")
    exit_code, told = terminal.ended()
    assert exit_code == 1, told  # `new` is only in the template
    assert rules_in(rules) == {
        "head.kernel": {"to": "head.weight", "transpose": [1, 0]},
        "left": "second",
        "right": "first",
    }
    assert f"rules written to {rules}" in told


@pytest.mark.full
@pytest.mark.parametrize("last", ["q", "\x04"], ids=["q", "end of input"])
def test_who_quits_keeps_what_was_chosen(both, tmp_path, last) -> None:
    rules = tmp_path / "rules.toml"
    terminal = Terminal("match", *both, "--output", rules, "--interactive")
    terminal.asked()
    terminal.answer("1")
    terminal.answer(last)
    exit_code, told = terminal.ended()
    assert exit_code == 1
    assert rules_in(rules) == {"head.kernel": "head.weight"}
    assert "# left could be one of 2:" in rules.read_text()
    assert "turned or not chosen by hand" in told


@pytest.mark.full
def test_an_interrupt_ends_with_nothing_written(both, tmp_path) -> None:
    rules = tmp_path / "rules.toml"
    terminal = Terminal("match", *both, "--output", rules, "--interactive")
    terminal.asked()
    terminal.answer("1")
    terminal.process.send_signal(2)
    assert terminal.ended()[0] == 130
    assert not rules.exists()


def test_without_a_terminal_there_is_one_clear_error(both, tmp_path) -> None:
    outcome = run("match", *both, "--interactive", "--output", tmp_path / "rules.toml")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "error: `--interactive` needs a terminal to ask on\n"
        "\n"
        "hint: without it, what is not certain stands in the rules as comments\n",
    )
    assert not (tmp_path / "rules.toml").exists()


@pytest.mark.full
def test_answers_need_a_file(both) -> None:
    terminal = Terminal("match", *both, "--interactive")
    shown = terminal.asked()
    assert "error: `--interactive` needs `--output RULES`, where the answers are kept" in shown
    assert terminal.ended() == (2, "")


@pytest.mark.full
def test_names_cannot_steer_the_terminal(tmp_path) -> None:
    name = "[bold red]x\x1b[2J"
    old = save(tmp_path / "old", {"params": {name: ONE, "other": ONE}})
    new = save(tmp_path / "new", {"params": {"first": ONE, "second": ONE}})
    terminal = Terminal("match", old, new, "--output", tmp_path / "r.toml", "--interactive")
    shown = terminal.asked()
    assert r"[bold red]x\x1b[2J" in shown
    terminal.answer("q")
    assert terminal.ended()[0] == 1
