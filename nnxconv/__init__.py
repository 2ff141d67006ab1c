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
    from nnxconv.api import compare, convert, inspect, match
    from nnxconv.errors import NnxconvError
    from nnxconv.importing import gpt3_from_paxml
    from nnxconv.loading import load, load_into
    from nnxconv.manifests import check_checksums, write_checksums
    from nnxconv.opened import Checkpoint, LazyArray, open  # noqa: A004
    from nnxconv.outcome import Result
    from nnxconv.report import Report

__all__ = [
    "Checkpoint",
    "LazyArray",
    "NnxconvError",
    "Report",
    "Result",
    "check_checksums",
    "compare",
    "convert",
    "gpt3_from_paxml",
    "inspect",
    "load",
    "load_into",
    "match",
    "open",
    "write_checksums",
]

_ELSEWHERE = {
    "Checkpoint": "opened",
    "LazyArray": "opened",
    "NnxconvError": "errors",
    "Report": "report",
    "Result": "outcome",
    "check_checksums": "manifests",
    "gpt3_from_paxml": "importing",
    "load": "loading",
    "load_into": "loading",
    "open": "opened",
    "write_checksums": "manifests",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: `nnxconv --help` needs no numpy."""
    if name not in __all__:
        raise AttributeError(f"module `nnxconv` has no attribute `{name}`")
    return getattr(import_module(f"nnxconv.{_ELSEWHERE.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
