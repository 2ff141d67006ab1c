"""`convert --verify` proves every conversion, and a faulty one is never committed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorstore as ts

import nnxconv
from nnxconv import comparing
from nnxconv.errors import DamagedCheckpoint
from nnxconv.layouts import conversion
from tests.support import checkpoints
from tests.support.checkpoints import array_keys, save_item, save_root, save_step
from tests.support.command import run

LAYOUTS = {
    "linen": checkpoints.linen,
    "maxtext": checkpoints.maxtext,
    "nnx": checkpoints.nnx,
    "nnx-state": checkpoints.nnx_state,
    "nnx-pure": checkpoints.nnx_pure,
}
KERNEL = "params.params.decoder.layers_1.mlp.wi.kernel"
OTHER = "params.params.decoder.layers_2.mlp.wi.kernel"
LEAF = "params.decoder.layers[1].mlp.wi.kernel"
OTHER_LEAF = "params.decoder.layers[2].mlp.wi.kernel"


# --- what is right is proved -------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    return {
        (layout, axis): save_item(root / f"{layout}_{axis}", make(axis=axis))
        for layout, make in LAYOUTS.items()
        for axis in (None, 1)
    }


@pytest.mark.sample(2)
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_every_direction_is_proved_and_compares_as_a_match(source, target, saved, tmp_path):
    for axis, options in [
        (None, ("--scan_layers",)),
        (1, ("--no-scan_layers",)),
        (1, ()),
        (None, ("--scan_layers", "--layer_axis", "0")),
    ]:
        item = saved[source, axis]
        out = tmp_path / f"out{axis}{len(options)}"
        outcome = run("convert", item, out, "--to", target, "--verify", *options)
        assert (outcome.exit_code, outcome.stderr) == (0, "")
        assert (
            "  verified  read back and compared with the source before it was committed"
            in outcome.stdout.splitlines()
        )
        found = run("compare", item, out, "--compare_values", "--compare_only", "all")
        assert found.stdout.startswith("match: 36 arrays equal"), found.stdout


@pytest.mark.sample(2)
@pytest.mark.parametrize("container", [{"use_ocdbt": False}, {"use_zarr3": True}])
@pytest.mark.parametrize("transfer", ["copy", "link"])
def test_every_container_and_transfer_is_proved(container, transfer, tmp_path):
    item = save_item(tmp_path / "a", checkpoints.linen(), chunk_bytes=512, **container)
    for name, options in {
        "as_it_is": ("--no-scan_layers",),
        "stacked": ("--scan_layers",),
        "axis_0": ("--scan_layers", "--layer_axis", "0"),
    }.items():
        out = tmp_path / name
        words = ("--to", "nnx-pure", "--verify", "--transfer", transfer, *options)
        assert run("convert", item, out, *words).exit_code == 0
        found = run("compare", item, out, "--compare_values", "--compare_only", "all")
        assert found.stdout.startswith("match: 36 arrays equal"), found.stdout


def test_nan_and_infinities_are_proved(tmp_path):
    tree = checkpoints.linen()
    tree["params"]["params"]["embed"]["embedding"][3, :3] = [np.nan, np.inf, -np.inf]
    item = save_item(tmp_path / "a", tree)
    assert run("convert", item, tmp_path / "b", "--verify").exit_code == 0


def test_casts_that_like_asks_for_are_proved(tmp_path):
    item = save_item(tmp_path / "a", checkpoints.linen())
    like = checkpoints.nnx_pure(axis=1)
    like["model"]["embed"]["embedding"] = like["model"]["embed"]["embedding"].astype("bfloat16")
    like = save_item(tmp_path / "like", like)
    outcome = run("convert", item, tmp_path / "b", "--like", like, "--verify")
    assert (outcome.exit_code, outcome.stderr) == (0, "")


def test_json_says_whether_it_was_proved(tmp_path):
    item = save_item(tmp_path / "a", checkpoints.linen())
    for name, options, expected in [
        ("b", ("--verify",), True),
        ("c", (), False),
        ("d", ("--verify", "--dry_run"), False),
    ]:
        outcome = run("convert", item, tmp_path / name, "--json", *options)
        assert json.loads(outcome.stdout)["verified"] is expected


@pytest.mark.full
def test_every_shared_checkpoint_is_proved_in_both_families(conformance, tmp_path):
    for path in sorted((conformance / "maxtext").iterdir()):
        for layout in ("linen", "nnx-pure"):
            nnxconv.convert(str(path), str(tmp_path / path.name / layout), to=layout, verify=True)


# --- what is wrong is not committed ------------------------------------------------------------


def kvstore(directory):
    """The key-value store that is being written."""
    base = {"driver": "file", "path": f"{directory}/"}
    is_ocdbt = (directory / "manifest.ocdbt").exists()
    return ts.KvStore.open({"driver": "ocdbt", "base": base} if is_ocdbt else base).result()


def chunks_of(store, name):
    keys = [key.decode() for key in store.list().result()]
    return [key for key in keys if key.startswith(f"{name}/") and "zarr" not in key]


def array_altered(directory):
    spec = {"driver": "zarr", "kvstore": (kvstore(directory) / f"{KERNEL}/").spec().to_json()}
    array = ts.open(spec, open=True).result()
    array[15, 31] = array[15, 31].read().result() + 1e-7
    return [LEAF]


def names_swapped(directory):
    store = kvstore(directory)
    for one, two in zip(chunks_of(store, KERNEL), chunks_of(store, OTHER), strict=True):
        first, second = store[one], store[two]
        store[one], store[two] = second, first
    return [LEAF, OTHER_LEAF]


def layer_skipped(directory):
    store = kvstore(directory)
    for key in chunks_of(store, KERNEL):
        store.delete_range(ts.KvStore.KeyRange(key, key + "\0")).result()
    return [KERNEL]


def layer_zeroed(directory):
    spec = {"driver": "zarr", "kvstore": (kvstore(directory) / f"{KERNEL}/").spec().to_json()}
    ts.open(spec, open=True).result()[...] = 0
    return [LEAF]


def metadata_lost(directory):
    store = kvstore(directory)
    key = f"{KERNEL}/.zarray"
    store.delete_range(ts.KvStore.KeyRange(key, key + "\0")).result()
    return [KERNEL]


def metadata_of_another_type(directory):
    store = kvstore(directory)
    key = f"{KERNEL}/.zarray"
    store[key] = json.dumps({**json.loads(store[key]), "dtype": "<i4"}).encode()
    return [LEAF]


FAULTS = [
    array_altered,
    names_swapped,
    layer_skipped,
    layer_zeroed,
    metadata_lost,
    metadata_of_another_type,
]


def inject(monkeypatch, fault):
    """Harms what was written, after it is complete and before it is verified."""
    genuine = comparing.verifier
    named = []

    def faulty(*args):
        verify = genuine(*args)

        async def harm_and_verify(writer):
            named.extend(fault(writer.directory))
            await verify(writer)

        return harm_and_verify

    monkeypatch.setattr(comparing, "verifier", faulty)
    return named


@pytest.mark.sample(4)
@pytest.mark.parametrize("use_ocdbt", [True, False])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("source", [("linen", None), ("linen", 1), ("nnx-pure", None)], ids=str)
def test_a_fault_is_named_and_nothing_is_committed(source, fault, use_ocdbt, tmp_path, monkeypatch):
    layout, axis = source
    item = save_item(tmp_path / "a", LAYOUTS[layout](axis=axis), use_ocdbt=use_ocdbt)
    named = inject(monkeypatch, fault)
    out = tmp_path / "deep" / "er" / "b"
    outcome = run("convert", item, out, "--to", "linen", "--no-scan_layers", "--verify")
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert named
    assert all(name in outcome.stderr for name in named), outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_the_whole_message_of_a_failed_proof(tmp_path, monkeypatch):
    item = save_item(tmp_path / "a", checkpoints.linen())
    inject(monkeypatch, names_swapped)
    outcome = run("convert", item, tmp_path / "b", "--to", "linen", "--verify")
    assert outcome.stderr == (
        "error: the new checkpoint does not hold the same values; nothing was committed\n"
        f"  {LEAF}\n"
        f"  {OTHER_LEAF}\n"
    )


def test_without_verify_the_fault_is_found_by_compare(tmp_path, monkeypatch):
    item = save_item(tmp_path / "a", checkpoints.linen(), use_ocdbt=False)
    out = tmp_path / "b"
    assert run("convert", item, out, "--to", "linen").exit_code == 0
    array_altered(out)
    outcome = run("compare", item, out, "--compare_values", "--atol", "0", "--rtol", "0")
    assert outcome.exit_code == 1
    assert LEAF in outcome.stdout


@pytest.mark.parametrize("structure", ["step", "root"])
def test_a_fault_leaves_nothing_of_a_step_or_a_root(structure, tmp_path, monkeypatch):
    if structure == "step":
        source = save_step(tmp_path / "a", checkpoints.linen(), extra={"iter": {"position": 1}})
    else:
        source = save_root(tmp_path / "a", {3: checkpoints.linen()})
    inject(monkeypatch, array_altered)
    outcome = run("convert", source, tmp_path / "b", "--to", "linen", "--verify")
    assert outcome.exit_code == 2
    assert LEAF in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_fault_keeps_the_checkpoint_that_was_to_be_replaced(tmp_path, monkeypatch):
    source = save_item(tmp_path / "a", checkpoints.linen())
    target = save_item(tmp_path / "b", checkpoints.linen(step=99))
    before = checkpoints.restore(target)
    inject(monkeypatch, array_altered)
    outcome = run("convert", source, target, "--to", "linen", "--verify", "--overwrite")
    assert outcome.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert checkpoints.restore(target)["step"] == before["step"] == 99


def test_linked_files_of_the_source_are_not_harmed_by_a_fault(tmp_path, monkeypatch):
    source = save_item(tmp_path / "a", checkpoints.linen())
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    inject(monkeypatch, array_altered)
    words = ("--to", "linen", "--verify", "--transfer", "link")
    assert run("convert", source, tmp_path / "b", *words).exit_code == 2
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == before


def test_layers_that_are_arranged_wrongly_are_found(tmp_path, monkeypatch):
    genuine = conversion.arrange

    def swap_two_layers(state, *args):
        layers = {1: 2, 2: 1}
        params = {
            tuple(layers.get(part, part) if isinstance(part, int) else part for part in key): leaf
            for key, leaf in state.params.items()
        }
        return genuine(replace(state, params=params), *args)

    monkeypatch.setattr(conversion, "arrange", swap_two_layers)
    source = save_item(tmp_path / "a", checkpoints.linen())
    for options in (("--scan_layers",), ("--no-scan_layers",)):
        with pytest.raises(DamagedCheckpoint) as caught:
            nnxconv.convert(
                str(source),
                str(tmp_path / "b"),
                to="nnx-pure",
                scan_layers=options == ("--scan_layers",),
                verify=True,
            )
        assert {LEAF, OTHER_LEAF} <= set(caught.value.details)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_leaf_that_the_new_tree_lacks_is_named(tmp_path, monkeypatch):
    genuine = conversion.arrange

    def forget_one(state, *args):
        key = ("decoder", "layers", 1, "mlp", "wi", "kernel")
        params = {path: leaf for path, leaf in state.params.items() if path != key}
        return genuine(replace(state, params=params), *args)

    monkeypatch.setattr(conversion, "arrange", forget_one)
    source = save_item(tmp_path / "a", {"params": {"params": checkpoints.weights()}})
    outcome = run("convert", source, tmp_path / "b", "--to", "nnx-pure", "--verify")
    assert outcome.exit_code == 2
    assert LEAF in outcome.stderr or KERNEL in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_the_arrays_of_the_faults_are_those_of_the_target(tmp_path):
    item = save_item(tmp_path / "a", checkpoints.linen())
    assert {KERNEL, OTHER} <= array_keys(item).keys()
