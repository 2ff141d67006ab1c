"""Two small models, each written in Linen and in NNX with the same names, and their training.

The transformer has three layers, apart (`layers_0..2`, `layers/0..2`) or stacked on axis 1 by
`nn.scan` and `nnx.vmap`; its dropout is there but switched off, since the two APIs draw different
random numbers. The convolutional network has batch statistics and other names.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

VOCABULARY, WIDTH, HEADS, LAYERS = 13, 16, 2, 3
DROPOUT = 0.1
STACKED = {nnx.Param: 1, ...: 0}
"""Where NNX keeps the layer axis: parameters as MaxText does, RNG state in front."""


class LinenLayer(nn.Module):
    """Attention and a feed-forward network, as the body of a scan: carry in, carry out."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        y = nn.LayerNorm(name="attention_norm")(x)
        x += nn.MultiHeadDotProductAttention(HEADS, name="attention")(y, mask=mask)
        y = nn.LayerNorm(name="mlp_norm")(x)
        y = nn.gelu(nn.Dense(2 * WIDTH, name="up")(y))
        y = nn.Dense(WIDTH, name="down")(y)
        return x + nn.Dropout(DROPOUT, deterministic=True)(y), None


class LinenTransformer(nn.Module):
    """Predicts the next token."""

    is_scanned: bool

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        mask = nn.make_causal_mask(tokens)
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        if self.is_scanned:
            scanned = nn.scan(
                LinenLayer,
                variable_axes={"params": 1},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=LAYERS,
            )
            x, _ = scanned(name="layers")(x, mask)
        else:
            for i in range(LAYERS):
                x, _ = LinenLayer(name=f"layers_{i}")(x, mask)
        return nn.Dense(VOCABULARY, name="head")(nn.LayerNorm(name="norm")(x))


class NnxLayer(nnx.Module):
    """The same layer in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, deterministic=True, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x += self.attention(self.attention_norm(x), mask=mask)
        return x + self.dropout(self.down(nnx.gelu(self.up(self.mlp_norm(x)))))


@nnx.vmap(in_axes=0, out_axes=nnx.StateAxes(STACKED))
def stacked_layers(rngs: nnx.Rngs) -> NnxLayer:
    """All layers as one, every parameter with a layer axis."""
    return NnxLayer(rngs)


@nnx.scan(in_axes=(nnx.Carry, nnx.StateAxes(STACKED), None), out_axes=nnx.Carry)
def run_stacked(x: jax.Array, layer: NnxLayer, mask: jax.Array) -> jax.Array:
    """All layers in turn."""
    return layer(x, mask)


def _split(rngs: nnx.Rngs) -> nnx.Rngs:
    """Random numbers for each layer; a way that flax has since 0.12.1, and the one before."""
    return rngs.split(LAYERS) if hasattr(nnx.Rngs, "split") else rngs.fork(split=LAYERS)


class NnxTransformer(nnx.Module):
    """The same transformer in NNX."""

    def __init__(self, is_stacked: bool, *, rngs: nnx.Rngs) -> None:
        self.is_stacked = is_stacked
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        if is_stacked:
            self.layers = stacked_layers(_split(rngs))
        else:
            self.layers = nnx.List([NnxLayer(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        mask = nnx.make_causal_mask(tokens)
        x = self.embed(tokens)
        if self.is_stacked:
            x = run_stacked(x, self.layers, mask)
        else:
            for layer in self.layers:
                x = layer(x, mask)
        return self.head(self.norm(x))


class LinenCnn(nn.Module):
    """Ten classes of pictures of 6 by 6."""

    @nn.compact
    def __call__(self, pictures: jax.Array, is_training: bool = True) -> jax.Array:
        x = nn.Conv(4, (3, 3), name="stem")(pictures)
        x = nn.BatchNorm(use_running_average=not is_training, name="stem_norm")(x)
        x = nn.Conv(6, (3, 3), strides=2, name="body")(nn.relu(x))
        x = nn.BatchNorm(use_running_average=not is_training, name="body_norm")(x)
        return nn.Dense(10, name="classes")(nn.relu(x).mean(axis=(1, 2)))


class NnxCnn(nnx.Module):
    """The same network in NNX."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.stem_norm = nnx.BatchNorm(4, rngs=rngs)
        self.body = nnx.Conv(4, 6, (3, 3), strides=2, rngs=rngs)
        self.body_norm = nnx.BatchNorm(6, rngs=rngs)
        self.classes = nnx.Linear(6, 10, rngs=rngs)

    def __call__(self, pictures: jax.Array, is_training: bool = True) -> jax.Array:
        is_evaluated = not is_training
        x = self.stem_norm(self.stem(pictures), use_running_average=is_evaluated)
        x = self.body_norm(self.body(nnx.relu(x)), use_running_average=is_evaluated)
        return self.classes(nnx.relu(x).mean(axis=(1, 2)))


class LinenTower(nn.Module):
    """A few dense layers, for the optimizers."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        for name in ("lower", "upper"):
            x += nn.gelu(nn.Dense(WIDTH, name=name)(x))
        return nn.Dense(VOCABULARY, name="head")(x)


class NnxTower(nnx.Module):
    """The same dense layers in NNX."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.lower = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.upper = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        x += nnx.gelu(self.lower(x))
        x += nnx.gelu(self.upper(x))
        return self.head(x)


