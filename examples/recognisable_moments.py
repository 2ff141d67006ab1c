"""Checks a path of saving, converting and restoring end to end, optimizer included.

    python examples/recognisable_moments.py

The moments of a run are filled with values that every parameter tells by itself: `mu` with the
cosine and `nu` with the sine of 1000 times the parameter. Whatever then happens to the checkpoint,
`wrong_moments` needs nothing but the checkpoint to say whether each moment is still beside its
parameter: neighbouring layers, transposed kernels and swapped axes have other cosines.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState
from make_linen_checkpoint import Transformer

import nnxconv

FILLED = {"mu": np.cos, "nu": np.sin}


def recognisable(name, params):
    """A tree of moments that is told by the parameters."""
    return jax.tree.map(lambda leaf: FILLED[name](1000 * np.asarray(leaf)), params)


def with_recognisable_moments(state: TrainState) -> TrainState:
    """The training state, with the moments of Adam filled."""

    def filled(part):
        if not isinstance(part, optax.ScaleByAdamState):
            return part
        return part._replace(**{name: recognisable(name, state.params) for name in FILLED})

    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)  # noqa: E731
    return state.replace(opt_state=jax.tree.map(filled, state.opt_state, is_leaf=is_adam))


def wrong_moments(path: Path) -> tuple[list[str], int]:
    """Keys of a checkpoint's moments that do not belong to their parameters, and how many do."""
    tree = nnxconv.open(path)
    wrong, right = [], 0
    for key, moment in tree.items():
        for name, function in FILLED.items():
            _, found, module = key.partition(f".{name}.")
            if key.startswith("opt_state") and found:
                expected = function(1000 * tree[f"params.{module}"].read())
                if np.array_equal(moment.read(), expected):
                    right += 1
                else:
                    wrong.append(key)
    return wrong, right


def main(directory: Path) -> None:
    """Fills, saves, converts there and back, and looks after each step."""
    model = Transformer()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "linen", with_recognisable_moments(state))

    steps = (
        ("linen", "nnx", {"to": "nnx", "scan_layers": True}),
        ("nnx", "nnx-pure", {"to": "nnx-pure", "layer_axis": 0}),
        ("nnx-pure", "back", {"to": "linen", "scan_layers": False}),
    )
    for source, target, options in steps:
        nnxconv.convert(str(directory / source), str(directory / target), **options)
    for name in ("linen", "nnx", "nnx-pure", "back"):
        wrong, right = wrong_moments(directory / name)
        print(f"{name}: {right} moments belong to their parameters, {len(wrong)} do not")

    # A program that restores: the train state has them too
    restored = nnxconv.load(directory / "nnx-pure", like=jax.eval_shape(lambda: state))
    expected = with_recognisable_moments(state).opt_state
    same = jax.tree.map(np.array_equal, restored.opt_state, expected)
    print(f"restored: {'all moments' if jax.tree.all(same) else 'NOT all moments'} are there")

    # What a conversion looks like that forgets the moments' layers
    swapped = with_recognisable_moments(state)
    inside = dict(swapped.params["params"])
    inside["layers_0"], inside["layers_1"] = inside["layers_1"], inside["layers_0"]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "swapped", swapped.replace(params={"params": inside}))
    wrong, right = wrong_moments(directory / "swapped")
    print(f"swapped: {right} moments belong to their parameters, {len(wrong)} do not")
    print(f"first: {wrong[0]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
