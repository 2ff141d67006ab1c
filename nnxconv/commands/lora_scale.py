"""What is told of the scale of LoRA adapters: alpha and the rank, from their configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnxconv.commands.computing import Read
from nnxconv.errors import BadInput
from nnxconv.state import Adapter
from nnxconv.tree import spell

CONFIGURATION = "adapter_config.json"


@dataclass(frozen=True)
class LoraScale:
    """What the product of two factors is multiplied by.

    Attributes:
      alpha: the scale that is asked for, or recorded.
      by_root: alpha is divided by the root of the rank, as in rsLoRA, and not by the rank.
    """

    alpha: float
    by_root: bool

    def of(self, rank: int) -> float:
        """The factor for adapters of this rank."""
        return self.alpha / (math.sqrt(rank) if self.by_root else rank)

    def __str__(self) -> str:
        return f"{self.alpha:g} / {'the root of ' if self.by_root else ''}the rank"


def lora_configuration(adapter: Read) -> Mapping[str, Any]:
    """What `adapter_config.json` beside the item, its step or root says; or custom metadata."""
    from nnxconv.storage.files import read_if_there, read_json

    item = adapter.opened.location.item
    for folder in (item, item.parent, item.parent.parent):
        file = folder / CONFIGURATION
        is_folder = folder != item or item.is_dir()
        if is_folder and read_if_there(file) is not None:
            return read_json(file)
    return {**adapter.opened.location.custom_metadata, **adapter.item.custom_metadata}


def known_alpha(told: Mapping[str, Any], asked: float | None, where: str) -> float:
    """The scale that is asked for, or that the configuration says.

    Raises:
      BadInput: neither does.
    """
    alpha = number_in(told, "lora_alpha") if asked is None else asked
    if alpha is None:
        raise BadInput(
            "alpha is not known, and it scales what is added",
            where=where,
            hint=f"`--alpha ALPHA` says it, or `lora_alpha` in `{CONFIGURATION}`",
        )
    if not math.isfinite(alpha):
        raise BadInput(f"alpha is {alpha}, which is no finite number", where=where)
    if alpha <= 0:
        raise BadInput(
            f"alpha is {alpha:g}, which adds nothing, or takes away",
            where=where,
            hint="alpha is more than 0; `--unmerge` takes an adapter out of the weights",
        )
    return alpha


def number_in(told: Mapping[str, Any], name: str) -> float | None:
    """What a configuration says under this name; infinity past 2**53, None for no number."""
    value = told.get(name)
    if isinstance(value, int) and abs(value) > 2**53:
        return math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def refuse_other_rank(told: Mapping[str, Any], rank: int, adapter: Adapter) -> None:
    """Refuses what `adapter_config.json` says of other ranks, or of several."""
    for name in ("rank_pattern", "alpha_pattern"):
        if told.get(name):
            raise BadInput(f"`{CONFIGURATION}` has a `{name}`: modules that differ are not known")
    stated = number_in(told, "r") or number_in(told, "lora_rank")
    if stated is not None and stated != rank:
        raise BadInput(
            f"`{spell(adapter.a)}` has the rank {rank}, but `{CONFIGURATION}` says {stated:g}"
        )
