"""From a path to a checkpoint with its meaning; no array is read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnxconv.layouts import TENSORS, Chosen, Options, Survey, SurveyOptions, choose_part
from nnxconv.running import without_collecting

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item, Location


@dataclass(frozen=True)
class Opened:
    """A checkpoint: where it lies, its arrays, and what they mean."""

    location: "Location"
    item: "Item"
    chosen: Chosen

    @property
    def survey(self) -> Survey:
        """What it, or the part of it that was asked for, means."""
        return self.chosen.survey


def open_checkpoint(
    path: str,
    step: str | float | None,
    options: Options,
    *,
    has_step: bool = True,
    allow_uncommitted: bool = False,
    is_read: bool = False,
) -> Opened:
    """Opens a checkpoint and gives its names their meaning; `is_read`: values will be read too."""
    from nnxconv.storage.orbax import locate, open_item

    location = locate(path, step, has_step=has_step, allow_uncommitted=allow_uncommitted)
    with without_collecting():
        item = open_item(location, is_read=is_read)
        return Opened(location, item, meaning(location, item, options))


def meaning(location: "Location", item: "Item", options: Options) -> Chosen:
    """What an opened checkpoint's names mean, or those of the part that the options name."""
    how = SurveyOptions(
        custom_metadata=item.custom_metadata,
        is_scanned=_claim(location.custom_metadata.get("scan_layers")),
        layout=options.from_ or (TENSORS if location.container == "safetensors" else None),
        layer_axis=options.layer_axis,
        layer_group=options.layer_group,
        family=options.family,
        where=str(item.path),
        items=tuple(folder.path.name for folder in location.joined),
    )
    return choose_part(
        item.tree,
        how,
        at=options.at,
        drop=options.drop,
        params_from=options.params_from,
        replica=options.replica,
    )


def _claim(told: object) -> bool | None:
    """What metadata say of the layers, when it is yes or no."""
    return told if isinstance(told, bool) else None
