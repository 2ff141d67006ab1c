"""Steps of Tunix: two items that are one state, saved and restored as Tunix does.

`save` and `restore` are the calls of `tunix/sft/checkpoint_manager.py` (google-tunix 0.1.7).
"""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import nnxconv
from nnxconv.errors import BadInput
from tests.support import checkpoints, models, pax
from tests.support.command import run
from tests.support.trees import entries, same_bits, values

ITEMS = ("model_params", "optimizer_state")

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")


class Adapter(nnx.Module):
    """What MaxText gives to Tunix: its model, as the attribute of another module."""

    def __init__(self, base):
        self.base = base


def trained(seed=0, *, is_stacked=False, is_within=False):
    """A model, and its optimizer after some updates' worth of numbers."""
    model = models.NnxTransformer(is_stacked, rngs=nnx.Rngs(seed))
    model = Adapter(model) if is_within else model
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    random = np.random.default_rng(seed)
    state = nnx.state(optimizer)
    filled = jax.tree.map(lambda a: random.uniform(1, 99, a.shape).astype(a.dtype), state)
    nnx.update(optimizer, filled)
    return model, optimizer


def save(root, model, optimizer=None, step=3):
    """`CheckpointManager.save` of Tunix."""
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ITEMS}
    arguments = {"model_params": ocp.args.PyTreeSave(nnx.state(model))}
    if optimizer is not None:
        state = nnx.state(optimizer, nnx.optimizer.OptState)
        arguments["optimizer_state"] = ocp.args.PyTreeSave(state)
    with ocp.CheckpointManager(root, item_handlers=handlers) as manager:
        manager.save(step, args=ocp.args.Composite(**arguments))
    return root


def restore(root, model, optimizer, step=3):
    """`CheckpointManager.maybe_restore` of Tunix."""
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ITEMS}
    targets = (nnx.state(model), nnx.state(optimizer, nnx.optimizer.OptState))
    arguments = {
        name: ocp.args.PyTreeRestore(
            item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        for name, target in zip(ITEMS, targets, strict=True)
    }
    with ocp.CheckpointManager(root, item_handlers=handlers) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(**arguments))
    nnx.update(model, restored.model_params)
    nnx.update(optimizer, restored.optimizer_state)


def leaves(*parts):
    """Paths and values of what modules hold, PRNG keys as numbers."""
    return {
        jax.tree_util.keystr(path): np.asarray(_plain(leaf))
        for part in parts
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(part)))
    }


