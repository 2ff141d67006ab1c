"""How a tree shall be converted."""

from dataclasses import dataclass
from typing import Literal as OneOf

from nnxconv.state import Family

Direction = OneOf["auto", "linen_to_nnx", "nnx_to_linen"]


@dataclass(frozen=True)
class Options:
    """How a tree shall be converted; names and defaults are those of the command."""

    direction: Direction = "auto"
    to: str | None = None
    from_: str | None = None
    scan_layers: bool | None = None
    layer_axis: int | None = None
    layer_group: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    strict: bool = False
    params_only: bool = False
    dtype: str | None = None
    at: str | None = None
    drop: tuple[str, ...] = ()
    params_from: str | None = None
    replica: int | None = None
    dequantize: bool = False
    family: Family | None = None
