"""The one way to the terminal: text from checkpoints cannot steer it."""

import unicodedata

import click

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control and format characters, surrogates, unassigned, line separators."""


def say(text: str, *, err: bool = False) -> None:
    """Prints text, with characters that a terminal would obey shown as escapes."""
    click.echo(printable(text), err=err)


def printable(text: str) -> str:
    r"""The text with every unsafe character escaped, but for line feeds.

    >>> print(printable("a\x1b[31mb\u202ec"))
    a\x1b[31mb\u202ec
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if char != "\n" and unicodedata.category(char) in _UNSAFE
        else char
        for char in text
    )
