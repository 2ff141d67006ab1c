"""Layouts: recognise a tree, decode it to the canonical state, encode it again.

Each layout is one module with the same names in it (see `form.Codec`). No codec imports another.
"""

from collections.abc import Mapping

from nnxconv.codecs import linen, maxtext, nnx, nnx_pure, nnx_state
from nnxconv.codecs.form import Codec, Decoded, Encoded, Form, Reading, Record
from nnxconv.errors import UnknownLayout
from nnxconv.keys import spell
from nnxconv.state import Tree, children

__all__ = ["CODECS", "Codec", "Decoded", "Encoded", "Form", "Reading", "Record", "recognise"]

_ALL: tuple[Codec, ...] = (linen, maxtext, nnx, nnx_state, nnx_pure)
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}


def recognise(tree: Tree, where: str = "") -> tuple[Codec, Reading]:
    """The one codec whose layout the tree has, and the evidence.

    Raises:
      UnknownLayout: none has it, or several do; the evidence of each is listed.
    """
    readings = {codec.name: codec.recognise(tree) for codec in CODECS.values()}
    fitting = [name for name, reading in readings.items() if not reading.objections]
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
    raise UnknownLayout(
        "this is none of the layouts that nnxconv knows",
        where=where,
        details=[
            f"at the root: {roots}",
            *(f"not {name}: {', '.join(r.objections)}" for name, r in readings.items()),
        ],
    )
