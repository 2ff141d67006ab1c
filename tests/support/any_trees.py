"""Trees as people save them, generated from a seed: states in every place, and things beside.

Each leaf's role is known, because the tree is made of parts whose roles are known.
"""

import random
from dataclasses import dataclass, field

from nnxconv.layouts.recognition import CODECS
from nnxconv.state.train_state import TrainState
from nnxconv.tree.views import Literal, Source
from tests.support import states
from tests.support.states import array

MODULES = ("Dense_0", "Dense_1", "encoder", "head", "blocks", "a.b", "net/~/linear", "attention")
LEAVES = {"kernel": (4, 5), "bias": (5,), "scale": (4,), "embedding": (7, 4)}
LAYOUTS = ("linen", "nnx", "nnx-state", "nnx-pure")
BUNDLES = ("model_state", "state", "train_state", "agent", "run", "checkpoint")
ODD_ROOTS = {
    "linen": (("params", ("params", "model", "net")), ("opt_state", ("optimizer", "opt", "optim"))),
    "nnx-state": (("model", ("params", "net", "model")), ("optimizer", ("opt", "opt_state"))),
    "nnx-pure": (("model", ("net", "model")), ("optimizer", ("opt", "train_opt"))),
}
COPIES = ("ema", "ema_params", "target_params", "best_params")


@dataclass
class Made:
    """A tree, the role of every leaf in it, and where its states stand."""

    tree: dict = field(default_factory=dict)
    roles: dict = field(default_factory=dict)
    states: dict = field(default_factory=dict)

    def add(self, key, leaf, role):
        self.tree[key] = renamed(leaf, key)
        self.roles[key] = role


def renamed(leaf, key):
    """The leaf as it is stored at a key."""
    return leaf if isinstance(leaf, Literal) else states.as_stored(key, leaf)


def parameters(rng, width):
    """Modules with arrays, some of them in numbered layers; shapes tell models apart."""
    found = {}
    for module in rng.sample(MODULES, rng.randint(1, 4)):
        path = (module,) if rng.random() < 0.6 else (module, rng.choice(("mlp", "core")))
        for name in rng.sample(sorted(LEAVES), rng.randint(1, 3)):
            found[(*path, name)] = tuple(size + width for size in LEAVES[name])
    if rng.random() < 0.4:
        count = rng.randint(2, 3)
        found |= {
            ("layers", index, "mlp", name): tuple(size + width for size in LEAVES[name])
            for index in range(count)
            for name in ("kernel", "bias")
        }
    if not any(path[-1] == "kernel" for path in found):
        found[("out", "kernel")] = (4 + width, 5 + width)
    return {path: array(("params", *path), shape) for path, shape in found.items()}


def spelled(tree, layout):
    """Layers apart as a layout spells them: `layers_0`, or `layers/0`."""
    return {states.spelled_key(key, CODECS[layout].spelling): leaf for key, leaf in tree.items()}


def state(rng, layout, width, *, has_optimizer):
    """A training state, its layers spelled as the layout has them."""
    params = spelled(parameters(rng, width), layout)
    aux = {}
    if rng.random() < 0.3:
        module = next(iter(params))[:-1]
        for name in ("mean", "var"):
            aux[("batch_stats", *module, name)] = array(("x",), (4 + width,))
    if not has_optimizer:
        return TrainState(params, aux=aux)
    opt_state = rng.choice(list(states.OPTIMIZERS.values()))(params)
    dtype = "uint32" if CODECS[layout].family == "nnx" else "int32"
    return TrainState(params, opt_state, array(("step",), (), dtype), aux)


ROLE_OF = {"params": "parameters", "opt_state": "optimizer", "step": "step", "aux": "variables"}


def encoded(one, layout):
    """The state's tree in a layout, and the role of each of its keys."""
    codec = CODECS[layout]
    tree = codec.encode(one, codec.default_form(one)).tree
    by_name = {
        leaf.name: ROLE_OF[key[0]]
        for key, leaf in named(one).leaves().items()
        if isinstance(leaf, Source)
    }
    marked = codec.encode(named(one), codec.default_form(one)).tree
    roles = {
        key: by_name[leaf.name] if isinstance(leaf, Source) else "optimizer"
        for key, leaf in marked.items()
    }
    return tree, roles


