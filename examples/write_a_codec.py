"""A layout of one's own: `weights/<path>` beside `iteration`, and nothing else.

Any package can bring it, with this in its `pyproject.toml`; `nnxconv convert --to` then has it, and
its checkpoints are recognised:

    [project.entry-points."nnxconv.codecs"]
    house = "our_package.write_a_codec"
"""

from nnxconv.layouts import Decoded, Encoded, Form, Reading, refuse_misfits
from nnxconv.state import TrainState, below, children, under

name, family, spelling = "house", "linen", "suffix"  # layers that are apart are layers_0, layers_1


def recognise(tree):
    """What speaks for and against a tree being of this layout."""
    roots = set(children(tree))
    objections = [f"`{root}` at the root" for root in roots - {"weights", "iteration"}]
    objections += [] if "weights" in roots else ["no `weights` at the root"]
    return Reading(("`weights` at the root",), tuple(sorted(objections)))


def decode(tree, record):
    """The canonical state: parameters by bare module path, the step, and here no optimizer."""
    state = TrainState(below(tree, ("weights",)), step=tree.get(("iteration",)))
    return Decoded(state, default_form(state))


def default_form(state):
    """What the layout leaves open: nothing."""
    return Form(opt_state="absent")


def misfits(state, form):
    """What it has no place for: listed in an error, or, if it is RNG state, as left out."""
    return [key for key in state.leaves() if key[0] in ("opt_state", "aux")]


def encode(state, form):
    """The inverse of `decode`."""
    refuse_misfits(name, state, misfits(state, form))
    step = {} if state.step is None else {("iteration",): state.step}
    return Encoded({**step, **under(("weights",), state.params)}, form)
