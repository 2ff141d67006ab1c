"""Checkpoints that are written and read without a disk: trees, their values, their metadata."""

import json

from nnxconv.layouts.conversion import convert_tree
from nnxconv.layouts.joining import alone, nothing_lost
from nnxconv.layouts.options import Options
from nnxconv.layouts.understanding import RECORD, understand
from nnxconv.tree.views import Literal
from tests.support import states
from tests.support.states import told


class Disk:
    """A checkpoint that is written and read without a disk: a tree, its values, its metadata."""

    def __init__(self, tree, stored=None, custom_metadata=None):
        self.tree = tree
        self.stored = states.first_values(tree) if stored is None else stored
        self.custom_metadata = custom_metadata or {}

    def converted(self, **options):
        """The checkpoint that a conversion writes, and the conversion."""
        names = options.get("layer_group", ())
        layout = options.get("from_")
        axis = options.get("layer_axis")
        source = understand(
            self.tree,
            custom_metadata=self.custom_metadata,
            layout=layout,
            layer_axis=axis,
            layer_group=names,
        )
        conversion = convert_tree(source, Options(**options), None)
        nothing_lost(alone(conversion))
        tree, stored = states.written(conversion.tree, self.stored)
        record = json.loads(json.dumps(conversion.record.to_json()))
        return Disk(tree, stored, {RECORD: record}), conversion

    def contents(self, without_rngs=False):
        """Every leaf: what it is, and its values."""
        return {
            key: (leaf, self.stored[states.spell(key)].tolist())
            if not isinstance(self.tree[key], Literal)
            else leaf
            for key, leaf in told(self.tree).items()
            if not (without_rngs and states.is_rng(key))
        }


def on_disk(tree):
    """A tree as a first program wrote it: each array under its own name."""
    return Disk({key: states.as_stored(key, leaf) for key, leaf in tree.items()})


def there_and_back(disk, other, there=None, back=None):
    """A checkpoint converted to another layout and back to its own."""
    between, conversion = disk.converted(to=other, **(there or {}))
    returned, _ = between.converted(to=conversion.source.codec.name, **(back or {}))
    return returned, conversion
