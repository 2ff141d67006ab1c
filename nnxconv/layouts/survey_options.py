"""How a tree shall be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnxconv.layouts.understanding import RECORD, Understood, understand
from nnxconv.state import Family, Tree


@dataclass(frozen=True)
class SurveyOptions:
    """How a tree shall be read: what `understand` takes besides the tree."""

    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    is_scanned: bool | None = None
    layout: str | None = None
    layer_axis: int | None = None
    layer_group: Sequence[str] = ()
    family: Family | None = None
    where: str = ""
    items: tuple[str, ...] = ()

    def of(
        self,
        tree: Tree,
        record: Mapping[str, Any] | None = None,
        like: Understood | None = None,
    ) -> Understood:
        """A tree with its meaning; `record` takes the place of what the metadata say.

        It is known of a tree that has the same layers, of which some were left aside in `like`.
        """
        custom = self.custom_metadata if record is None else {RECORD: record}
        return understand(
            tree,
            custom_metadata=custom,
            is_scanned=self.is_scanned,
            layout=self.layout,
            layer_axis=self.layer_axis,
            layer_group=self.layer_group,
            family=self.family,
            where=self.where,
            like=like,
        )
