"""Parameters alone, by dotted names: what safetensors files hold.

```
model.layers.0.self_attn.q_proj.weight      one array for each name, nothing else
```

Any tree of names could be one, so the layout is never recognised: the container says it.
"""

from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import refuse_misfits, training_misfits
from nnxconv.state import Spelling, TrainState, Tree
from nnxconv.tree import Key, Literal

name = "safetensors"
family: Family = "torch"
spelling: Spelling = "index"


def recognise(tree: Tree) -> Reading:
    """Nothing in a tree says so."""
    del tree
    return Reading((), ("it does not come from safetensors",))


def decode(tree: Tree, record: Record) -> Decoded:
    """Every array is a parameter."""
    del record
    return Decoded(TrainState(tree), Form(has_level=False, has_root=False, opt_state="absent"))


def default_form(state: TrainState) -> Form:
    """Names without a level around them."""
    del state
    return Form(has_level=False, has_root=False, opt_state="absent")


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Everything but arrays of parameters."""
    del form
    literals = [("params", *key) for key, leaf in state.params.items() if isinstance(leaf, Literal)]
    return [*training_misfits(state), *(("aux", *key) for key in state.aux), *literals]


def encode(state: TrainState, form: Form) -> Encoded:
    """The parameters by their names."""
    refuse_misfits(name, state, misfits(state, form))
    return Encoded(dict(state.params), form)
