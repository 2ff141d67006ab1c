"""Checkpoints whose layers are taken out of the blocks of a family, or put into them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from nnxconv.errors import LayerError
from nnxconv.layouts import Options, Understood
from nnxconv.renaming.checkpoints import renamed
from nnxconv.renaming.families import layers_in_blocks, stacked_blocks
from nnxconv.tree import Key, Leaf, Literal, notation, spell


def in_family_terms(source: Understood, scan_layers: bool | None, options: Options) -> Understood:
    """A checkpoint whose blocks are taken apart, or whose layers become blocks, as is asked for.

    Args:
      source: the checkpoint.
      scan_layers: whether the target's layers are stacked; None leaves them as they are.
      options: how it is read.

    Raises:
      LayerError: `--no-scan_layers` would leave stacks of blocks that no family has.
    """
    if scan_layers is None:
        return source
    tree = source.as_stored.params
    found = layers_in_blocks(tree) if scan_layers else stacked_blocks(tree, options.layer_axis)
    for blocks in list(found):
        rules = blocks.rules() if scan_layers else blocks.rules().inverse()
        new = renamed(source, rules, options)
        stack = spell((*blocks.parent, blocks.family.group))
        way = "put into" if scan_layers else "taken out of"
        told = f"layers {way} the blocks of {blocks.period} of {blocks.family.name} in `{stack}`"
        told += "; for another model of these names, give `--like`" if scan_layers else ""
        source = replace(new, renamed=(*source.renamed, told))
    if options.scan_layers is False:
        _refuse_stacks_within(source)
    return source


def alike_in_blocks(a: Understood, b: Understood) -> tuple[Understood, Understood]:
    """Both sides, their layers taken out of blocks where one side has them in blocks alone."""
    in_blocks = [any(stacked_blocks(side.as_stored.params)) for side in (a, b)]
    if in_blocks[0] == in_blocks[1]:
        return a, b
    return in_family_terms(a, False, Options()), in_family_terms(b, False, Options())


_LIKE_LAYERS = ("layers", "blocks", "scanned_blocks", "local_layers", "global_layer")


def _refuse_stacks_within(source: Understood) -> None:
    """Refuses to leave stacks where all layers shall be apart.

    Raises:
      LayerError: below a key that is called like layers, all arrays share a size of one axis.
    """
    known = {group.key for group in source.groups if group.problem}
    inside: dict[Key, list[tuple[Key, Leaf]]] = defaultdict(list)
    for path, leaf in source.state.params.items():
        for size in range(1, len(path)):
            if path[size - 1] in _LIKE_LAYERS and not isinstance(path[size], int):
                inside[path[:size]].append((path, leaf))
                break
    left = {key: leaves for key, leaves in inside.items() if key not in known and _share(leaves)}
    if left:
        raise LayerError(
            "these look like stacked layers, and no description of a family fits them",
            details=[f"{spell(p)}  {notation(leaf)}" for some in left.values() for p, leaf in some],
            hint="`--layer_group NAME` names layers that are a plain stack; rename rules can say"
            " more (`nnxconv match`); without `--no-scan_layers` they stay as they are",
        )


def _share(leaves: Iterable[tuple[Key, Leaf]]) -> bool:
    """True where all arrays have one size on axis 0 or 1, whichever of them each has it on."""
    shapes = [leaf.shape for _, leaf in leaves if not isinstance(leaf, Literal)]
    return len(shapes) > 1 and bool(set.intersection(*(set(shape[:2]) for shape in shapes)))
