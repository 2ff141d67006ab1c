"""Training states to test with: generated ones, and a tiny one for tables written by hand."""

import re

import numpy as np
from hypothesis import strategies as st

from nnxconv.state.train_state import TrainState
from nnxconv.tree.array_notation import notation
from nnxconv.tree.elements import dtype_of, prng_impl_of
from nnxconv.tree.keys import spell
from nnxconv.tree.views import NOTHING, Cast, Concat, Literal, Moved, Part, Slot, Source, Stack

DTYPES = (
    "float32", "bfloat16", "float8_e4m3fn", "int4", "bool", "complex64", "float64", "int64",
)  # fmt: skip
LAYER_NAMES = ("layers", "dense_layers", "moe_layers")
ROOTS = ("decoder", "encoder", "Dense_0", "Dense_1", "a.b", "x/y", "0", "12")
MODULES = (*ROOTS, "mlp", "mu", "value", "model", "params_proj", "step")
LEAVES = ("bias", "scale", "embedding", "w", "u.v", "7")
SHAPES = ((), (7,), (5, 6), (6, 5, 8))
SPECS = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))


def array(key, shape, dtype="float32", **kinds):
    """A stored array that is called after its place, in one chunk."""
    return Source(spell(key), shape, dtype, shape, **kinds)


# --- parameters -------------------------------------------------------------------------------


def flat(nested, prefix=()):
    """Nested mappings as a mapping of paths."""
    found = {}
    for name, inner in nested.items():
        path = (*prefix, name)
        found.update(flat(inner, path) if isinstance(inner, dict) else {path: inner})
    return found


def modules(max_leaves=3):
    """Nested mappings of modules, with the shapes and types of their parameters."""
    leaves = st.dictionaries(st.sampled_from(LEAVES), SPECS, min_size=1, max_size=2)

    def around(inner):
        return st.dictionaries(st.sampled_from(MODULES), inner, min_size=1, max_size=2)

    return st.recursive(leaves, around, max_leaves=max_leaves)


@st.composite
def layer_templates(draw, count, depth=1):
    """One layer, by path: its matrices tell the layer axis of a stack of such layers.

    Groups in it have another number of layers, or axis 0 of a stack of stacks could be either.
    """
    dtype = draw(st.sampled_from(DTYPES))
    template = {("wi", "kernel"): ((5, 6), dtype), ("wo", "kernel"): ((6, 5), dtype)}
    if draw(st.booleans()):
        template[("norm", "scale")] = draw(st.sampled_from((((), dtype), ((7,), "float32"))))
    if draw(st.booleans()):
        template |= flat({"sub": draw(modules(2))})
    if depth and draw(st.booleans()):
        template |= draw(groups(depth - 1, {1, 2, 3, 4} - {count}))
    return template


@st.composite
def groups(draw, depth=1, counts=frozenset((1, 2, 3, 4))):
    """A run of equal layers, each under an int."""
    name = draw(st.sampled_from(LAYER_NAMES))
    count = draw(st.sampled_from(sorted(counts)))
    template = draw(layer_templates(count, depth))
    return {(name, i, *path): spec for i in range(count) for path, spec in template.items()}


@st.composite
def parameters(draw, with_layers=True):
    """Canonical parameters of some Flax model: paths to shapes and types."""
    specs = {("head", "kernel"): ((6, 8), draw(st.sampled_from(DTYPES)))}
    for root in draw(st.lists(st.sampled_from(ROOTS), max_size=2, unique=True)):
        specs |= flat({root: draw(modules())})
        if with_layers and draw(st.booleans()):
            found = draw(groups())
            specs |= {(root, *path): spec for path, spec in found.items()}
    if with_layers and draw(st.booleans()):
        specs |= draw(groups(0))
    return specs


def params_of(specs):
    """The parameters as stored arrays."""
    return {path: array(("params", *path), *spec) for path, spec in specs.items()}


# --- optimizers, in canonical form: an int for each element of a chain, no empty states -------


def _count(*prefix):
    return {(*prefix, "count"): array(("opt_state", *prefix, "count"), (), "int32")}


def _moments(params, *prefix, of=lambda path, leaf: True):
    """A parameter-shaped tree; what `of` denies is masked."""
    return {
        (*prefix, *path): array(("opt_state", *prefix, *path), leaf.shape, leaf.dtype)
        if of(path, leaf)
        else NOTHING
        for path, leaf in params.items()
    }


def _adam(params, *prefix, of=lambda path, leaf: True):
    mu, nu = (_moments(params, *prefix, name, of=of) for name in ("mu", "nu"))
    return _count(*prefix) | mu | nu