def _plain(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def is_same(a, b):
    """True for two steps with the same items, leaves and values."""
    for name in ITEMS:
        found, expected = values(a / name), values(b / name)
        if entries(a / name).keys() != entries(b / name).keys():
            return False
        if not all(same_bits(found[path], expected[path]) for path in expected):
            return False
    return True


@pytest.fixture(scope="module")
def tunix(tmp_path_factory):
    root = tmp_path_factory.mktemp("tunix")
    save(root / "plain", *trained())
    save(root / "within", *trained(is_within=True))
    save(root / "alone", trained()[0])
    return root


# whether the model stands in an adapter, and the layout that is gone to
CASES = [
    *(("plain", layout) for layout in ("linen", "maxtext", "nnx", "nnx-optimizer")),
    *(("within", layout) for layout in ("linen", "nnx-state", "nnx-pure")),
]


@pytest.mark.sample(1)
@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_a_step_becomes_one_item_and_comes_back(kind, layout, tunix, tmp_path):
    there = nnxconv.convert(str(tunix / kind), str(tmp_path / "there"), to=layout, verify=True)
    assert Path(there.target_path) == tmp_path / "there/3/default"
    if layout == "linen":
        assert {key[1] for key in there.conversion.left_out} == {"rngs"}
        return
    back = nnxconv.convert(str(tmp_path / "there"), str(tmp_path / "back"), to="tunix", verify=True)
    assert Path(back.target_path) == tmp_path / "back/3"
    assert is_same(tmp_path / "back/3", tunix / kind / "3")
    folders = {path.name for path in (tmp_path / "back/3").iterdir() if path.is_dir()}
    assert folders == set(ITEMS)


@pytest.mark.parametrize("is_within", [False, True])
def test_tunix_restores_what_was_converted_to_it(is_within, tunix, tmp_path):
    kind = "within" if is_within else "plain"
    nnxconv.convert(str(tunix / kind), str(tmp_path / "there"), to="maxtext")
    nnxconv.convert(str(tmp_path / "there"), str(tmp_path / "back"), to="tunix")
    model, optimizer = trained(seed=1, is_within=is_within)
    restore(tmp_path / "back", model, optimizer)
    expected = leaves(*trained(is_within=is_within))
    restored = leaves(model, optimizer)
    assert restored.keys() == expected.keys()
    assert all(same_bits(restored[path], expected[path]) for path in expected)


def test_a_linen_run_becomes_a_step_of_tunix(tmp_path):
    checkpoints.save_root(tmp_path / "linen", {5: checkpoints.linen(axis=1)})
    source, target = str(tmp_path / "linen"), str(tmp_path / "tunix")
    result = nnxconv.convert(source, target, to="tunix", scan_layers=False, verify=True)
    assert result.conversion.layout == "tunix"
    assert {path[:2] for path in entries(tmp_path / "tunix/5/optimizer_state")} == {
        ("opt_state", "0"),
        ("opt_state", "2"),
        ("step", "value"),
    }
    report = nnxconv.compare(source, target, compare_values=True, compare_only="all")
    assert report.is_match, report.render()


def test_a_gpt3_of_pax_becomes_a_step_of_tunix(tmp_path):
    source = str(pax.write(tmp_path / "pax", pax.leaves()))
    for layout in ("tunix", "linen"):
        nnxconv.gpt3_from_paxml(source, str(tmp_path / layout), to=layout, verify=True)
    assert {path.name for path in (tmp_path / "tunix/5").iterdir() if path.is_dir()} == {*ITEMS}
    report = nnxconv.compare(
        str(tmp_path / "tunix"), str(tmp_path / "linen"), compare_values=True, compare_only="all"
    )
    assert report.is_match, report.render()


def test_a_model_alone_is_one_item(tunix, tmp_path):
    found = nnxconv.inspect(str(tunix / "alone"))
    assert found.understood is not None and found.understood.layout == "tunix"
    nnxconv.convert(
        str(tunix / "plain"), str(tmp_path / "out"), to="tunix", params_only=True, dtype="bfloat16"
    )
    assert [path.name for path in (tmp_path / "out/3").iterdir() if path.is_dir()] == [
        "model_params"
    ]
    exported = values(tmp_path / "out/3/model_params")
    assert {array.dtype.name for array in exported.values()} == {"bfloat16"}


def test_an_item_of_it_is_read_for_itself(tunix):
    plain = nnxconv.inspect(str(tunix / "plain/3/model_params")).understood
    within = nnxconv.inspect(str(tunix / "within/3/model_params")).understood
    assert plain is not None and within is not None
    assert (plain.layout, within.layout) == ("nnx", "nnx-rl")


def test_an_adapter_around_the_model_does_not_matter(tunix):
    """The same numbers, since both were made from one seed."""
    report = nnxconv.compare(
        str(tunix / "plain"), str(tunix / "within"), compare_values=True, compare_only="all"
    )
    assert report.is_match, report.render()


def test_most_of_a_step_is_taken_over_undecoded(tunix, tmp_path):
    result = nnxconv.convert(
        str(tunix / "plain"), str(tmp_path / "out"), to="tunix", transfer="link"
    )
    assert len(result.plan.renamed) == len(result.plan.arrays)
    assert result.moved is not None and result.moved.linked_files > 0
    assert is_same(tmp_path / "out/3", tunix / "plain/3")


def test_an_item_is_converted_to_a_step(tmp_path):
    item = checkpoints.save_item(tmp_path / "a", checkpoints.nnx_pure())
    nnxconv.convert(str(item), str(tmp_path / "step"), to="tunix")
    assert sorted(path.name for path in (tmp_path / "step").iterdir() if path.is_dir()) == [*ITEMS]
    with pytest.raises(BadInput):
        nnxconv.convert(str(item), str(tmp_path / "step"), to="tunix")
    nnxconv.convert(str(item), str(tmp_path / "step"), to="tunix", overwrite=True)
    assert nnxconv.compare(str(item), str(tmp_path / "step"), compare_values=True).is_match


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["plain", "within"])
@pytest.mark.parametrize("is_within", [False, True])
def test_a_step_is_loaded_into_a_live_model_with_the_adapter_or_without(is_within, kind, tunix):
    model, optimizer = trained(seed=1, is_within=is_within)
    nnxconv.load_into(model, str(tunix / kind), optimizer=optimizer)
    expected = leaves(*trained(is_within=is_within))
    loaded = leaves(model, optimizer)
    assert all(same_bits(loaded[path], expected[path]) for path in expected)


