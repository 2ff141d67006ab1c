"""A MaxText run goes from Linen to NNX and back, with the losses of a run that was not moved.

    python examples/maxtext_there_and_back.py

MaxText itself is not needed: a small decoder with its names stands for it, in Linen and in NNX.
Which layout a version of MaxText reads:

    Linen runs, all versions            linen      no `nnx_aux` beside the parameters
    pure_nnx, since May 2026            maxtext    RNG state in `nnx_aux`; made anew if missing
    the earlier NNX branch              nnx-pure   RNG state in `model`, from a template: `like`
    serving, scan_layers=false          linen or nnx, params_only, bfloat16, layers apart

`scan_layers` must be that of the configuration: stacked on axis 1, or apart as `layers_0`, ...
"""

import tempfile
from pathlib import Path

import jax
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from train_linen_continue_in_nnx import batch, linen_step, nnx_step

import nnxconv

VOCABULARY, WIDTH, MLP, LAYERS = 16, 32, 64, 3
TX = optax.adamw(optax.cosine_decay_schedule(1e-2, 100))
STACKED = {nnx.Param: 1, ...: 0}
"""Parameters have their layers on axis 1 and RNG state on axis 0, as MaxText has it."""


class LinenMlp(nn.Module):
    """`decoder.layers.mlp`."""

    @nn.compact
    def __call__(self, x):
        wi_0, wi_1 = (nn.Dense(MLP, use_bias=False, name=name) for name in ("wi_0", "wi_1"))
        return nn.Dense(WIDTH, use_bias=False, name="wo")(nn.silu(wi_0(x)) * wi_1(x))


class LinenLayer(nn.Module):
    """`decoder.layers`."""

    @nn.compact
    def __call__(self, x, _):
        return x + LinenMlp(name="mlp")(nn.RMSNorm(name="pre_self_attention_layer_norm")(x)), None


class LinenDecoder(nn.Module):
    """`decoder`, with `scan_layers=true`."""

    @nn.compact
    def __call__(self, x):
        scanned = nn.scan(
            LinenLayer, variable_axes={"params": 1}, split_rngs={"params": True}, length=LAYERS
        )
        x = nn.RMSNorm(name="decoder_norm")(scanned(name="layers")(x, None)[0])
        return nn.Dense(VOCABULARY, use_bias=False, name="logits_dense")(x)


