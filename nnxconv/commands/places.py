"""Where a command reads, and where it writes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nnxconv.commands.opening import Opened
from nnxconv.layouts import TENSORS

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item, Location, Target
    from nnxconv.storage.zarr import Container


@dataclass(frozen=True)
class Places:
    """Where a conversion reads and writes.

    Attributes:
      source_path: as the user gave it.
      location: what was found there.
      items: the opened items by path, the source first.
      target_path: as the user gave it.
      target: the item that is written.
      container: how it keeps its arrays.
      source_items: how many of the items are the source's.
    """

    source_path: str
    location: "Location"
    items: Mapping[str, "Item"]
    target_path: str
    target: "Target"
    container: "Container"
    source_items: int = 1

    @property
    def source_name(self) -> str:
        """The item that is read; the step, where it is several of its items."""
        item = next(iter(self.items.values()))
        return str(item.path if self.source_items == 1 else item.path.parent)


def places_of(
    source_path: str,
    target_path: str,
    source: Opened,
    others: Mapping[str, "Item"],
    layout: str,
    *,
    is_split: bool,
    files: Mapping[str, Any] | None = None,
) -> Places:
    """Where is read and written; the target lies as the source does, unless its layout says.

    Args:
      source_path, target_path: as the user gave them.
      source: what was found there.
      others: further items that are read, by path.
      layout: of the target.
      is_split: the names at the target's root are items.
      files: small files for a folder of safetensors, where the source is none.
    """
    from nnxconv.storage.orbax import target_for
    from nnxconv.storage.safetensors import small_files
    from nnxconv.storage.zarr import ORBAX

    location, stores = source.location, source.item.stores
    is_tensors = layout == TENSORS
    target = target_for(
        target_path, location, location.custom_metadata, is_split=is_split, tensors=is_tensors
    )
    if is_tensors and not target.tensors_file:
        own = small_files(location.folder) if location.container == TENSORS else files
        target = replace(target, files=own or {})
    # of safetensors nothing is taken over as encoded chunks
    container = ORBAX if is_tensors else source.item.container
    items = {**stores, **others}
    return Places(source_path, location, items, target_path, target, container, len(stores))