def test_a_step_is_opened_as_one_state(tunix):
    tree = nnxconv.open(str(tunix / "within"))
    assert (tree.layout, tree.path) == ("tunix", str(tunix / "within/3"))
    [mu] = (np.asarray(tree[key]) for key in tree if key.endswith("mu.head.kernel"))
    expected = values(tunix / "within/3/optimizer_state")
    assert same_bits(mu, expected[("opt_state", "0", "mu", "base", "head", "kernel", "value")])


def test_like_gives_the_adapter_and_the_rngs(tunix, tmp_path):
    nnxconv.convert(str(tunix / "plain"), str(tmp_path / "linen"), to="linen")
    result = nnxconv.convert(
        str(tmp_path / "linen"), str(tmp_path / "out"), like=str(tunix / "within")
    )
    assert is_same(tmp_path / "out/3", tunix / "within/3")
    assert len(result.conversion.taken) == 2 * models.LAYERS


def test_other_items_and_metadata_travel_with_the_step(tmp_path):
    step = checkpoints.save_step(
        tmp_path / "a",
        checkpoints.nnx_pure(),
        extra={"iter": {"position": 3}},
        custom_metadata={"run": "x"},
    )
    nnxconv.convert(str(step), str(tmp_path / "b"), to="tunix")
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), to="nnx-pure")
    for folder, items in (("b", ITEMS), ("c", ("default",))):
        names = {path.name for path in (tmp_path / folder).iterdir() if path.is_dir()}
        assert names == {"iter", *items}
        metadata = json.loads((tmp_path / folder / "_CHECKPOINT_METADATA").read_text())
        assert metadata["custom_metadata"] == {"run": "x", "scan_layers": False}


def test_checksums_of_a_step_check_its_conversion(tunix, tmp_path):
    written = nnxconv.write_checksums(str(tunix / "plain"), manifest=str(tmp_path / "m.json"))
    assert written.leaves > 0
    nnxconv.convert(str(tunix / "plain"), str(tmp_path / "out"), to="maxtext")
    found = nnxconv.check_checksums(str(tmp_path / "out"), manifest=str(tmp_path / "m.json"))
    assert found.exit_code == 0


def test_what_is_shown_of_a_step(tunix, tmp_path):
    outcome = run("convert", tunix / "plain", tmp_path / "out", "--to", "nnx", "--dry_run")
    assert outcome.stdout.startswith(
        "would convert tunix to nnx\n"
        f"  source    {tunix}/plain/3\n"
        f"  target    {tmp_path}/out/3/default\n"
        "  known by  items of Tunix, everything wrapped in `value`\n"
    )
    assert "step      optimizer_state/step/value u32[] -> optimizer/step u32[]\n" in outcome.stdout
    shown = run("inspect", tunix / "within", "--tree")
    assert shown.exit_code == 0
    assert "the model stands under `base`" in shown.stdout
    assert "tunix" in shown.stdout