class BatchNormState(TrainState):
    """A `TrainState` with batch statistics, as flax's own examples have it."""

    batch_stats: Any = None


@cache
def adamw_with_clipping() -> optax.GradientTransformation:
    """The chain that most training programs use."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1))


def tokens(step: int) -> tuple[jax.Array, jax.Array]:
    """The batch of one step: texts, and what follows each of their tokens."""
    texts = np.random.default_rng(step).integers(VOCABULARY, size=(4, 9)).astype(np.int32)
    return jnp.asarray(texts[:, :-1]), jnp.asarray(texts[:, 1:])


def pictures(step: int) -> tuple[jax.Array, jax.Array]:
    """The batch of one step: pictures and their classes."""
    random = np.random.default_rng(step)
    shown = random.normal(size=(8, 6, 6, 1)).astype(np.float32)
    return jnp.asarray(shown), jnp.asarray(random.integers(10, size=8))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over all labels."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, static_argnums=0)
def _init(model: nn.Module, sample: Any) -> Any:
    return model.init(jax.random.key(0), sample)


def linen_state(model: nn.Module, tx: optax.GradientTransformation, sample: Any) -> TrainState:
    """A new training state; `params` holds what `init` gave, its `params` level included."""
    variables = dict(_init(model, sample))
    batch_stats = variables.pop("batch_stats", None)
    if batch_stats is None:
        return TrainState.create(apply_fn=model.apply, params=variables, tx=tx)
    return BatchNormState.create(
        apply_fn=model.apply, params=variables, tx=tx, batch_stats=batch_stats
    )


@jax.jit
def _linen_step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        if not isinstance(state, BatchNormState):
            return cross_entropy(state.apply_fn(params, batch[0]), batch[1]), {}
        variables = {**params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(variables, batch[0], mutable=["batch_stats"])
        return cross_entropy(logits, batch[1]), updated

    (loss, updated), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, **updated), loss


@nnx.jit
def _nnx_step(model: Any, optimizer: nnx.Optimizer, batch: Any) -> jax.Array:
    def loss_of(model: Any) -> jax.Array:
        return cross_entropy(model(batch[0]), batch[1])

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


Batch = Callable[[int], tuple[jax.Array, jax.Array]]


def train_linen(state: TrainState, batch: Batch, steps: range) -> tuple[TrainState, list[float]]:
    """The state after the steps, and their losses."""
    losses = []
    for step in steps:
        state = jax.tree.map(np.asarray, state)  # one compilation, wherever the arrays come from
        state, loss = _linen_step(state.replace(step=np.int32(state.step)), batch(step))
        losses.append(float(loss))
    return state, losses


def _placed_afresh(leaf: Any) -> jax.Array:
    """The leaf as if it were new: one compilation, wherever it comes from."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jnp.asarray(np.asarray(leaf))


def train_nnx(model: Any, optimizer: nnx.Optimizer, batch: Batch, steps: range) -> list[float]:
    """The losses of the steps; model and optimizer change."""
    for live in (model, optimizer):
        nnx.update(live, jax.tree.map(_placed_afresh, nnx.state(live)))
    return [float(_nnx_step(model, optimizer, batch(step))) for step in steps]


def save(path: Path, tree: Any) -> Path:
    """Writes an item as the shortest Orbax program does."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def restore(path: Path) -> Any:
    """Reads an item as the shortest Orbax program does: no target, no options."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def restore_like(path: Path, target: Any) -> Any:
    """Reads an item into the structure, shapes, types and shardings of `target`, strictly."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


def nnx_states(model: Any, optimizer: nnx.Optimizer) -> dict[str, Any]:
    """What NNX programs give to Orbax: the `nnx-state` layout."""
    return {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}


def pure_dicts(model: Any, optimizer: nnx.Optimizer) -> dict[str, Any]:
    """What other NNX programs give to Orbax: the `nnx-pure` layout."""
    states = nnx_states(model, optimizer)
    return {name: nnx.to_pure_dict(state) for name, state in states.items()}


def load_states(path: Path, model: Any, optimizer: nnx.Optimizer, *, has_rngs: bool) -> None:
    """Restores an `nnx-state` checkpoint into a live model and optimizer, strictly."""
    kept = ... if has_rngs else nnx.Not(nnx.RngState)
    target = {"model": nnx.state(model, kept), "optimizer": nnx.state(optimizer)}
    restored = restore_like(path, target)
    nnx.update(model, restored["model"])
    nnx.update(optimizer, restored["optimizer"])


def load_pure_dicts(path: Path, model: Any, optimizer: nnx.Optimizer) -> None:
    """Restores an `nnx-pure` checkpoint into a live model and optimizer."""
    restored = restore(path)
    for live, name in ((model, "model"), (optimizer, "optimizer")):
        state = nnx.state(live)
        nnx.replace_by_pure_dict(state, restored[name], _replace)
        nnx.update(live, state)


def _replace(variable: nnx.Variable, value: Any) -> nnx.Variable:
    """Masked leaves are empty tuples in memory; Orbax gives them back as `None`."""
    return variable if value is None else variable.replace(value)