def adamw(params):
    return _adam(params, 0) | _count(2)


def adam_flat(params):
    return _adam(params)


def clipped_adamw(params):
    return _adam(params, 1, 0) | _count(1, 2)


def sgd(params):
    return _count(1)


def sgd_momentum(params):
    return _moments(params, 0, "trace") | _count(1)


def stateless(params):
    return {}


def lion(params):
    return _count(0) | _moments(params, 0, "mu") | _count(2)


def _is_matrix(path, leaf):
    return path[-1] == "kernel"


def muon(params):
    adam = ("inner_states", "adam", "inner_state")
    rest = ("inner_states", "muon", "inner_state")
    coefficients = (*rest, 0, "ns_coeffs")
    return (
        _adam(params, *adam, 0, of=lambda path, leaf: not _is_matrix(path, leaf))
        | _count(*adam, 2)
        | _count(*rest, 0)
        | {coefficients: array(("opt_state", *coefficients), (3,))}
        | _moments(params, *rest, 0, "mu", of=_is_matrix)
    )


def inject_hyperparams(params):
    rates = {
        ("hyperparams", name): array(("opt_state", "hyperparams", name), ())
        for name in ("learning_rate", "b1")
    }
    return _count() | rates | _adam(params, "inner_state", 0)


def multi_transform(params):
    """Matrices are trained, everything else is frozen."""
    return _adam(params, "inner_states", "trainable", "inner_state", 0, of=_is_matrix)


def skip_step(params):
    """MaxText's wrapper that skips a step whose loss or gradient is far off."""
    records = {
        (name,): array(("opt_state", name), (16,) if name != "is_skipped" else (), dtype)
        for name, dtype in (
            ("losses", "float32"),
            ("grad_norms", "float32"),
            ("is_skipped", "bool"),
        )
    }
    return _count() | records | _adam(params, "inner_state", 0) | _count("inner_state", 2)


def nested_chains(params):
    return _adam(params, 0, 1, 0) | _moments(params, 0, 2, "trace") | _count(3, 1)


OPTIMIZERS = {
    function.__name__: function
    for function in (
        adamw, adam_flat, clipped_adamw, sgd, sgd_momentum, stateless, lion, muon,
        inject_hyperparams, multi_transform, skip_step, nested_chains,
    )
}  # fmt: skip


# --- other variables --------------------------------------------------------------------------


def _modules_of(specs):
    """Module paths by what they are called in every layer: all layers have the same variables."""
    found = {}
    for path in specs:
        module = path[:-1]
        found.setdefault(tuple(part for part in module if isinstance(part, str)), set()).add(module)
    return found


def batch_stats_at(module):
    names = [("batch_stats", *module, name) for name in ("mean", "var")]
    return {name: array(("aux", *name), (7,)) for name in names}


def rngs_at(module, impl):
    stem = ("rngs", *module, "rngs", "dropout")
    count, key = (*stem, "count"), (*stem, "key")
    words = 4 if impl == "unsafe_rbg" else 2
    return {
        count: array(("aux", *count), (), "uint32"),
        key: array(("aux", *key), (words,), "uint32", prng_impl=impl),
    }


@st.composite
def variables(draw, specs, with_rngs):
    """Batch statistics and RNG state of some modules."""
    aux = {}
    for places in _modules_of(specs).values():
        kinds = ("none", "stats", "rngs") if with_rngs else ("none", "stats")
        kind = draw(st.sampled_from(kinds))
        impl = draw(st.sampled_from((None, "threefry2x32", "unsafe_rbg")))
        for module in sorted(places, key=str):
            if kind == "stats":
                aux |= batch_stats_at(module)
            elif kind == "rngs":
                aux |= rngs_at(module, impl)
    return aux


# --- whole states -----------------------------------------------------------------------------


@st.composite
def training_states(
    draw, step_dtype="int32", with_layers=True, with_rngs=True, optimizers=tuple(OPTIMIZERS)
):
    """What a run with some optimizer saved."""
    specs = draw(parameters(with_layers))
    params = params_of(specs)
    opt_state = OPTIMIZERS[draw(st.sampled_from(optimizers))](params)
    aux = draw(variables(specs, with_rngs))
    return TrainState(params, opt_state, array(("step",), (), step_dtype), aux)


@st.composite
def params_only_states(draw, with_layers=True):
    """Parameters, and nothing else."""
    return TrainState(params_of(draw(parameters(with_layers))))


@st.composite
def models(draw, with_layers=True, with_rngs=True):
    """Parameters and the other variables of a model, without step and optimizer."""
    specs = draw(parameters(with_layers))
    return TrainState(params_of(specs), aux=draw(variables(specs, with_rngs)))


