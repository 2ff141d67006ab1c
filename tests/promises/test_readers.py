"""What Orbax's own readers make of converted checkpoints, whoever wrote the source and how."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.experimental import v1

import nnxconv
from tests.support.models import restore, restore_like
from tests.support.trees import entries, same_bits, shape_tree, values

pytestmark = pytest.mark.filterwarnings(
    # Orbax says so for every jax.Array that is restored without a target
    "ignore:Sharding info not provided:UserWarning"
)

LAYERS = 3
FORMATS = pytest.mark.parametrize(
    ("use_ocdbt", "use_zarr3"),
    list(product((True, False), (False, True))),
    ids=["ocdbt-zarr2", "ocdbt-zarr3", "directories-zarr2", "directories-zarr3"],
)


def sharded(array: Any, *axes: str | None) -> jax.Array:
    """The array over eight devices, `x` and `y` being the axes of the mesh."""
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))


def numbers(*shape: int) -> np.ndarray:
    """Values that are all different and differ from shape to shape."""
    return (np.arange(np.prod(shape)) + 0.1 * len(shape)).reshape(shape).astype(np.float32)


def weights(is_stacked: bool) -> dict[str, Any]:
    """A tiny decoder: an embedding and three layers, sharded over eight devices."""
    embed = sharded(numbers(8, 16), "x")
    up, norm = numbers(16, LAYERS, 32), numbers(32, LAYERS)
    if is_stacked:
        layers = {"up": {"kernel": sharded(up, "x", None, "y")}, "norm": sharded(norm, "y")}
        return {"embed": embed, "layers": layers}
    layers = {
        f"layers_{i}": {"up": {"kernel": sharded(up[:, i], "x", "y")}, "norm": sharded(norm[:, i])}
        for i in range(LAYERS)
    }
    return {"embed": embed, **layers}


def linen(is_stacked: bool = False) -> dict[str, Any]:
    """What a sharded Linen job saves."""
    params = weights(is_stacked)
    moments = jax.tree.map(jnp.negative, params)
    return {
        "step": jnp.int32(7),
        "params": {"params": params},
        "opt_state": [{"count": jnp.int32(7), "mu": {"params": moments}}, None],
    }


def save(path: Path, tree: Any, *, use_ocdbt: bool = True, use_zarr3: bool = False) -> Path:
    with ocp.PyTreeCheckpointer(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3) as checkpointer:
        checkpointer.save(path, tree)
    return path


def save_root(root: Path, tree: Any, step: int = 7) -> Path:
    """A root of steps as MaxText has it: `items`, the state of the data iterator, `scan_layers`."""
    with ocp.CheckpointManager(root, item_names=("items", "iter")) as manager:
        args = ocp.args.Composite(
            items=ocp.args.PyTreeSave(tree), iter=ocp.args.JsonSave({"next": 40, "seed": [1, 2]})
        )
        manager.save(step, args=args, custom_metadata={"scan_layers": False, "note": "kept"})
        manager.wait_until_finished()
    return root


def told(leaf: Any) -> Any:
    """Everything that a reader sees in a leaf, its bits included; devices do not count."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        return "key", str(jax.random.key_impl(leaf)), data.shape, data.tobytes()
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        array = np.asarray(leaf)
        return "array", array.dtype.name, array.shape, array.tobytes()
    return type(leaf).__name__, leaf


def look(tree: Any) -> Any:
    """A tree of what is in it, containers as they are."""
    return jax.tree.map(told, tree, is_leaf=lambda x: x is None)


def metadata(item: Path) -> dict[str, Any]:
    return json.loads((item / "_METADATA").read_text())


