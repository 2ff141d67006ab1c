"""From a path to a checkpoint with its meaning; no array is read."""

from typing import TYPE_CHECKING

from nnxconv.layouts import Options, Understood, understand

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item, Location


def open_checkpoint(
    path: str,
    step: int | None,
    options: Options,
    *,
    has_step: bool = True,
    allow_uncommitted: bool = False,
    is_read: bool = False,
) -> tuple["Location", "Item", Understood]:
    """Opens a checkpoint and gives its names their meaning; `is_read`: values will be read too."""
    from nnxconv.storage.orbax import locate, open_item

    location = locate(path, step, has_step=has_step, allow_uncommitted=allow_uncommitted)
    item = open_item(location, is_read=is_read)
    return location, item, meaning(location, item, options)


def meaning(location: "Location", item: "Item", options: Options) -> Understood:
    """What an opened checkpoint's names mean."""
    return understand(
        item.tree,
        custom_metadata=item.custom_metadata,
        is_scanned=_claim(location.custom_metadata.get("scan_layers")),
        layout=options.from_,
        layer_axis=options.layer_axis,
        layer_group=options.layer_group,
        where=str(item.path),
    )


def _claim(told: object) -> bool | None:
    """What metadata say of the layers, when it is yes or no."""
    return told if isinstance(told, bool) else None
