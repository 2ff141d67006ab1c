"""The NNX-RL layout: a MaxText model within the adapter that reinforcement learning gives it.

```
base/<path>/value
```

MaxText trains with Tunix through `TunixMaxTextAdapter`, a module whose attribute `base` is the
model. Its readers tell such checkpoints by `base` at the root, and expect weights under `value`:
`detect_and_extract_checkpoint` in `checkpoint_conversion/utils`, and `from_pretrained` in
`maxtext/utils/model_creation_utils.py`. The model alone is saved like this; with an optimizer
beside it, it is a step of Tunix (see `tunix`).
"""

from nnxconv.layouts import nnx_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import (
    ADAPTER,
    is_wrapped,
    model_misfits,
    refuse_misfits,
    training_misfits,
    unwrapped,
    wrapped,
)
from nnxconv.state import Spelling, TrainState, Tree, below, children, under
from nnxconv.tree import Key

name = "nnx-rl"
family: Family = "nnx"
spelling: Spelling = "index"

BASE: Key = (ADAPTER,)


def recognise(tree: Tree) -> Reading:
    """Every weight wrapped in `value` under `base`, and nothing else."""
    evidence, objections = [], []
    model = below(tree, BASE)
    if not model:
        objections.append("no `base` at the root")
    elif is_wrapped(model):
        evidence.append("weights wrapped in `value` under `base`")
    else:
        objections.append("weights under `base` are not wrapped in `value`")
    objections += [f"`{root}` at the root" for root in children(tree) if (root,) != BASE]
    return Reading(tuple(evidence), tuple(objections))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of an NNX-RL tree."""
    return parts.canonical(unwrapped(below(tree, BASE)), None, None, _FORM, record)


_FORM = Form(opt_state="absent")


def default_form(state: TrainState) -> Form:
    """There is one form only."""
    del state
    return _FORM


def misfits(state: TrainState, form: Form) -> list[Key]:
    """The optimizer, the step, and variables without a path in the model."""
    del form
    return [*training_misfits(state), *model_misfits(state)]


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as an NNX-RL tree."""
    refuse_misfits(name, state, misfits(state, form))
    return Encoded(under(BASE, wrapped(parts.model_tree(state))), form)
