"""nnxconv moves JAX/Flax checkpoints between layouts: Linen, NNX and MaxText.

>>> import nnxconv
>>> result = nnxconv.convert("linen_ckpt", "nnx_ckpt")  # doctest: +SKIP
>>> result.conversion.layout  # doctest: +SKIP
'nnx'
"""

from nnxconv.api import Result, check_checksums, compare, convert, inspect, write_checksums
from nnxconv.errors import NnxconvError
from nnxconv.report import Report

__all__ = [
    "NnxconvError",
    "Report",
    "Result",
    "check_checksums",
    "compare",
    "convert",
    "inspect",
    "write_checksums",
]
__version__ = "0.1.0"
