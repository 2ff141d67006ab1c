"""The words by which programs call the parts of what they save; structure is asked first."""

import re
from collections.abc import Iterable
from functools import cache

from nnxconv.tree import Key

PARAMETERS = (
    *("params", "model", "weights", "parameters", "model_params", "variables", "net"),
    *("model_state_dict", "state_dict"),
)
"""What a subtree of parameters is usually called."""

STEPS = ("step", "global_step", "train_step", "_step")
"""What the number of steps done is called."""

COUNTS = (
    *("count", "mini_step", "notfinite_count", "step_count", "steps_since_sync"),
    *("step_counter", "iteration"),
)
"""Counters in optimizer states (optax, K-FAC, Keras)."""

UNMISTAKABLE = frozenset(
    (
        *("mu", "nu", "trace", "v_row", "v_col", "sum_of_squares", "nu_max", "exp_avg"),
        *("exp_avg_sq", "acc_grads", "diff_params_memory", "diff_updates_memory"),
        *("grad_ema", "grad_sq_ema"),
    )
)
"""Parameter-shaped trees in optimizer states (optax, flax.optim) whose names no module has.

`mu` alone may be one's.
"""

MOMENTS = UNMISTAKABLE | {
    *(
        "v",
        "m",
        "velocity",
        "velocities",
        "momentum",
        "momentums",
        "mu_hat",
        "nu_hat",
        "weights_memory",
    ),
    *("updates", "e_g", "e_x", "prev_grads", "prev_updates", "step_sizes", "ema", "z"),
    *("params0", "grad_sum", "grad_sq_sum"),
}
"""All such trees, those of optimizers written by hand too."""

INNER = ("inner_state", "inner_states", "inner_opt_state", "base_optimizer_state", "fast_state")
"""States within the states of optax's wrappers."""

COLLECTIONS = (
    *("batch_stats", "cache", "intermediates", "spectral_norm", "fp8_metas", "aqt", "nnx_aux"),
    *("_overwrite_with_gradient", "MoEBiasVar", "constants", "buffers", "net_state", "model_state"),
)
"""Collections of variables that belong to a model, and are not trained."""

OPTIMIZER = frozenset(
    ("opt", "opts", "optim", "optims", "optimizer", "optimizers", "optimiser", "optax")
)
"""The words in what an optimizer's state is called."""

_COPY = {"ema", "target", "best", "avg", "average", "averaged", "old", "prev", "previous"} | {
    *("emas", "targets", "averages", "copies", "snapshots"),
    *("copy", "slow", "teacher", "swa", "polyak", "frozen", "initial", "init", "backup", "shadow"),
}
_RNG = {"rng", "rngs", "key", "keys", "prng", "prngs", "seed", "random"}
WEIGHTS = frozenset(
    (
        *("kernel", "bias", "scale", "embedding", "weight", "weights", "w", "b", "offset"),
        *("lora_a", "lora_b", "embed", "pos_embed", "cls_token", "embedder"),
        *("qkv", "table", "logits"),
    )
)
"""Names that parameters have in many libraries."""

WEAK = frozenset(("w", "b", "offset", "weights", "table", "logits"))
"""Those of them that other things have as well: told by them are matrices alone."""


@cache
def tokens(name: str) -> frozenset[str]:
    """The words and numbers in a name.

    >>> sorted(tokens("disc_opt2"))
    ['2', 'disc', 'opt']
    """
    return frozenset(
        re.findall(r"[a-z]+|[0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    )


def words(key: Iterable[str | int]) -> set[str]:
    """The words and numbers in a key."""
    return set[str]().union(*(tokens(str(part)) for part in key))


def is_optimizers(name: str) -> bool:
    """True for what an optimizer's state is called: `opt_state`, `gen_opt`, `optimizer`."""
    return bool(tokens(name) & OPTIMIZER)


def is_copys(key: Key) -> bool:
    """True for what second copies of parameters are called: `ema_params`, `target`."""
    return bool(words(key) & _COPY)


def is_abbreviated(key: Key, optimizer: Key) -> bool:
    """True where an optimizer's name shortens a word of parameters, or they one of its.

    >>> is_abbreviated(("generator",), ("g_opt",)), is_abbreviated(("critic",), ("g_opt",))
    (True, False)
    """
    theirs = {word for word in words(optimizer) - OPTIMIZER - {"state"} if word.isalpha()}
    own = {word for word in words(key) if word.isalpha()}
    return any(a.startswith(b) or b.startswith(a) for a in own for b in theirs)


def copied(name: str) -> frozenset[str]:
    """What a second copy is one of, by its name.

    >>> sorted(copied("target_critic")), sorted(copied("target"))
    (['critic'], [])
    """
    return tokens(name) - _COPY


def is_gradients(name: str) -> bool:
    """True for what gradients are called: `grads`, `logdensity_grad`."""
    return bool(tokens(name) & {"grad", "grads", "gradient", "gradients"})


def is_moments(name: str) -> bool:
    """True for what programs call moments that they keep beside the parameters: `adam_m`."""
    if name == "ema":
        return False
    return name in MOMENTS or is_optimizers(name) or bool(tokens(name) & _MOMENT)


_MOMENT = {"moment", "moments", "momentum", "adam"}


def is_of_an_optimizer(name: str) -> bool:
    """True for a whole path in one name, as flattened trees have it, of an optimizer's state.

    >>> is_of_an_optimizer("opt_state.0.mu.dense.kernel"), is_of_an_optimizer("optimizer")
    (True, False)
    """
    first, *rest = name.replace("/", ".").split(".")
    return bool(rest) and is_optimizers(first)


def is_rngs(name: str) -> bool:
    """True for what keys are called: `rng`, `dropout_rng`, `key`."""
    return bool(tokens(name) & _RNG)


def is_numbered_weight(above: str | int, name: str | int) -> bool:
    """True for a variable as Keras numbers those of a layer: `dense/vars/0`."""
    return above == "vars" and str(name).isdecimal()


def is_weights(name: str) -> bool:
    """True for what parameters are called, also within names with dots: `block.0.weight`."""
    last = name.replace("/", ".").rpartition(".")[2]
    return last in WEIGHTS or bool(tokens(last) & WEIGHTS)
