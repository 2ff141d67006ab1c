"""Parameters by dotted names, and statistics of batches: what safetensors files hold.

```
model.layers.0.self_attn.q_proj.weight      one array for each name, nothing else
layer1.0.bn1.running_mean                   of `torch.nn.BatchNorm2d`: its buffers
```

Source of the buffers' names: torch/nn/modules/batchnorm.py, `_NormBase`.

Any tree of names could be one, so the layout is never recognised: the container says it.
"""

from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import refuse_misfits, training_misfits
from nnxconv.state import BATCH_STATS, Spelling, TrainState, Tree
from nnxconv.tree import Key, Literal

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

name = "safetensors"
family: Family = "torch"
spelling: Spelling = "index"


def recognise(tree: Tree) -> Reading:
    """Nothing in a tree says so."""
    del tree
    return Reading((), ("it does not come from safetensors",))


def decode(tree: Tree, record: Record) -> Decoded:
    """Every array is a parameter, or one of the statistics that modules keep of their batches."""
    del record
    params = {key: leaf for key, leaf in tree.items() if not _is_buffer(key)}
    aux = {(BATCH_STATS, *key): leaf for key, leaf in tree.items() if key not in params}
    form = Form(has_level=False, has_root=False, opt_state="absent")
    return Decoded(TrainState(params, aux=aux), form)


def _is_buffer(key: Key) -> bool:
    return str(key[-1]).rpartition(".")[2] in _BUFFERS


def default_form(state: TrainState) -> Form:
    """Names without a level around them."""
    del state
    return Form(has_level=False, has_root=False, opt_state="absent")


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Everything but arrays of parameters, and of statistics under the names of buffers."""
    del form
    literals = [("params", *key) for key, leaf in state.params.items() if isinstance(leaf, Literal)]
    aux = [
        ("aux", *key)
        for key, leaf in state.aux.items()
        if key[0] != BATCH_STATS or not _is_buffer(key) or isinstance(leaf, Literal)
    ]
    return [*training_misfits(state), *aux, *literals]


def encode(state: TrainState, form: Form) -> Encoded:
    """The parameters and statistics by their names."""
    refuse_misfits(name, state, misfits(state, form))
    return Encoded({**state.params, **{key[1:]: leaf for key, leaf in state.aux.items()}}, form)
