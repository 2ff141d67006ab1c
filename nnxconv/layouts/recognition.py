"""All layouts, and which of them a tree has.

Each layout is one module with the same names in it (see `form.Codec`). No codec imports another.
Other packages may have more (see `plugins`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nnxconv.errors import NnxconvError, UnknownLayout
from nnxconv.layouts import (
    linen,
    linen_variables,
    maxtext,
    nnx,
    nnx_optimizer,
    nnx_pure,
    nnx_rl,
    nnx_state,
    safetensors,
    tunix,
)
from nnxconv.layouts.form import Codec, Decoded, Encoded, Form, Reading, Record
from nnxconv.layouts.names import TUNIX_ITEMS
from nnxconv.layouts.plugins import Codecs
from nnxconv.state import Tree, children
from nnxconv.tree import spell

__all__ = [
    "CODECS",
    "ITEMS",
    "Codec",
    "Decoded",
    "Encoded",
    "Form",
    "Reading",
    "Record",
    "recognise",
]

_ALL: tuple[Codec, ...] = (
    linen,
    linen_variables,
    maxtext,
    nnx,
    nnx_state,
    nnx_pure,
    nnx_optimizer,
    nnx_rl,
    tunix,
    safetensors,
)
CODECS: Mapping[str, Codec] = Codecs(_ALL)
ITEMS: Mapping[str, Sequence[str]] = {tunix.name: TUNIX_ITEMS}
"""Layouts whose trees are several items of a step; the first names in their keys."""


def recognise(tree: Tree, where: str = "") -> tuple[Codec, Reading]:
    """The one codec whose layout the tree has, and the evidence.

    Where several fit and all give the same state, the last of them is taken, and its reading names
    the others: which of them it is matters only to those who ask for its family.

    Raises:
      UnknownLayout: none has it, or several do; the evidence of each is listed.
    """
    readings = {name: CODECS[name].recognise(tree) for name in CODECS}
    fitting = [name for name, reading in readings.items() if not reading.objections]
    fitting = [name for name in fitting if not readings[name].is_bare] or fitting
    if len(fitting) > 1 and _mean_the_same(tree, fitting):
        *others, taken = fitting
        return CODECS[taken], replace(readings[taken], others=tuple(others))
    if len(fitting) == 1:
        return CODECS[fitting[0]], readings[fitting[0]]
    if fitting:
        raise UnknownLayout(
            f"this could be {' or '.join(fitting)}",
            where=where,
            details=[f"{name}: {', '.join(readings[name].evidence)}" for name in fitting],
            hint="`--from LAYOUT` says which it is",
        )
    roots = ", ".join(spell((root,)) for root in children(tree)[:8])
    likeliest = sorted(readings, key=lambda name: len(readings[name].objections))[:2]
    raise UnknownLayout(
        "this is none of the layouts that nnxconv knows",
        where=where,
        details=[
            f"at the root: {roots}",
            *(f"not {name}: {_few(readings[name].objections)}" for name in likeliest),
        ],
        hint="`--at KEY` takes a subtree; `nnxconv inspect PATH --tree` lists the keys",
    )


def _few(objections: Sequence[str]) -> str:
    """The first objections, and how many more there are."""
    told = ", ".join(objections[:_MOST])
    return told if len(objections) <= _MOST else f"{told}, and {len(objections) - _MOST} more"


_MOST = 4


def _mean_the_same(tree: Tree, names: Sequence[str]) -> bool:
    """True when all these codecs give the same state."""
    try:
        first, *others = (CODECS[name].decode(tree, Record()).state for name in names)
    except NnxconvError:
        return False
    return all(other == first for other in others)
