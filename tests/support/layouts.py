"""Layouts by what they hold, and trees as programs write them."""

from nnxconv.layouts.recognition import CODECS
from nnxconv.tree.views import Literal
from tests.support.states import array, table

LAYOUTS = tuple(name for name in CODECS if name != "safetensors")
"""Those that a tree tells; of safetensors the container says it."""
MODEL_ONLY = ("linen-variables", "nnx-rl")
"""Layouts that hold neither step nor optimizer."""
TRAINING = tuple(name for name in LAYOUTS if name not in MODEL_ONLY)


STEP_DTYPES = {
    name: "int32" if name in ("linen", "maxtext") else "uint32" for name in TRAINING
}  # fmt: skip


def default_tree(layout, state):
    """The state in a layout, in the form in which it is written when nothing else is known."""
    codec = CODECS[layout]
    return codec.encode(state, codec.default_form(state)).tree


def recognised(tree):
    return {name for name, codec in CODECS.items() if not codec.recognise(tree).objections}


_LONG = {"f32": "float32", "bf16": "bfloat16", "i32": "int32", "u32": "uint32", "i64": "int64"}


def source_tree(text, **leaves):
    """A table as a tree of stored arrays; `None`, `{}`, `[]` and `()` are empty containers."""
    kinds = {"None": "None", "{}": "Dict", "[]": "List", "()": "Tuple"}
    tree = {}
    for key, what in table(text).items():
        if what in kinds:
            tree[key] = Literal(kinds[what])
            continue
        short, _, rest = what.partition("[")
        shape = tuple(int(size) for size in rest[:-1].split(",") if size)
        tree[key] = array(key, shape, _LONG[short])
    return tree | leaves
