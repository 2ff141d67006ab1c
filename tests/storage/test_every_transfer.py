"""Every layout from every other, stacked or apart, with copies and with links.

The expected trees are built directly, as each layout's own programs save them. RNG state is left
aside, since not every layout keeps it.
"""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import nnxconv
from tests.support import checkpoints
from tests.support.trees import entries, same_bits, values

LAYOUTS = {
    "linen": checkpoints.linen,
    "maxtext": checkpoints.maxtext,
    "nnx": checkpoints.nnx,
    "nnx-pure": checkpoints.nnx_pure,
    "nnx-state": checkpoints.nnx_state,
}
AXES = {"apart": None, "stacked": 1}
LAYERS = 3

SHAPES = list(itertools.product(LAYOUTS, AXES))

every_source = pytest.mark.parametrize(("layout", "layers"), SHAPES)
every_target = pytest.mark.parametrize(("to", "target_layers"), SHAPES)


def training_state(layout, layers):
    """A state whose `wi` kernels are 1 MiB a layer: their chunks are too large to be merged."""
    noise = checkpoints.values((512, 512), 3)

    def enlarged(path, leaf):
        if "'wi'" not in jax.tree_util.keystr(path):
            return leaf
        tiled = np.tile(leaf, (32, *(1,) * (leaf.ndim - 2), 16))
        return tiled * (noise if layers == "apart" else noise[:, None])

    tree = LAYOUTS[layout](LAYERS, axis=AXES[layers])
    return jax.tree_util.tree_map_with_path(enlarged, tree)


def leaves(item: Path) -> dict:
    """Path to containers, kind and values for every leaf but RNG state.

    Every way to hold an array counts as `array`.
    """
    arrays = values(item)
    found = {}
    for path, (containers, kind) in entries(item).items():
        if "rngs" not in path:
            kind = "array" if kind in ("jax.Array", "np.ndarray") else kind
            found[path] = (containers, kind, arrays.get(path))
    return found


def are_same(a: dict, b: dict) -> bool:
    """True for the same tree with the same values, bit for bit."""
    if {path: leaf[:2] for path, leaf in a.items()} != {path: leaf[:2] for path, leaf in b.items()}:
        return False
    pairs = [(a[path][2], b[path][2]) for path in a]
    return all(x is y is None or same_bits(x, y) for x, y in pairs)


@dataclass(frozen=True)
class Saved:
    """A checkpoint of one layout, as its own programs save it."""

    item: Path
    leaves: dict


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every layout, with the layers apart and stacked."""
    root = tmp_path_factory.mktemp("layouts")
    checkpoint = {}
    for layout, layers in SHAPES:
        item = checkpoints.save_item(root / layout / layers, training_state(layout, layers))
        checkpoint[layout, layers] = Saved(item, leaves(item))
    yield checkpoint
    shutil.rmtree(root)


def contents(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def convert(source: Path, target: Path, to, layers, **options):
    scan_layers = layers == "stacked"
    return nnxconv.convert(str(source), str(target), to=to, scan_layers=scan_layers, **options)


@pytest.mark.sample(4)
@pytest.mark.parametrize("to", LAYOUTS)
@every_source
def test_a_copied_target_is_what_its_own_programs_save(layout, layers, to, saved, tmp_path):
    [other] = AXES.keys() - {layers}
    convert(saved[layout, layers].item, tmp_path / "out", to, other, transfer="copy")
    assert are_same(leaves(tmp_path / "out"), saved[to, other].leaves)


@pytest.mark.sample(5)
@every_target
@every_source
def test_a_linked_target_is_the_same_outlives_its_source_and_gives_it_back_bit_for_bit(
    layout, layers, to, target_layers, saved, tmp_path
):
    source = shutil.copytree(saved[layout, layers].item, tmp_path / "source")
    there, back = tmp_path / "there", tmp_path / "back"
    moved = convert(source, there, to, target_layers, transfer="link").moved
    assert moved is not None and moved.linked_files
    shutil.rmtree(source)
    assert are_same(leaves(there), saved[to, target_layers].leaves)
    convert(there, back, layout, layers, transfer="link")
    shutil.rmtree(there)
    assert are_same(leaves(back), saved[layout, layers].leaves)


@pytest.mark.sample(5)
@every_target
def test_an_orbax_save_over_a_linked_target_leaves_the_source_whole(
    to, target_layers, saved, tmp_path
):
    source, target = saved["linen", "apart"], tmp_path / "out"
    before = contents(source.item)
    convert(source.item, target, to, target_layers, transfer="link")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(target, {"step": np.arange(3)}, force=True)
    assert checkpoints.restore(target)["step"].tolist() == [0, 1, 2]
    assert contents(source.item) == before


@pytest.mark.full
@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize("layers", AXES)
def test_nothing_grows_when_layers_are_stacked_and_unstacked_again_and_again(
    layers, transfer, saved, tmp_path
):
    """Unlike a change of names, this takes the data files to pieces and puts others beside them."""
    source = saved["linen", layers]
    at, measures = source.item, []
    ways = itertools.cycle(itertools.product(LAYOUTS, sorted(AXES, key=lambda way: way == layers)))
    for number, (to, way) in zip(range(20), ways, strict=False):
        target = tmp_path / str(number)
        convert(at, target, to, way, transfer=transfer)
        if at != source.item:
            shutil.rmtree(at)
        at = target
        files = contents(target)
        longest, deepest = max(map(len, files)), max(name.count("/") for name in files)
        measures.append((len(files), longest, deepest, sum(map(len, files.values()))))
    assert are_same(leaves(at), saved["nnx-state", layers].leaves)
    few, short, flat, small = map(max, zip(*measures[:2], strict=True))
    many, long, deep, big = map(max, zip(*measures[2:], strict=True))
    assert (long, deep) == (short, flat)
    assert many <= few + 4
    assert big <= 1.1 * small
    # with links, one small array that is taken over as it is keeps all of a data file
    assert big <= 2.1 * sum(map(len, contents(source.item).values()))
