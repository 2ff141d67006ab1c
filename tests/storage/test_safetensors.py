"""safetensors: what the format's own package writes and reads is read and written here alike."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import nnxconv
from nnxconv.errors import BadInput, DamagedCheckpoint, NnxconvError
from nnxconv.storage.orbax import absolute
from nnxconv.storage.safetensors import index_text, shards_of
from nnxconv.storage.safetensors.header import DTYPES, read_header
from nnxconv.storage.safetensors.regions import runs
from tests.support import checkpoints
from tests.support.command import run
from tests.support.safety import snapshot

KNOWN_BY_THE_PACKAGE = [
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
]


def arrays(seed=0, dtype="float32"):
    """Arrays of several ranks, an empty one and one of one element among them."""
    made = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    shapes = {"a.weight": (6, 4), "a.bias": (4,), "b.0.w": (2, 3, 5), "c": (), "d.e": (0, 3)}
    return {k: np.asarray(made.integers(0, 2, s)).astype(kind) for k, s in shapes.items()}


def values(path):
    """Every array of our reading, by its name."""
    with_values = nnxconv.open(str(path))
    return {key.removeprefix("params."): np.asarray(a) for key, a in with_values.items()}


@pytest.mark.parametrize("dtype", KNOWN_BY_THE_PACKAGE)
def test_each_type_is_read_and_written_as_the_package_does(dtype, tmp_path):
    before = arrays(dtype=dtype)
    save_file(before, tmp_path / "a.safetensors")
    nnxconv.convert(str(tmp_path / "a.safetensors"), str(tmp_path / "orbax"), to="nnx-pure")
    nnxconv.convert(str(tmp_path / "orbax"), str(tmp_path / "b.safetensors"), to="safetensors")
    after = load_file(tmp_path / "b.safetensors")
    assert after.keys() == before.keys()
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        np.testing.assert_array_equal(after[name], array)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "complex64"])
def test_types_that_the_package_has_no_arrays_for_keep_their_bytes(dtype, tmp_path):
    made = np.arange(1, 7).astype(np.dtype(dtype)).reshape(2, 3)
    [shard] = shards_of([("a.weight", dtype, (2, 3))], 10**9)
    (tmp_path / "a.safetensors").write_bytes(shard.header + made.tobytes())
    nnxconv.convert(str(tmp_path / "a.safetensors"), str(tmp_path / "b"), to="safetensors")
    assert (tmp_path / "b/model.safetensors").read_bytes() == shard.header + made.tobytes()
    np.testing.assert_array_equal(values(tmp_path / "b")["a.weight"], made)


def test_every_type_of_the_format_is_one_of_numpys():
    assert all(np.dtype(ours).name == ours for ours in DTYPES.values())


def test_buffers_of_batch_norms_are_variables_that_no_cast_changes(tmp_path):
    made = np.random.default_rng(0)
    names = ["weight", "bias", "running_mean", "running_var"]
    before = {f"bn1.{name}": made.normal(size=4).astype(np.float32) for name in names}
    before["bn1.num_batches_tracked"] = np.array(7, np.int64)
    save_file(before, tmp_path / "a.safetensors")
    told = json.loads(run("inspect", tmp_path / "a.safetensors", "--json").stdout)
    assert {r: n["leaves"] for r, n in told["ledger"].items() if n["leaves"]} == {
        "parameters": 2,
        "variables": 3,
    }
    path, target = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    nnxconv.convert(path, target, to="safetensors", dtype="bfloat16")
    after = load_file(tmp_path / "b.safetensors")
    assert {name: str(array.dtype) for name, array in after.items()} == {
        "bn1.weight": "bfloat16",
        "bn1.bias": "bfloat16",
        "bn1.running_mean": "float32",
        "bn1.running_var": "float32",
        "bn1.num_batches_tracked": "int64",
    }


def test_a_file_that_we_write_is_the_same_each_time_and_says_pt(tmp_path):
    path = checkpoints.save_item(tmp_path / "orbax", checkpoints.nnx_pure())
    for name in "ab":
        nnxconv.convert(
            str(path), str(tmp_path / f"{name}.safetensors"), to="safetensors", params_only=True
        )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(tmp_path / "a.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_turned_on_the_way_is_written_in_c_order(verify, tmp_path):
    stacked = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    tree = {"params": {"params": {"layers": {"k": stacked, "b": stacked[:, :, 0].copy()}}}}
    path = checkpoints.save_item(tmp_path / "orbax", tree)
    out = tmp_path / "out.safetensors"
    nnxconv.convert(
        str(path), str(out), to="safetensors", scan_layers=False, layer_axis=1, verify=verify
    )
    found = load_file(out)
    for layer in range(3):
        np.testing.assert_array_equal(found[f"layers.{layer}.k"], stacked[:, layer])
        np.testing.assert_array_equal(found[f"layers.{layer}.b"], stacked[:, layer, 0])


def test_shards_have_an_index_and_small_files_come_along(tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    made = {f"layers.{n}.w": np.full((64, 16), n, np.float32) for n in range(8)}
    save_file(made, source / "model.safetensors", {"format": "pt"})
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"old weights")
    result = nnxconv.convert(
        str(source), str(tmp_path / "out"), to="safetensors", shard_size="10KB"
    )
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    shards = [f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)]
    assert names == [*shards, "model.safetensors.index.json", "tokenizer.json"]
    assert result.extra_files == ("tokenizer.json",)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 8 * 64 * 16 * 4}
    for name, shard in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / "out" / shard)[name], made[name])
    assert nnxconv.compare(str(source), str(tmp_path / "out"), compare_values=True).is_match


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_generated_arrays_come_back_from_orbax_byte_for_byte(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("generated")
    names = st.lists(st.sampled_from("abcde"), min_size=1, max_size=3).map(".".join)
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    kinds = st.sampled_from(["float32", "bfloat16", "int8"])
    drawn = data.draw(st.dictionaries(names, st.tuples(shapes, kinds), min_size=1, max_size=6))
    known = {n for n in drawn if not any(o != n and o.startswith(f"{n}.") for o in drawn)}
    made = np.random.default_rng(0)
    before = {
        name: made.integers(-100, 100, shape).astype(np.dtype(dtype))
        for name, (shape, dtype) in drawn.items()
        if name in known
    }
    save_file({f"m.{k}.weight": v for k, v in before.items()}, tmp_path / "a.safetensors")
    nnxconv.convert(str(tmp_path / "a.safetensors"), str(tmp_path / "orbax"), to="nnx-pure")
    nnxconv.convert(str(tmp_path / "orbax"), str(tmp_path / "b.safetensors"), to="safetensors")
    found = load_file(tmp_path / "b.safetensors")
    assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in found.items()} == {
        f"m.{k}.weight": (v.dtype, v.shape, v.tobytes()) for k, v in before.items()
    }


# --- headers -------------------------------------------------------------------------------------


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


REFUSED = {
    "nothing": (b"", "its header would have 0 of 0 bytes"),
    "longer than the file": (
        file_of({}, length=10**12),
        "its header would have 1,000,000,000,000 of 10 bytes",
    ),
    "no JSON": (file_of(b"{nonsense"), "its header is not JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "its header is not UTF-8"),
    "no mapping": (file_of([1]), "its header is no mapping"),
    "too deep": (file_of(b"[" * 100_000), "its header is nested too deeply"),
    "a name twice": (
        file_of(b'{"a": {}, "a": {}}'),
        "its header has a name twice",
    ),
    "no type": (file_of({"a": {"shape": []}}), "its header has no 'dtype'"),
    "unknown type": (
        file_of({"a": entry("F4")}, bytes(8)),
        "`a` has the type `F4`, which is not known",
    ),
    "negative size": (file_of({"a": entry(shape=(-2,))}, bytes(8)), "`shape` of `a` is no list"),
    "a size that is no number": (
        file_of({"a": entry(shape=(True, 2))}, bytes(8)),
        "`shape` of `a` is no list of sizes",
    ),
    "too few bytes": (
        file_of({"a": entry(shape=(3,))}, bytes(8)),
        "`a` has 8 bytes instead of 12",
    ),
    "overlap": (
        file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
        "`b` overlaps with another array",
    ),
    "hole": (
        file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
        "`b` has a hole before it",
    ),
    "cut off": (file_of({"a": entry()}, bytes(7)), "it is cut off: 7 bytes of data instead of 8"),
    "goes on": (file_of({"a": entry()}, bytes(9)), "it goes on after its arrays: 9 bytes"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "`__metadata__` holds more than texts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_is_against_the_specification_is_refused(name, tmp_path):
    content, told = REFUSED[name]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpoint) as refused:
        nnxconv.inspect(str(file))
    assert refused.value.message.startswith(f"`{file}` is not a safetensors file: ")
    assert told in refused.value.message


def test_a_huge_list_in_a_header_is_refused_before_it_is_parsed(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(file_of(b'{"a": [' + b"0," * 20_000_000 + b"0]}"))
    started = time.monotonic()
    with pytest.raises(DamagedCheckpoint, match="its header holds more than arrays"):
        nnxconv.inspect(str(file))
    assert time.monotonic() - started < 1


@pytest.mark.full
def test_two_thousand_mutations_of_a_header_are_read_as_the_package_reads_them(tmp_path):
    file, made = tmp_path / "a.safetensors", random.Random(0)
    save_file(arrays(), file)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(2000):
        changed = bytearray(whole)
        for _ in range(made.randint(1, 4)):
            changed[made.randrange(header)] = made.randrange(256)
        changed = changed[: made.choice([len(changed)] * 3 + [made.randrange(len(changed))])]
        file.write_bytes(changed)
        started = time.monotonic()
        try:
            found, _ = read_header(absolute(str(file)))
        except DamagedCheckpoint:
            found = None
        assert time.monotonic() - started < 1
        if found is not None:  # what we take, the package takes too, and says the same of it
            with safe_open(file, "np") as opened:
                assert set(opened.keys()) == set(found)
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in found}
            assert shapes == {name: tensor.shape for name, tensor in found.items()}


@pytest.mark.full
def test_a_header_of_a_hundred_thousand_arrays_opens_in_a_second(tmp_path):
    [shard] = shards_of([(f"layers.{n}.w", "int8", (1,)) for n in range(100_000)], 10**9)
    file = tmp_path / "model.safetensors"
    file.write_bytes(shard.header + bytes(100_000))
    started = time.process_time()
    found, _ = read_header(absolute(str(file)))
    assert len(found) == 100_000
    assert time.process_time() - started < 3  # a second, and more for a slow machine


# --- folders -------------------------------------------------------------------------------------


def folder(path: Path, files: dict[str, dict[str, np.ndarray]]) -> Path:
    path.mkdir()
    for name, content in files.items():
        save_file(content, path / name)
    return path


ONE, TWO = {"a": np.ones(2, np.float32)}, {"b": np.zeros(3, np.float32)}


def shards(count=2):
    return [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]


def test_shards_without_an_index_are_one_checkpoint(tmp_path):
    path = folder(tmp_path / "hf", dict(zip(shards(), (ONE, TWO), strict=True)))
    assert values(path).keys() == {"a", "b"}


def index(path: Path, weight_map: dict[str, str]) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(text)


def test_a_folder_of_shards_that_does_not_hold_each_array_once_is_refused(tmp_path):
    first, second = shards()
    gap = folder(tmp_path / "gap", {first: ONE})
    double = folder(tmp_path / "double", {first: ONE, second: ONE})
    several = folder(tmp_path / "several", {"model.safetensors": ONE, "ema.safetensors": TWO})
    beside = folder(tmp_path / "beside", {first: ONE, second: TWO})
    index(beside, {"a": first})
    wrong = folder(tmp_path / "wrong", {first: ONE, second: TWO})
    index(wrong, {"a": second, "b": second, "c": first})
    lost = folder(tmp_path / "lost", {first: ONE})
    index(lost, {"a": first, "b": second})
    for path, message, details in [
        (gap, f"`{gap}` lacks 1 of its shards", [second]),
        (double, f"`{double}` has 1 arrays twice", [f"a: in {first} and {second}"]),
        (several, f"`{several}` holds several checkpoints", None),
        (wrong, None, [f"c: is not in {first}", f"a: is in {first}, not {second}"]),
        (lost, None, [second]),
    ]:
        before = snapshot(path)
        with pytest.raises(NnxconvError) as refused:
            nnxconv.convert(str(path), str(tmp_path / "out"), to="nnx-pure")
        assert message is None or refused.value.message == message
        assert details is None or list(refused.value.details) == details
        assert snapshot(path) == before and not (tmp_path / "out").exists()


def test_shards_that_an_index_does_not_name_and_gaps_in_it_are_refused(tmp_path):
    first, second = shards()
    more = folder(tmp_path / "more", {first: ONE, second: TWO})
    index(more, {"a": first})
    gap = folder(tmp_path / "gap", {first: ONE})
    index(gap, {"a": first})
    for path, message, hint in [
        (
            more,
            f"`{more}` holds 1 shard that `model.safetensors.index.json` does not name",
            "remove them, or the index: shards are read without one as well",
        ),
        (gap, f"`{gap}` lacks 1 of its shards", ""),
    ]:
        with pytest.raises(DamagedCheckpoint) as refused:
            nnxconv.convert(str(path), str(tmp_path / "out"), to="nnx-pure")
        assert (refused.value.message, refused.value.details) == (message, (second,))
        assert refused.value.hint == hint


def test_files_beside_an_index_are_not_read_and_that_is_said(tmp_path):
    first, second = shards()
    path = folder(tmp_path / "hf", {first: ONE, second: TWO, "consolidated.safetensors": ONE})
    index(path, {"a": first, "b": second})
    told = f"{path} (without consolidated.safetensors, not in the index)"
    assert told in run("inspect", path).stdout
    assert told in run("convert", path, tmp_path / "out", "--to", "nnx-pure").stdout
    assert values(path).keys() == {"a", "b"}


# --- targets -------------------------------------------------------------------------------------


def test_what_has_no_place_in_safetensors_is_refused_or_left_out_by_name(tmp_path):
    path = checkpoints.save_item(tmp_path / "linen", checkpoints.linen())
    with pytest.raises(NnxconvError) as refused:
        nnxconv.convert(str(path), str(tmp_path / "out"), to="safetensors")
    assert refused.value.hint == "`--params_only` leaves the optimizer out"
    result = nnxconv.convert(
        str(path), str(tmp_path / "out"), to="safetensors", params_only=True, dry_run=True
    )
    assert set(result.conversion.left_out.values()) == {"--params_only"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_target_is_replaced_only_when_it_is_one_of_ours_and_that_is_asked_for(name, tmp_path):
    first = folder(tmp_path / "a", {"model.safetensors": ONE})
    second = folder(tmp_path / "b", {"model.safetensors": TWO})
    out = tmp_path / name
    nnxconv.convert(str(first), str(out), to="safetensors")
    with pytest.raises(BadInput, match="exists"):
        nnxconv.convert(str(second), str(out), to="safetensors")
    assert values(out).keys() == {"a"}
    nnxconv.convert(str(second), str(out), to="safetensors", overwrite=True)
    assert values(out).keys() == {"b"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a", "b", name])


def test_what_stands_beside_replaced_safetensors_is_kept(tmp_path):
    """A README of the user's; weights in other shards, with their index, go."""
    first = folder(tmp_path / "a", {"model.safetensors": ONE})
    out = folder(tmp_path / "out", dict(zip(shards(), (ONE, TWO), strict=True)))
    weight_map = dict(zip("ab", shards(), strict=True))
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("README.md", ".gitattributes"):
        (out / name).write_text("mine")
    nnxconv.convert(str(first), str(out), to="safetensors", overwrite=True)
    assert {file.name for file in out.iterdir()} == {
        "model.safetensors",
        "README.md",
        ".gitattributes",
    }
    assert (out / "README.md").read_text() == "mine"
    assert values(out).keys() == {"a"}


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    source = folder(tmp_path / "a", {"model.safetensors": ONE})
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    before = snapshot(tmp_path)
    for target in ("home", "a", "a/model.safetensors", "home/letter.txt/x"):
        with pytest.raises(BadInput):
            nnxconv.convert(str(source), str(tmp_path / target), to="safetensors", overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_array_that_cannot_be_read_leaves_nothing(tmp_path):
    path = checkpoints.save_item(
        tmp_path / "orbax", {"params": {"w": np.ones((64, 64), np.float32)}}, use_ocdbt=False
    )
    (path / "params.w/0.0").write_bytes(b"nothing")
    with pytest.raises(DamagedCheckpoint):
        nnxconv.convert(str(path), str(tmp_path / "out"), to="safetensors")
    assert [child.name for child in tmp_path.iterdir()] == ["orbax"]


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_runs_are_the_bytes_of_a_region_in_c_order(sizes, data):
    shape = tuple(sizes)
    whole = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)
    region = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, size))))
    region = tuple(region)
    stored = whole.tobytes()
    found = b"".join(stored[at : at + length] for at, length in runs(shape, region, 2))
    assert found == np.ascontiguousarray(whole[region]).tobytes()