@pytest.mark.sample(1)
@FORMATS
@pytest.mark.parametrize("is_stacked", [False, True], ids=["apart", "stacked"])
def test_a_sharded_source_keeps_its_storage_and_its_bits(
    use_ocdbt, use_zarr3, is_stacked, tmp_path
):
    source = save(tmp_path / "a", linen(is_stacked), use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure", scan_layers=not is_stacked)
    written = metadata(tmp_path / "b")
    assert (written["use_ocdbt"], written["use_zarr3"]) == (use_ocdbt, use_zarr3)
    assert (tmp_path / "b" / "manifest.ocdbt").exists() == use_ocdbt
    converted = restore(tmp_path / "b")
    kernels = numbers(16, LAYERS, 32)
    moments = converted["optimizer"]["opt_state"]["0"]["mu"]
    for tree, sign in ((converted["model"], 1), (moments, -1)):
        assert same_bits(np.asarray(tree["embed"]), sign * numbers(8, 16))
        layers = tree["layers"]
        if is_stacked:
            found = np.stack([layers[str(i)]["up"]["kernel"] for i in range(LAYERS)], axis=1)
        else:
            found = layers["up"]["kernel"]
        assert same_bits(np.asarray(found), sign * kernels)
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), scan_layers=is_stacked)
    assert shape_tree(tmp_path / "c") == shape_tree(source)
    before, after = values(source), values(tmp_path / "c")
    assert all(same_bits(before[path], after[path]) for path in before)


EVERY_TYPE = {
    "float64": np.array([1 / 3, np.pi, -0.0, np.nan, np.inf]),
    "float32": numbers(4, 5),
    "float16": np.array([1, 65504, 6e-8], np.float16),
    "bfloat16": jnp.array([[1.5, -3e38], [0.0, 1e-40]], jnp.bfloat16),
    "float8_e4m3fn": jnp.array([0.5, -448, 1], jnp.float8_e4m3fn),
    "float8_e5m2": jnp.array([0.5, -57344, jnp.inf], jnp.float8_e5m2),
    "int64": np.array([2**62 + 1, -(2**63)]),
    "uint64": np.array([2**64 - 1], np.uint64),
    "int32": jnp.array([[2**31 - 1], [-(2**31)]], jnp.int32),
    "int8": np.array([-128, 127], np.int8),
    "uint8": np.array([0, 255], np.uint8),
    "int4": jnp.array([-8, 7, 1, 0, -1], jnp.int4),
    "bool": np.array([[True, False], [False, True]]),
    "complex64": jnp.array([1 + 2j, -0.5j], jnp.complex64),
    "complex128": np.array([1 / 3 + 2j]),
    "zero_dimensional": jnp.float32(2.5),
    "in_fortran_order": np.asfortranarray(numbers(3, 4)),
    "int": 2**40,
    "float": 0.1,
    "text": "two words, ünïcode",
    "nothing": None,
    "empty_dict": {},
    "empty_list": [],
    "empty_tuple": (),
    "with.dots.in.it": {"kernel": numbers(2)},
    "with/slashes/in/it": {"kernel": numbers(3)},
    "0": {"kernel": numbers(4)},
    "007": {"kernel": numbers(6)},
    "with space": numbers(1),
}


def of_every_type() -> dict[str, Any]:
    """A Linen state whose parameters are of every type and have every kind of key."""
    moments = {name: EVERY_TYPE[name] for name in ("float32", "float64", "bfloat16", "0")}
    return {
        "step": jnp.int32(7),
        "params": {"params": {"block": EVERY_TYPE, "12": {"kernel": numbers(5)}}},
        "opt_state": [{"mu": {"params": {"block": moments}}}],
    }