class LinenModel(nn.Module):
    """The whole of it."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH, name="token_embedder")(tokens)
        return LinenDecoder(name="decoder")(x)


class NnxMlp(nnx.Module):
    """`decoder.layers.mlp`."""

    def __init__(self, rngs: nnx.Rngs):
        self.wi_0 = nnx.Linear(WIDTH, MLP, use_bias=False, rngs=rngs)
        self.wi_1 = nnx.Linear(WIDTH, MLP, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(MLP, WIDTH, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.wo(nnx.silu(self.wi_0(x)) * self.wi_1(x)))


class NnxLayer(nnx.Module):
    """`decoder.layers`."""

    def __init__(self, rngs: nnx.Rngs):
        self.pre_self_attention_layer_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.mlp = NnxMlp(rngs)

    def __call__(self, x):
        return x + self.mlp(self.pre_self_attention_layer_norm(x))


class NnxDecoder(nnx.Module):
    """`decoder`, with `scan_layers=true`."""

    def __init__(self, rngs: nnx.Rngs):
        make = nnx.vmap(NnxLayer, in_axes=0, out_axes=nnx.StateAxes(STACKED))
        self.layers = make(rngs.split(LAYERS))
        self.decoder_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.logits_dense = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, x):
        axes = (nnx.Carry, nnx.StateAxes(STACKED))
        run = nnx.scan(lambda x, layer: layer(x), in_axes=axes, out_axes=nnx.Carry)
        return self.logits_dense(self.decoder_norm(run(x, self.layers)))


class NnxModel(nnx.Module):
    """The whole of it."""

    def __init__(self, rngs: nnx.Rngs):
        self.token_embedder = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.decoder = NnxDecoder(rngs)

    def __call__(self, tokens):
        return self.decoder(self.token_embedder(tokens))


@jax.jit
def new_linen() -> TrainState:
    """A Linen run that starts."""
    model = LinenModel()
    params = model.init(jax.random.key(0), batch(0))
    return TrainState.create(apply_fn=model.apply, params=params, tx=TX)


def new_nnx() -> tuple[NnxModel, nnx.Optimizer]:
    """An NNX run that starts."""
    model = NnxModel(nnx.Rngs(1))
    return model, nnx.Optimizer(model, TX, wrt=nnx.Param)


def save(directory: Path, step: int, tree) -> None:
    """A step as MaxText saves it: the item `items`, and whether layers are stacked."""
    handlers = {"items": ocp.PyTreeCheckpointHandler()}
    with ocp.CheckpointManager(directory, item_handlers=handlers) as manager:
        items = ocp.args.Composite(items=ocp.args.PyTreeSave(tree))
        manager.save(step, args=items, custom_metadata={"scan_layers": True})


def pure_dicts(model: NnxModel, optimizer: nnx.Optimizer):
    """What the earlier NNX branch saves."""
    return {
        "model": nnx.to_pure_dict(nnx.state(model)),
        "optimizer": nnx.to_pure_dict(nnx.state(optimizer)),
    }


def restore(item: Path, like):
    """What `like` is, with the values of an item, as programs restore it."""
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(item, item=like, restore_args=arguments)


def told(result) -> str:
    """The layout that was written, and what stands at its root."""
    roots = sorted({key[0] for key in result.conversion.tree})
    return f"{result.conversion.layout}: {', '.join(roots)}"


def main(directory: Path) -> None:
    """Three steps in Linen, three in NNX, three in Linen."""
    linen_run, template, there = directory / "linen", directory / "template", directory / "nnx"

    # 1. A Linen run, and what it would have gone on with
    state, losses = new_linen(), []
    for step in range(9):
        if step == 3:
            save(linen_run, 3, state)
        state, loss = linen_step(state, batch(step))
        losses.append(float(loss))

    # 2. For the earlier NNX branch: a new run of it, saved once, gives the RNG state
    save(template, 0, pure_dicts(*new_nnx()))
    result = nnxconv.convert(str(linen_run), str(there), like=str(template), verify=True)
    print(told(result))

    # 3. It is restored as that branch does, and goes on
    model, optimizer = new_nnx()
    restored = restore(there / "3/items", pure_dicts(model, optimizer))
    for live, name in ((model, "model"), (optimizer, "optimizer")):
        variables = nnx.state(live)
        nnx.replace_by_pure_dict(variables, restored[name])
        nnx.update(live, variables)
    for step in range(3, 6):
        loss = nnx_step(model, optimizer, batch(step))
        print(f"step {step}  linen {losses[step]:.5f}  nnx {loss:.5f}")

    # 4. What it saves becomes what `pure_nnx` reads since May 2026, RNG state and all ...
    save(directory / "nnx_later", 6, pure_dicts(model, optimizer))
    for layout in ("maxtext", "linen"):
        target = str(directory / f"for_{layout}")
        result = nnxconv.convert(str(directory / "nnx_later"), target, to=layout, verify=True)
        print(told(result))

    # 5. ... and what a Linen run reads, which has no place for `nnx_aux`; it goes on there
    state = restore(directory / "for_linen/6/items", new_linen())
    for step in range(6, 9):
        state, loss = linen_step(state, batch(step))
        print(f"step {step}  linen {losses[step]:.5f}  back in linen {loss:.5f}")

    # 6. For serving: parameters alone, in bfloat16, with layers apart
    options = {"params_only": True, "dtype": "bfloat16", "scan_layers": False}
    source, target = directory / "for_maxtext", directory / "serving"
    nnxconv.convert(str(source), str(target), to="linen", **options)
    for array in nnxconv.open(target).filter("*.wo.kernel").values():
        print(array)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