def named(one):
    """The state, each array called after its canonical key."""

    def after(head, tree):
        return {
            key: leaf if isinstance(leaf, Literal) else array((*head, *key), leaf.shape, leaf.dtype)
            for key, leaf in tree.items()
        }

    opt_state = None if one.opt_state is None else after(("opt_state",), one.opt_state)
    step = None if one.step is None else array(("step",), (), one.step.dtype)
    return TrainState(after(("params",), one.params), opt_state, step, after(("aux",), one.aux))


def moved(tree, old, new):
    return {(new, *k[1:]) if k[:1] == (old,) else k: leaf for k, leaf in tree.items()}


def extras(rng, made, at):
    """What stands beside a state, and belongs to none."""
    things = {
        "config": {("dim",): scalar("int64"), ("lr",): scalar("float64"), ("name",): text()},
        "metrics": {
            ("loss", "total"): array(("x",), ()),
            ("loss", "count"): array(("x",), (), "int32"),
        },
        "epoch": {(): scalar("int64")},
        "best_loss": {(): scalar("float64")},
        "dynamic_scale": {("fin_steps",): scalar("int64"), ("scale",): scalar("float64")},
        "history": {(0,): array(("x",), (9,)), (1,): array(("x",), (9,), "int32")},
        "dropout_rng": {(): array(("x",), (2,), "uint32")},
    }
    for name in rng.sample(sorted(things), rng.randint(0, 3)):
        role = "rng" if name == "dropout_rng" else "other"
        for key, leaf in things[name].items():
            made.add((*at, name, *key), leaf, role)


def scalar(dtype):
    return array(("x",), (), dtype, kind="scalar")


def text():
    return Literal("string", "dense")


def one_state(rng, made, at, width=0, has_copies=True):
    """A state below a key, in some layout, with odd roots or usual ones; and copies beside it."""
    layout = rng.choice(LAYOUTS)
    has_optimizer = rng.random() < 0.85
    one = state(rng, layout, width, has_optimizer=has_optimizer)
    if not has_optimizer:
        layout = "linen-variables" if CODECS[layout].family == "linen" else layout
    tree, roles = encoded(one, layout)
    if not has_optimizer and layout in ("nnx", "nnx-pure"):
        tree, roles = ({("model", *k): v for k, v in x.items()} for x in (tree, roles))
    has_moments = any(len(key) > 2 for key in one.opt_state or {})
    if has_moments and layout in ODD_ROOTS and rng.random() < 0.4:
        for old, names in ODD_ROOTS[layout]:
            new = rng.choice(names)
            if all(key[0] != new for key in tree):
                tree, roles = moved(tree, old, new), moved(roles, old, new)
    for key, leaf in tree.items():
        made.add((*at, *key), leaf, roles[key])
    made.states[at] = one
    if has_copies and has_moments and rng.random() < 0.4:
        copy = rng.choice(COPIES)
        where = "params" if layout == "linen" else "model"
        params = {k: v for k, v in tree.items() if roles[k] == "parameters" and k[0] == where}
        for key, leaf in params.items():
            made.add((*at, copy, *key[1:]), leaf, "variables")


def generate(seed):
    """A tree, from a seed."""
    rng = random.Random(seed)
    made = Made()
    kind = rng.choice(("root", "below", "deep", "two", "sequence"))
    if kind == "root":
        one_state(rng, made, ())
        extras(rng, made, ())
    elif kind == "below":
        one_state(rng, made, (rng.choice(BUNDLES),))
        extras(rng, made, ())
    elif kind == "deep":
        one_state(rng, made, ("agent", rng.choice(("actor", "learner"))))
        extras(rng, made, ("agent",))
    elif kind == "two":
        for width, name in enumerate(("generator", "discriminator")):
            one_state(rng, made, (name,), width=width, has_copies=False)
        extras(rng, made, ())
    else:
        one_state(rng, made, (0,))
        for index, leaf in enumerate((scalar("int64"), array(("x",), (3,), "int32"))):
            made.add((1 + index,), leaf, "other")
    return made