@pytest.mark.sample(3)
@FORMATS
@pytest.mark.parametrize("layout", ["linen", "nnx", "nnx-pure", "nnx-state", "maxtext"])
def test_every_type_and_every_kind_of_key_survives(use_ocdbt, use_zarr3, layout, tmp_path):
    source = save(tmp_path / "a", of_every_type(), use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    nnxconv.convert(str(source), str(tmp_path / "b"), to=layout)
    converted = restore(tmp_path / "b")
    where = converted["params"]["params"] if layout in ("linen", "maxtext") else converted["model"]
    if layout in ("nnx", "nnx-state"):
        where = without_wrappers(where)
    assert look(where["block"]) == look(restore(source)["params"]["params"]["block"])
    assert look(where["12"]) == look({"kernel": numbers(5)})


def without_wrappers(tree: Any) -> Any:
    if isinstance(tree, dict) and set(tree) == {"value"}:
        return tree["value"]
    return {k: without_wrappers(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


@pytest.mark.sample(2)
@FORMATS
@pytest.mark.parametrize("layout", ["nnx", "nnx-pure", "nnx-state", "maxtext"])
def test_every_type_comes_back_bit_for_bit(use_ocdbt, use_zarr3, layout, tmp_path):
    source = save(tmp_path / "a", of_every_type(), use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    nnxconv.convert(str(source), str(tmp_path / "b"), to=layout)
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), to="linen")
    assert shape_tree(tmp_path / "c") == shape_tree(source)
    before, after = values(source), values(tmp_path / "c")
    assert [path for path in before if not same_bits(before[path], after[path])] == []
    assert look(restore(tmp_path / "c")) == look(restore(source))


KEYS = {
    "threefry2x32": jax.random.split(jax.random.key(1), LAYERS),
    "rbg": jax.random.split(jax.random.key(2, impl="rbg"), LAYERS),
    "unsafe_rbg": jax.random.split(jax.random.key(3, impl="unsafe_rbg"), LAYERS),
}


def with_keys() -> dict[str, Any]:
    """An NNX state, its layers stacked, with typed PRNG keys of three kinds and a raw one."""
    rngs = {
        name: {"count": jnp.full(LAYERS, 5, jnp.uint32), "key": key} for name, key in KEYS.items()
    }
    layers = {"up": {"kernel": jnp.asarray(numbers(16, LAYERS, 32))}, "dropout": {"rngs": rngs}}
    raw = {"count": jnp.uint32(1), "key": jax.random.PRNGKey(4)}
    return {
        "model": {"layers": layers, "rngs": {"params": raw}},
        "optimizer": {"step": jnp.uint32(7)},
    }


@pytest.mark.sample(4)
@FORMATS
@pytest.mark.parametrize("layout", ["nnx-pure", "nnx", "nnx-state", "maxtext"])
def test_typed_keys_are_restored_as_typed_keys(use_ocdbt, use_zarr3, layout, tmp_path):
    tree = with_keys()
    source = save(tmp_path / "a", tree, use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    nnxconv.convert(str(source), str(tmp_path / "b"), to=layout)
    restored = restore(tmp_path / "b")
    if layout == "maxtext":
        found = restored["nnx_aux"]["model"]
        rngs = found["layers"]["dropout"]["rngs"]
    else:
        found = without_wrappers(restored["model"])
        rngs = found["layers"]["dropout"]["rngs"]
    assert look(rngs) == look(tree["model"]["layers"]["dropout"]["rngs"])
    assert look(found["rngs"]) == look(tree["model"]["rngs"])


@pytest.mark.sample(2)
@FORMATS
def test_typed_keys_of_a_stack_become_one_key_for_each_layer_and_back(
    use_ocdbt, use_zarr3, tmp_path
):
    source = save(tmp_path / "a", with_keys(), use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure", scan_layers=False)
    layers = restore(tmp_path / "b")["model"]["layers"]
    for i in range(LAYERS):
        for name, key in KEYS.items():
            rng = layers[str(i)]["dropout"]["rngs"][name]
            assert told(rng["key"]) == told(key[i])
            assert told(rng["count"]) == told(np.uint32(5))
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), to="nnx-pure", scan_layers=True)
    assert look(restore(tmp_path / "c")) == look(restore(source))


READ_ON_ONE_DEVICE = """
import sys
from pathlib import Path
import jax
from orbax.checkpoint.experimental import v1
from tests.support.models import restore
from tests.promises.test_readers import look

assert jax.device_count() == 1
for path in sys.argv[1:]:
    print(repr(look(restore(Path(path)))))
print(repr(look(v1.load(sys.argv[1]))))
"""


@pytest.mark.full
def test_what_eight_devices_wrote_is_restored_on_one(tmp_path):
    trees = {
        "linen": (linen(), {"to": "nnx-pure", "scan_layers": True}),
        "types": (of_every_type(), {"to": "nnx-state"}),
        "keys": (with_keys(), {"to": "nnx-pure", "scan_layers": False}),
    }
    targets = []
    for name, (tree, options) in trees.items():
        source = save(tmp_path / name, tree, use_zarr3=name == "keys")
        targets.append(tmp_path / f"{name}-converted")
        nnxconv.convert(str(source), str(targets[-1]), **options)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONHASHSEED": "0",
    }
    # only the reader of typed keys may speak of shardings
    quiet = ["-W", "error", "-W", "ignore:Sharding info not provided:UserWarning"]
    run = subprocess.run(
        [sys.executable, *quiet, "-c", READ_ON_ONE_DEVICE, *map(str, targets)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    expected = [repr(look(restore(target))) for target in targets]
    assert run.stdout.splitlines() == [*expected, expected[0]]


def test_a_restore_without_arguments_says_nothing_of_shardings(tmp_path, recwarn):
    nnxconv.convert(str(save(tmp_path / "a", linen())), str(tmp_path / "b"))
    recwarn.clear()
    restore(tmp_path / "b")
    assert [str(warning.message) for warning in recwarn] == []


def sharded_target(tree: Any) -> Any:
    """Shapes, types and shardings, the last axis of every array over `y` where it can be."""
    mesh = jax.make_mesh((4, 2), ("x", "y"))

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        can = leaf.ndim and leaf.shape[-1] % 2 == 0
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "y") if can else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)


def test_the_standard_checkpointer_restores_onto_the_shardings_that_it_is_given(tmp_path):
    nnxconv.convert(str(save(tmp_path / "a", linen())), str(tmp_path / "b"), to="nnx-state")
    plain = restore(tmp_path / "b")
    target = sharded_target(plain)
    restored = restore_like(tmp_path / "b", target)
    assert look(restored) == look(plain)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_the_standard_checkpointer_casts_as_its_target_asks(tmp_path):
    nnxconv.convert(str(save(tmp_path / "a", linen())), str(tmp_path / "b"), to="nnx-pure")
    target = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, ml_dtypes.bfloat16)
            if leaf.dtype == np.float32
            else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        ),
        restore(tmp_path / "b"),
    )
    restored = restore_like(tmp_path / "b", target)
    assert restored["model"]["embed"].dtype == jnp.bfloat16