def test_an_index_says_how_many_bytes_and_where():
    made = shards_of([("a", "float32", (4,)), ("b", "int8", (3,))], 16)
    told = json.loads(index_text(made))
    assert told["metadata"] == {"total_size": 19}
    assert told["weight_map"] == {"a": made[0].file, "b": made[1].file}


CONVERT = [sys.executable, "-c", "from nnxconv.cli import main; main()", "convert"]


@pytest.mark.full
@pytest.mark.trust
@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_moment_leaves_a_whole_target_or_none(seed, tmp_path):
    tree = checkpoints.linen_with([checkpoints.values((512, 1024), n) for n in range(6)])
    source = checkpoints.save_item(tmp_path / "source", tree)
    options = ["--to", "safetensors", "--params_only", "--shard_size", "4MB"]
    whole = tmp_path / "whole"
    started = time.monotonic()
    subprocess.run([*CONVERT, source, whole, *options], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    out, moment = tmp_path / "out", random.Random(seed).uniform(0.3, 1) * seconds
    running = subprocess.Popen([*CONVERT, source, out, *options], stdout=subprocess.DEVNULL)
    time.sleep(moment)
    running.kill()
    running.wait()
    if out.exists():
        assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
    again = ["--overwrite"] if out.exists() else []
    subprocess.run([*CONVERT, source, out, *options, *again], check=True, stdout=subprocess.DEVNULL)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"source", "whole", "out"}


def test_resume_reads_safetensors(tmp_path):
    path = folder(tmp_path / "hf", {"model.safetensors": ONE})
    for source, name in ((path, "a"), (path / "model.safetensors", "b")):
        nnxconv.convert(str(source), str(tmp_path / name), to="nnx-pure", resume=True)
        assert nnxconv.compare(str(path), str(tmp_path / name), compare_values=True).is_match
