"""The `nnxconv` command. Parses, calls the library, renders."""

from nnxconv.cli.app import main

__all__ = ["main"]