V0_READERS = {
    "PyTreeCheckpointer": lambda path: restore(path),
    "StandardCheckpointer": lambda path: restore_like(path, None),
    "Checkpointer of arrays as numpy": lambda path: as_numpy(path),
}


def as_numpy(path: Path) -> Any:
    """A restore that asks for numpy arrays, as export scripts do."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))


@pytest.mark.parametrize("reader", V0_READERS)
def test_a_reader_of_orbax_v0_sees_in_a_copy_what_it_sees_in_the_source(reader, tmp_path):
    read = V0_READERS[reader]
    source = save(tmp_path / "a", linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen")
    assert look(read(tmp_path / "b")) == look(read(source))


def test_metadata_have_the_shapes_and_types_of_the_source(tmp_path):
    source = save(tmp_path / "a", linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen")

    def shapes(path: Path) -> Any:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert shapes(tmp_path / "b") == shapes(source)


def save_v1_item(path: Path, tree: Any) -> Path:
    v1.save(path, tree)
    return path


def save_v1_root(path: Path, tree: Any) -> Path:
    with v1.training.Checkpointer(path) as checkpointer:
        checkpointer.save(7, tree)
    return path


V1_READABLE = {
    # how the source was written, and what of the target a reader of v1 opens
    "an item": (save, ""),
    "a root of steps": (save_root, "7"),
    "an item of v1": (save_v1_item, ""),
    "a root of v1": (save_v1_root, "7"),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", V1_READABLE)
def test_orbax_v1_loads_what_it_would_load_of_the_source(kind, tmp_path):
    write, part = V1_READABLE[kind]
    source = write(tmp_path / "a", linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen")
    assert look(v1.load(tmp_path / "b" / part)) == look(v1.load(source / part))
    nnxconv.convert(str(source), str(tmp_path / "c"), to="nnx-pure")
    converted = v1.load(tmp_path / "c" / part)
    target = sharded_target(converted)
    onto = v1.load(tmp_path / "c" / part, target)
    assert look(onto) == look(converted)
    for leaf, wanted in zip(jax.tree.leaves(onto), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


@pytest.mark.parametrize("kind", ["a root of steps", "an item of v1", "a root of v1"])
def test_orbax_v1_finds_the_items_of_a_step(kind, tmp_path):
    write, part = V1_READABLE[kind]
    source = write(tmp_path / "a", linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen")
    found = v1.load_checkpointables(tmp_path / "b" / part)
    assert look(found) == look(v1.load_checkpointables(source / part))


def test_the_checkpointer_of_orbax_v1_goes_on_in_a_converted_root(tmp_path):
    source = save_v1_root(tmp_path / "a", linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure")
    with v1.training.Checkpointer(tmp_path / "b") as checkpointer:
        assert checkpointer.latest.step == 7
        converted = checkpointer.load(7)
        checkpointer.save(8, converted)
        assert look(checkpointer.load(8)) == look(converted)


@FORMATS
def test_orbax_v1_writes_sources_that_convert(use_ocdbt, use_zarr3, tmp_path):
    options = v1.options.ArrayOptions(
        saving=v1.options.ArrayOptions.Saving(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    )
    with v1.Context(array_options=options):
        v1.save(tmp_path / "a", linen())
    nnxconv.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="nnx-pure", scan_layers=True)
    written = metadata(tmp_path / "b" / "state")
    assert (written["use_ocdbt"], written["use_zarr3"]) == (use_ocdbt, use_zarr3)
    kernel = restore(tmp_path / "b" / "state")["model"]["layers"]["up"]["kernel"]
    assert same_bits(np.asarray(kernel), numbers(16, LAYERS, 32))


def test_a_manager_opens_a_converted_root_and_goes_on_in_it(tmp_path):
    source = save_root(tmp_path / "a", linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure", scan_layers=True)
    with ocp.CheckpointManager(tmp_path / "b", item_names=("items", "iter")) as manager:
        assert manager.latest_step() == 7
        assert manager.all_steps() == [7]
        args = ocp.args.Composite(items=ocp.args.PyTreeRestore(), iter=ocp.args.JsonRestore())
        restored = manager.restore(7, args=args)
        assert restored["iter"] == {"next": 40, "seed": [1, 2]}
        kernel = restored["items"]["model"]["layers"]["up"]["kernel"]
        assert same_bits(np.asarray(kernel), numbers(16, LAYERS, 32))
        assert manager.metadata(7).custom_metadata == {"scan_layers": True, "note": "kept"}
        save_args = ocp.args.Composite(
            items=ocp.args.PyTreeSave(restored["items"]), iter=ocp.args.JsonSave({"next": 41})
        )
        manager.save(8, args=save_args)
        manager.wait_until_finished()
        assert manager.all_steps() == [7, 8]


def test_a_manager_restores_a_converted_step_onto_shardings(tmp_path):
    nnxconv.convert(str(save_root(tmp_path / "a", linen())), str(tmp_path / "b"), to="nnx-pure")
    plain = restore(tmp_path / "b" / "7" / "items")
    with ocp.CheckpointManager(tmp_path / "b") as manager:
        args = ocp.args.Composite(items=ocp.args.StandardRestore(sharded_target(plain)))
        restored = manager.restore(7, args=args)
    assert look(restored["items"]) == look(plain)


def test_a_manager_needs_no_arguments_where_it_needed_none_before(tmp_path):
    with ocp.CheckpointManager(tmp_path / "a") as manager:
        manager.save(7, args=ocp.args.StandardSave(linen()))
        manager.wait_until_finished()
    nnxconv.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="linen")
    with ocp.CheckpointManager(tmp_path / "a") as manager:
        before = manager.restore(7)
    with ocp.CheckpointManager(tmp_path / "b") as manager:
        after = manager.restore(manager.latest_step())
    assert look(after) == look(before)


def test_the_names_of_items_and_their_handlers_are_those_of_the_source(tmp_path):
    source = save_root(tmp_path / "a", linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure")
    before, after = (
        json.loads((root / "7" / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        for root in (source, tmp_path / "b")
    )
    assert after == before


def test_scan_layers_is_false_in_the_metadata_of_a_root_that_was_unstacked(tmp_path):
    source = save_root(tmp_path / "a", linen(is_stacked=True))
    step = source / "7" / "_CHECKPOINT_METADATA"
    step.write_text(step.read_text().replace('"scan_layers": false', '"scan_layers": true'))
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure", scan_layers=False)
    with ocp.CheckpointManager(tmp_path / "b") as manager:
        assert manager.metadata(7).custom_metadata == {"scan_layers": False, "note": "kept"}


def test_one_step_of_several_keeps_its_number(tmp_path):
    with ocp.CheckpointManager(tmp_path / "a") as manager:
        for step in (3, 40):
            manager.save(step, args=ocp.args.StandardSave({**linen(), "step": jnp.int32(step)}))
        manager.wait_until_finished()
    nnxconv.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="nnx-pure", step=40)
    with ocp.CheckpointManager(tmp_path / "b") as manager:
        assert manager.all_steps() == [40]
    assert restore(tmp_path / "b" / "40" / "default")["optimizer"]["step"] == 40


def test_a_manager_with_names_of_its_own_for_steps_opens_what_was_converted(tmp_path):
    options = ocp.CheckpointManagerOptions(
        step_name_format=ocp.path.step.standard_name_format(
            step_prefix="checkpoint", step_format_fixed_length=8
        )
    )
    with ocp.CheckpointManager(tmp_path / "a", options=options) as manager:
        manager.save(7, args=ocp.args.StandardSave(linen()))
        manager.wait_until_finished()
    nnxconv.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="nnx-pure")
    with ocp.CheckpointManager(tmp_path / "b", options=options) as manager:
        assert manager.latest_step() == 7


def test_a_manager_still_knows_the_best_step_by_its_metrics(tmp_path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with ocp.CheckpointManager(tmp_path / "a", options=options) as manager:
        manager.save(7, args=ocp.args.StandardSave(linen()), metrics={"loss": 0.25})
        manager.wait_until_finished()
    nnxconv.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="nnx-pure")
    with ocp.CheckpointManager(tmp_path / "b", options=options) as manager:
        assert manager.best_step() == 7
        assert manager.metrics(7) == {"loss": 0.25}


def test_the_source_is_never_written_to(tmp_path):
    source = save_root(tmp_path / "a", linen())

    def everything() -> dict[Path, tuple[bytes, int]]:
        files = [path for path in source.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = everything()
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-state", scan_layers=True)
    assert everything() == before


def test_a_typed_key_beside_a_linen_state_is_kept_beside_that_of_nnx(tmp_path):
    tree = {**linen(), "dropout_key": jax.random.key(3)}
    source = save(tmp_path / "a", tree)
    there = nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure")
    assert there.account.kept == (("dropout_key",),)
    key = ("dropout_key",)
    assert entries(tmp_path / "b")[key] == entries(source)[key]
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), like=str(source))
    assert look(restore(tmp_path / "c")) == look(restore(source))
    assert entries(tmp_path / "c").keys() == entries(source).keys()


STACKABLE = {
    name: leaf
    for name, leaf in EVERY_TYPE.items()
    if isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim
}


@pytest.mark.sample(2)
@FORMATS
def test_layers_of_every_type_are_stacked_and_taken_apart_bit_for_bit(
    use_ocdbt, use_zarr3, tmp_path
):
    layers = {
        f"layers_{i}": {name: np.roll(np.asarray(leaf), i, 0) for name, leaf in STACKABLE.items()}
        for i in range(LAYERS)
    }
    tree = {"step": jnp.int32(7), "params": {"params": layers}}
    source = save(tmp_path / "a", tree, use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen", scan_layers=True)
    stacked = restore(tmp_path / "b")["params"]["params"]["layers"]
    for name, leaf in STACKABLE.items():
        expected = np.stack([np.roll(np.asarray(leaf), i, 0) for i in range(LAYERS)], axis=1)
        assert told(stacked[name]) == told(expected), name
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), to="linen", scan_layers=False)
    assert look(restore(tmp_path / "c")) == look(restore(source))


@pytest.mark.parametrize("layout", ["nnx", "nnx-pure", "nnx-state"])
def test_layers_that_are_taken_apart_within_nnx_stand_under_numbers(layout, tmp_path):
    stacked = {"up": {"kernel": numbers(16, LAYERS, 32)}, "norm": {"scale": numbers(32, LAYERS)}}
    tree = {"model": {"layers": stacked}, "optimizer": {"step": jnp.uint32(7)}}
    source = save(tmp_path / "a", tree)
    nnxconv.convert(str(source), str(tmp_path / "b"), to=layout, scan_layers=False)
    model = restore(tmp_path / "b")["model"]
    assert set(model) == {"layers"}
    assert set(model["layers"]) == {"0", "1", "2"}


def test_averaged_weights_are_stacked_with_the_weights(tmp_path):
    tree = linen()
    source = save(tmp_path / "a", {**tree, "ema_params": tree["params"]})
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen", scan_layers=True)
    converted = restore(tmp_path / "b")
    assert look(converted["ema_params"]) == look(converted["params"])


@pytest.mark.sample(3)
@pytest.mark.parametrize("has_level", [True, False], ids=["params/params", "params"])
@pytest.mark.parametrize("layout", ["nnx", "nnx-pure", "nnx-state"])
def test_averaged_weights_become_a_second_copy_beside_an_nnx_model(layout, has_level, tmp_path):
    tree = linen()
    averaged = tree["params"] if has_level else tree["params"]["params"]
    source = save(tmp_path / "a", {**tree, "ema_params": averaged})
    nnxconv.convert(str(source), str(tmp_path / "b"), to=layout)
    there = restore(tmp_path / "b")
    assert there.keys() == {"model", "optimizer", "ema_params"}
    keys = entries(tmp_path / "b").keys()
    of_model, of_copy = (
        {tuple(part for part in key[1:] if part != "value") for key in keys if key[0] == root}
        for root in ("model", "ema_params")
    )
    assert of_model == of_copy
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), to="linen", scan_layers=False)
    assert look(restore(tmp_path / "c")) == look(restore(source))


@pytest.mark.parametrize("has_level", [True, False], ids=["params/params", "params"])
def test_a_program_that_has_no_place_for_averaged_weights_is_given_none(has_level, tmp_path):
    tree = linen()
    averaged = tree["params"] if has_level else tree["params"]["params"]
    source = save(tmp_path / "a", {**tree, "ema_params": averaged})
    with pytest.raises(nnxconv.NnxconvError, match="ema_params"):
        nnxconv.convert(str(source), str(tmp_path / "b"), to="maxtext")
    assert not (tmp_path / "b").exists()
