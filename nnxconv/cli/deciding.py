"""What is not certain, asked on the terminal: one module at a time, by keyboard alone."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnxconv.cli.output import printable
from nnxconv.errors import BadInput
from nnxconv.matching import Choice, Question, claimed, named, rules_of, slots_told
from nnxconv.renaming import rule_line

_KINDS = {
    "turned": "the counterpart is certain, but not whether arrays are turned",
    "proposed": "names are alike",
    "open": "it could be",
}
_HELP = "number: choose, s: skip, b: back, q: quit and keep what is chosen"
_LAST_HELP = "w: write the rules, b: back"


def check_terminal(output: str | None) -> None:
    """Makes sure that somebody can be asked, and that the answers are kept.

    Raises:
      BadInput: stdin or stderr is no terminal, or no file of rules is named.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadInput(
            "`--interactive` needs a terminal to ask on",
            hint="without it, what is not certain stands in the rules as comments",
        )
    if output is None:
        raise BadInput("`--interactive` needs `--output RULES`, where the answers are kept")


def decide(questions: Sequence[Question]) -> list[Choice | None]:
    """Asks on stderr; the answers are choices, or None for what was skipped."""
    return _Dialogue(questions).run() if questions else []


class _Dialogue:
    """Questions with the answers so far, and the one that is asked."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.answers: list[Choice | None] = [None] * len(questions)
        self.at = 0
        self.console = Console(stderr=True, highlight=False)

    def run(self) -> list[Choice | None]:
        """Asks until all is answered or skipped, or somebody quits."""
        while True:
            is_last = self.at == len(self.questions)
            self._say(self._summary()) if is_last else self._show()
            match self._key():
                case "q":
                    return self.answers
                case "w" if is_last:
                    return self.answers
                case "b" if self.at:
                    self.at -= 1
                case "s" if not is_last:
                    self._answer(None)
                case key if not is_last and (choice := self._choice(key)):
                    self._answer(choice)
                case key:
                    self._refuse(key)

    def _key(self) -> str:
        """One answer; the end of the input is the end of the questions."""
        is_last = self.at == len(self.questions)
        self._say(_LAST_HELP if is_last else _HELP, style="dim")
        try:
            return self.console.input("> ").strip().lower()
        except EOFError:
            return "q"

    def _answer(self, choice: Choice | None) -> None:
        self.answers[self.at] = choice
        self.at += 1

    def _choice(self, key: str) -> Choice | None:
        """The choice of this number, where nothing else has got its leaves."""
        choices = self.questions[self.at].choices
        if not (key.isascii() and key.isdigit() and 1 <= int(key) <= len(choices)):
            return None
        choice = choices[int(key) - 1]
        return None if self._rival(choice) else choice

    def _rival(self, choice: Choice) -> str:
        """The module that has been given leaves of a choice; empty when there is none."""
        for at, (question, given) in enumerate(zip(self.questions, self.answers, strict=True)):
            if at != self.at and given and claimed(given.pair) & claimed(choice.pair):
                return named(question.sources)
        return ""

    def _refuse(self, key: str) -> None:
        choices = self.questions[self.at].choices if self.at < len(self.questions) else ()
        if key.isascii() and key.isdigit() and 1 <= int(key) <= len(choices):
            told = f"{key} has been chosen for {self._rival(choices[int(key) - 1])}"
        else:
            told = f"`{key}` is no answer here"
        self._say(told, style="red")

    # --- what is shown

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(_text(text, style))

    def _show(self) -> None:
        question = self.questions[self.at]
        self.console.print()
        self._say(f"{self.at + 1} of {len(self.questions)}: {named(question.sources)}", "bold")
        for module in question.sources:
            self._say(f"  {slots_told(list(module.slots.values()))}")
        self._say(_KINDS[question.kind])
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for number, choice in enumerate(question.choices, 1):
            mark = "*" if choice is self.answers[self.at] else ""
            table.add_row(*map(_text, (f"{mark}{number}", *self._told(choice))))
        self.console.print(table)

    def _told(self, choice: Choice) -> tuple[str, ...]:
        """A choice: the module, its arrays, why, and the rules that would follow."""
        pair = choice.pair
        arrays = slots_told([slot for leaf in pair.leaves for slot in leaf.templates])
        rival = self._rival(choice)
        why = [choice.reading, pair.evidence, f"chosen for {rival}" if rival else ""]
        rules = [rule_line(rule) for rule in rules_of(pair)] or ["as it is"]
        return named(pair.templates), arrays, "; ".join(filter(None, why)), "\n".join(rules)

    def _summary(self) -> str:
        count = sum(choice is not None for choice in self.answers)
        return f"\n{count} of {len(self.answers)} decided"


def _text(text: str, style: str = "") -> Text:
    """Text from a checkpoint, which can neither steer the terminal nor be markup."""
    return Text(printable(text), style=style, overflow="fold")