def is_layer(key, place):
    """True where a canonical key numbers a layer, and not an element of a chain."""
    return isinstance(key[place], int) and place > 0 and key[place - 1] in LAYER_NAMES


def spelled_key(key, spelling):
    """A canonical key as it stands on disk where layers are apart."""
    stored = ()
    for place, part in enumerate(key):
        if is_layer(key, place):
            if spelling == "index":
                stored = (*stored, str(part))
            else:
                stored = (*stored[:-1], f"{stored[-1]}_{part}")
        else:
            stored = (*stored, part)
    return stored


def spelled(state, spelling):
    """A canonical state with its layers as they stand on disk when they are apart."""

    def tree(leaves):
        return {spelled_key(key, spelling): leaf for key, leaf in leaves.items()}

    opt_state = None if state.opt_state is None else tree(state.opt_state)
    return TrainState(tree(state.params), opt_state, state.step, tree(state.aux))


TINY = TrainState(
    {
        path: array(("params", *path), shape)
        for path, shape in ((("dense", "bias"), (3,)), (("dense", "kernel"), (2, 3)))
    },
    step=array(("step",), (), "int32"),
)
"""One dense layer, for tables written by hand."""


def tiny(optimizer=None, step_dtype="int32", aux=()):
    """The tiny model under an optimizer."""
    opt_state = None if optimizer is None else OPTIMIZERS[optimizer](TINY.params)
    step = None if step_dtype is None else array(("step",), (), step_dtype)
    return TrainState(TINY.params, opt_state, step, dict(aux))


# --- trees as text ----------------------------------------------------------------------------


def parse_key(text):
    """`opt_state/[0]/count` as a key: a number in brackets is an element of a sequence."""
    parts = text.split("/")
    return tuple(int(part[1:-1]) if re.fullmatch(r"\[\d+\]", part) else part for part in parts)


def table(text):
    """Lines `key  what`, where a `*` in a key stands for both parameters of the tiny model."""
    found = {}
    for line in text.strip().splitlines():
        key, what = line.split()
        if "*" in key:
            for path, leaf in (("dense/bias", "f32[3]"), ("dense/kernel", "f32[2,3]")):
                found[parse_key(key.replace("*", path))] = leaf
        else:
            found[parse_key(key)] = what
    return found


def told(tree):
    """A tree with its leaves in words: type and shape, PRNG implementation, Python numbers."""
    return {key: _told(leaf) for key, leaf in tree.items()}


def _told(leaf):
    if isinstance(leaf, Literal):
        return notation(leaf)
    source = leaf.of if isinstance(leaf, Cast) else leaf
    is_scalar = isinstance(source, Source) and source.kind == "scalar"
    impl = prng_impl_of(leaf)
    return notation(leaf) + (" scalar" if is_scalar else "") + (f" {impl}" if impl else "")


# --- a disk that is a dict --------------------------------------------------------------------


def values_of(view, stored):
    """The values of a view, element types aside, from those of the stored arrays by name."""
    match view:
        case Source(name):
            return stored[name]
        case Slot(of, axis, index):
            return np.take(values_of(of, stored), index, axis)
        case Stack(items, axis):
            return np.stack([values_of(item, stored) for item in items], axis)
        case Part(of, axis, start, stop):
            return values_of(of, stored).take(range(start, stop), axis)
        case Concat(items, axis):
            return np.concatenate([values_of(item, stored) for item in items], axis)
        case Moved(of, source, target):
            return np.moveaxis(values_of(of, stored), source, target)
        case Cast(of):
            return values_of(of, stored)


def first_values(tree):
    """A different number for every element of every stored array of a tree, by name."""
    stored, start = {}, 0
    for leaf in tree.values():
        if isinstance(leaf, Source):
            size = int(np.prod(leaf.shape))
            stored[leaf.name] = np.arange(start, start + size).reshape(leaf.shape)
            start += size
    return stored


def as_stored(key, leaf):
    """A leaf as it is found on disk after it was written at a key."""
    if isinstance(leaf, Literal):
        return leaf
    kind = "scalar" if _told(leaf).endswith(" scalar") else "array"
    return array(key, leaf.shape, dtype_of(leaf), kind=kind, prng_impl=prng_impl_of(leaf))


def written(tree, stored):
    """The tree as it is found on disk after it was written, and the values there."""
    values = {
        spell(key): values_of(leaf, stored)
        for key, leaf in tree.items()
        if not isinstance(leaf, Literal)
    }
    return {key: as_stored(key, leaf) for key, leaf in tree.items()}, values


def is_rng(key):
    """True for a key of RNG state, in whichever tree."""
    return "rngs" in key
