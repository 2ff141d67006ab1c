"""Stacks of blocks: which families of models have them, and which layer is which within.

A block is a period of layers. Its members are stacked over the blocks; one of them may be a stack
within the stack. MaxText 0.2.5 has these (`FAMILIES`). Where the members are `layers_0`,
`layers_1`, ..., as in Gemma 3, Llama 4, gpt-oss and OLMo 3, a layer group is arranged in blocks
(`state/layer_groups.py`).

```
layers/local_layers  (.., blocks, 3, ..)     layers_0, layers_1, layers_2, layers_4, ...
layers/global_layer  (.., blocks, ..)        layers_3, layers_7, ...
```
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nnxconv.errors import LayerError
from nnxconv.renaming.rule import Rules
from nnxconv.renaming.toml import parse_rules
from nnxconv.state import Tree
from nnxconv.tree import Key, Leaf, Literal, is_digits, spell


@dataclass(frozen=True)
class BlockFamily:
    """How the blocks of a family of models are stacked.

    Attributes:
      name: what it is called.
      group: the name of the stack.
      inner: the member that is a stack within the stack, before `last`; empty where there is none.
      last: the member after it.
      members: what numbered members are called, before the number; empty where there are none.
      remainder: where the layers stand, stacked once, that fill no whole block.
      mark: a name that the layers of `inner` alone have, by which layers apart are recognised.
    """

    name: str
    group: str
    inner: str = ""
    last: str = ""
    members: str = ""
    remainder: str = ""
    mark: str = ""


FAMILIES = (
    BlockFamily("Qwen3-Next", "layers", "local_layers", "global_layer", mark="in_proj_qkvz"),
    BlockFamily("Qwen3.5", "layers", members="layer_"),
    BlockFamily(
        *("Gemma 4", "scanned_blocks", "local_layers", "global_layer"),
        remainder="layers_remainder.local_layers",
    ),
    BlockFamily("DeepSeek-V4", "scanned_blocks", members="layers_"),
)


@dataclass(frozen=True)
class Blocks:
    """The blocks of one stack: where it stands, layers in a block, layers apart before it."""

    family: BlockFamily
    parent: Key
    period: int
    prefix: int = 0

    def rules(self) -> Rules:
        """The rules from layers apart to blocks."""
        family, above = self.family, "".join(f"{part}." for part in self.parent)
        stack = f"{above}{family.group}[{{block}}]"
        lines: list[str] = []

        def layer(place: str) -> str:
            return f"{above}layers[{{{self.period}*block+{place}}}]"

        if family.members:
            lines += [
                f'"{layer(str(j + self.prefix))}" = "{stack}.{_member(family, j)}"'
                for j in range(self.period)
            ]
        else:
            last = self.period - 1 + self.prefix
            lines.append(f'"{layer(str(last))}" = "{stack}.{family.last}"')
            inner = "i" if not self.prefix else f"i+{self.prefix}"
            lines.append(f'"{layer(inner)}" = "{stack}.{family.inner}[{{i}}]"')
        counts = ""
        if family.remainder:
            counts = f'[counts]\nblocks = "{layer(str(self.period - 1))}"\n'
            rest = f"{above}layers[{{{self.period}*blocks+i}}]"
            to = f"{above}{family.remainder}[{{i}}]"
            lines.insert(0, f'"{rest}" = {{ to = "{to}", optional = true }}')
        return parse_rules("\n".join([counts, "[rules]", *lines]), f"the blocks of {family.name}")


def _member(family: BlockFamily, number: int) -> str:
    """A numbered member in a pattern; one called like a layer is one, of a group in the block."""
    if family.members == "layers_":
        return f"layers[{number}]"
    return f"{family.members}{number}"


# --- blocks that are stacked ---------------------------------------------------------------------


def stacked_blocks(tree: Tree, layer_axis: int | None = None) -> Iterator[Blocks]:
    """The stacks of blocks of known families."""
    for key, inside in _groups(tree).items():
        kids = {str(path[0]) for path in inside}
        for family in FAMILIES:
            if key[-1] != family.group:
                continue
            if family.members and kids == {f"{family.members}{j}" for j in range(len(kids))}:
                yield Blocks(family, key[:-1], len(kids), _preceding(tree, key[:-1]))
            elif family.inner and kids == {family.inner, family.last}:
                yield Blocks(family, key[:-1], _inner_count(key, inside, family, layer_axis) + 1)


def _groups(tree: Tree) -> dict[Key, dict[Key, Leaf]]:
    """What stands below each key that a family's stack may have."""
    names = {family.group for family in FAMILIES}
    found: dict[Key, dict[Key, Leaf]] = defaultdict(dict)
    for path, leaf in tree.items():
        for size in range(1, len(path)):
            if path[size - 1] in names:
                found[path[:size]][path[size:]] = leaf
    return found


def _preceding(tree: Tree, parent: Key) -> int:
    """How many layers stand apart before the blocks: `layers_0`, `layers_1`, ..."""
    names = {str(path[len(parent)]) for path in tree if path[: len(parent)] == parent}
    return sum(name.startswith("layers_") and is_digits(name[7:]) for name in names)


def _inner_count(
    key: Key, inside: Mapping[Key, Leaf], family: BlockFamily, layer_axis: int | None
) -> int:
    """How many layers the stack within the stack has.

    Raises:
      LayerError: it cannot be told from the shapes.
    """
    shapes = {path: leaf.shape for path, leaf in inside.items() if not isinstance(leaf, Literal)}
    inner = [shape for path, shape in shapes.items() if path[0] == family.inner]
    outer = [shape for path, shape in shapes.items() if path[0] == family.last]
    counts: dict[int, int] = {}
    for axis in (0, 1) if layer_axis is None else (layer_axis,):
        blocks = {shape[min(axis, len(shape) - 1)] for shape in outer if shape}
        both = {_two_axes(shape, axis) for shape in inner}
        if len(blocks) == len(both) == 1 and {first for first, _ in both} == blocks:
            counts[axis] = both.pop()[1]
    if len(set(counts.values())) != 1:
        raise LayerError(
            f"the layers of the blocks in `{spell(key)}` cannot be told from the shapes",
            details=[f"{spell(path)}: {shape}" for path, shape in list(shapes.items())[:6]],
            hint="`--layer_axis 0` or `--layer_axis 1` says which axis has the blocks",
        )
    return next(iter(counts.values()))


def _two_axes(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """The sizes of the axis of blocks and of the one within, in an array that is stacked twice."""
    if len(shape) < 2:
        return (0, 0)
    place = min(axis, len(shape) - 2)
    return shape[place], shape[place + 1]


# --- layers that are apart -----------------------------------------------------------------------


def layers_in_blocks(tree: Tree) -> Iterator[Blocks]:
    """The layers apart that are the blocks of a family, by the names that some of them have."""
    layers: dict[Key, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in tree:
        for place, part in enumerate(path[:-1]):
            name, _, digits = str(part).rpartition("_")
            if name == "layers" and is_digits(digits):
                layers[path[:place]][int(digits)].update(map(str, path[place + 1 :]))
    for parent, names in layers.items():
        for family in FAMILIES:
            if not family.mark:
                continue
            others = [i for i, parts in names.items() if family.mark not in parts]
            period = min(others, default=-1) + 1
            wanted = list(range(period - 1, len(names), period)) if period > 1 else []
            if wanted and sorted(others) == wanted and len(names) % period == 0:
                yield Blocks(family, parent, period)
