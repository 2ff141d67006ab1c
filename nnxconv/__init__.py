"""nnxconv moves JAX/Flax checkpoints between layouts: Linen, NNX and MaxText.

>>> import nnxconv
>>> result = nnxconv.convert("linen_ckpt", "nnx_ckpt")  # doctest: +SKIP
>>> result.conversion.layout  # doctest: +SKIP
'nnx'
"""

from nnxconv.api import Result, convert
from nnxconv.errors import NnxconvError

__all__ = ["NnxconvError", "Result", "convert"]
__version__ = "0.1.0"
