"""nnxconv moves JAX/Flax checkpoints between layouts: Linen, NNX and MaxText.

>>> import nnxconv
>>> result = nnxconv.convert("linen_ckpt", "nnx_ckpt")  # doctest: +SKIP
>>> result.conversion.layout  # doctest: +SKIP
'nnx'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nnxconv.commands.average import average
    from nnxconv.commands.checksum import check_checksums, write_checksums
    from nnxconv.commands.compare import compare
    from nnxconv.commands.convert import convert
    from nnxconv.commands.gpt3_from_paxml import gpt3_from_paxml
    from nnxconv.commands.inspect import inspect
    from nnxconv.commands.load import load, load_into
    from nnxconv.commands.match import match
    from nnxconv.commands.merge_lora import merge_lora
    from nnxconv.commands.open import Checkpoint, LazyArray, open  # noqa: A004
    from nnxconv.commands.qk_clip import qk_clip_checkpoint
    from nnxconv.commands.qk_clip_live import qk_clip
    from nnxconv.commands.result import Result
    from nnxconv.comparing import Report
    from nnxconv.errors import NnxconvError

__all__ = [
    "Checkpoint",
    "LazyArray",
    "NnxconvError",
    "Report",
    "Result",
    "average",
    "check_checksums",
    "compare",
    "convert",
    "gpt3_from_paxml",
    "inspect",
    "load",
    "load_into",
    "match",
    "merge_lora",
    "open",
    "qk_clip",
    "qk_clip_checkpoint",
    "write_checksums",
]

_MODULES = {
    "Checkpoint": "commands.open",
    "LazyArray": "commands.open",
    "NnxconvError": "errors",
    "Report": "comparing",
    "Result": "commands.result",
    "check_checksums": "commands.checksum",
    "load_into": "commands.load",
    "qk_clip": "commands.qk_clip_live",
    "qk_clip_checkpoint": "commands.qk_clip",
    "write_checksums": "commands.checksum",
}
"""Where names stand that are not those of a command's own file."""


def __getattr__(name: str) -> Any:
    """Imports what is asked for: `nnxconv --help` needs no numpy."""
    if name not in __all__:
        raise AttributeError(f"module `nnxconv` has no attribute `{name}`")
    return getattr(import_module(f"nnxconv.{_MODULES.get(name, f'commands.{name}')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
