"""Headers of safetensors, npz and msgpack files that lie: one message, or what the file says.

Nothing takes longer or more memory because of what a header claims.
"""

import json
import struct
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest

import nnxconv
from nnxconv.errors import NnxconvError
from tests.support.command import run
from tests.support.safety import refusal

pytestmark = pytest.mark.trust

BYTES = np.arange(4, dtype="float32").tobytes()


def npy(shape, descr="<f4", content=BYTES, header=None) -> bytes:
    """An array as numpy stores it, or with another header."""
    told = {"descr": descr, "fortran_order": False, "shape": shape}
    text = (header or repr(told)).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def npz(*members, offset=0, value=b""):
    """A damage: the members of a file, and bytes in the directory at its end."""

    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.npz", "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
        content = bytearray((folder / "x.npz").read_bytes())
        place = content.rfind(b"PK\x01\x02") + offset
        content[place : place + len(value)] = value
        (folder / "x.npz").write_bytes(content)
        return folder / "x.npz"

    return write


def tensors(header, content=BYTES):
    def write(folder: Path) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)
        return folder / "x.safetensors"

    return write


def tensor(shape, stop=16):
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}


def flax(leaf):
    def write(folder: Path) -> Path:
        (folder / "x.msgpack").write_bytes(msgpack.packb({"params": {"a": leaf}}))
        return folder / "x.msgpack"

    return write


def array(shape, dtype="float32", content=BYTES):
    return msgpack.ExtType(1, msgpack.packb([shape, dtype, content]))


def chunked(**fields):
    return flax({"__msgpack_chunked_array__": True, **fields})


NPZ = "error: `$/x.npz` is not an npz file of numpy: "
TENSORS = "error: `$/x.safetensors` is not a safetensors file: "
AGAIN = "\n\nhint: download or write it again"
FLAX = "error: `$/x.msgpack` is not a msgpack tree of Flax: "
COPY = "\n\nhint: copy or write it again"
SIZES = "has an array that cannot be read: "
MANY = f"`{str([1] * 40)[:40]}` is not a list of at most 32 sizes"
ONE = ("a.npy", npy((4,)))

# what is written: its message
LIES = {
    "npz: a name twice": (npz(ONE, ("a", npy((4,)))), NPZ + "`a` stands there twice"),
    "npz: an array within another": (
        npz(ONE, ("a/b.npy", npy((4,)))),
        "error: the names in `$/x.npz` are no tree: `a.b` stands within another leaf",
    ),
    "npz: negative sizes": (
        npz(("a.npy", npy((-2, -2)))),
        NPZ + "`a` has a shape of no sizes",
    ),
    "npz: a size that is none": (
        npz(("a.npy", npy((True, 4)))),
        NPZ + "`a` has a shape of no sizes",
    ),
    "npz: too many axes": (
        npz(("a.npy", npy((1,) * 40, content=BYTES[:4]))),
        f"error: `$/x.npz` {SIZES}{MANY}",
    ),
    "npz: a type that is not stored": (
        npz(("a.npy", npy((1,), "<f16"))),
        f"error: `$/x.npz` {SIZES}the element type `float128` is not known",
    ),
    "npz: a header that nests": (
        npz(("a.npy", npy((), header="-" * 5000 + "1"))),
        NPZ + "maximum recursion depth exceeded during ast construction",
    ),
    "npz: a version of zip that is none": (
        npz(ONE, offset=6, value=b"\xff\xff"),
        NPZ + "zip file version 25.5",
    ),
    "npz: a member that is longer than the file": (
        npz(("a.npy", npy((10**6,))), offset=24, value=struct.pack("<I", 10 + 70 + 4 * 10**6)),
        NPZ + "`a` is cut off",
    ),
    "safetensors: too many axes": (
        tensors({"a": tensor([1] * 40, 4)}, BYTES[:4]),
        f"error: `$/x.safetensors` {SIZES}{MANY}",
    ),
    "safetensors: a size beyond TensorStore's": (
        tensors({"a": tensor([2**62, 0], 0)}, b""),
        f"error: `$/x.safetensors` {SIZES}`4611686018427387904` is not the size of an axis",
    ),
    "safetensors: half a character": (
        tensors(json.dumps({"\ud800": tensor([4])}).encode()),
        f"{TENSORS}it has a lone surrogate, which is half a character{AGAIN}",
    ),
    "safetensors: a name of many parts": (
        tensors({".".join("a" * 100_000): tensor([4])}),
        f"error: `$/x.safetensors` has 1 names of more than 64 parts\n  {'a.' * 20}",
    ),
    "msgpack: bytes without a shape": (
        flax(b"1234"),
        f"{FLAX}`params.a` is bytes, and no array{COPY}",
    ),
    "msgpack: bytes in another order": (
        flax(array([4], ">f4")),
        f"{FLAX}the type `>f4` has its bytes in another order{COPY}",
    ),
    "msgpack: parts without a shape": (
        chunked(chunks={"0": array([4])}),
        f"{FLAX}a large array has no parts{COPY}",
    ),
    "msgpack: a shape with a gap": (
        chunked(shape={"1": 4}, chunks={"0": array([4])}),
        f"{FLAX}'0'{COPY}",
    ),
    "msgpack: a part that is a size": (
        chunked(shape={"0": True, "1": 4}, chunks={"0": array([4])}),
        f"{FLAX}a large array has no shape{COPY}",
    ),
    "msgpack: too many axes": (
        flax(array([1] * 40, content=BYTES[:4])),
        f"error: `$/x.msgpack` {SIZES}{MANY}",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_are_checked_before_they_are_believed(name, tmp_path):
    write, message = LIES[name]
    path = write(tmp_path)
    for target in ("new", "new.safetensors"):
        with pytest.raises(NnxconvError) as caught:
            nnxconv.convert(str(path), str(tmp_path / target), to="nnx-pure")
        assert refusal(caught.value, tmp_path) == message
    assert list(tmp_path.iterdir()) == [path]


EMPTY = {
    "npz": npz(("a.npy", npy((10**18, 0), content=b""))),
    "safetensors": tensors({"a": tensor([10**18, 10**17, 0], 0)}, b""),
    "msgpack": flax(array([10**18, 0], content=b"")),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_arrays_without_elements_cost_nothing_whatever_their_sizes(kind, tmp_path):
    path = EMPTY[kind](tmp_path)
    same = nnxconv.compare(str(path), str(path), compare_values=True, compare_only="all")
    assert same.is_match
    assert run("checksum", path, "--manifest", tmp_path / "sums").exit_code == 0
    to = ["--to", "safetensors"] if kind == "safetensors" else []
    done = run("convert", path, tmp_path / "new", *to, "--verify")
    assert (done.exit_code, done.stderr) == (0, "")


def test_the_largest_integer_of_msgpack_is_kept(tmp_path):
    path = flax({"kernel": array([4]), "n": 2**64 - 1})(tmp_path)
    value = nnxconv.open(str(path))["params.a.n"][...]
    assert (value.dtype, int(value)) == ("uint64", 2**64 - 1)


# What stands beside the weights


def folder_with(tmp_path, name: str) -> Path:
    folder = tmp_path / "in" / "model"
    folder.mkdir(parents=True)
    tensors({"a": tensor([4])})(folder)
    (tmp_path / "in" / "secret").write_text("secret")
    (folder / name).symlink_to(tmp_path / "in" / "secret")
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "more.safetensors"])
def test_files_beside_the_weights_that_lead_elsewhere_are_refused(name, tmp_path):
    folder = folder_with(tmp_path, name)
    outcome = run("convert", folder, tmp_path / "new", "--to", "safetensors")
    assert (outcome.exit_code, outcome.stderr.replace(str(tmp_path), "$")) == (
        2,
        "error: the checkpoint has 1 entries that are not read\n"
        "  at $/in/model\n"
        f"  `$/in/model/{name}` is a link to `$/in/secret`, which is outside of the checkpoint\n\n"
        "hint: copy what is linked into the checkpoint: nothing outside of it is read\n",
    )
    assert not (tmp_path / "new").exists()


def test_links_of_the_cache_of_hugging_face_are_followed(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    tensors({"a": tensor([4])})(blobs).rename(blobs / "f00")
    (blobs / "ba5").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00")
    (snapshot / "config.json").symlink_to("../../blobs/ba5")
    nnxconv.convert(str(snapshot), str(tmp_path / "new"), to="safetensors")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


CONFIGURATIONS = {
    "a number that is a text": {"num_attention_heads": "4", "hidden_size": 8},
    "no heads": {"num_attention_heads": 0, "hidden_size": 8},
    "a huge number": {"num_attention_heads": 4, "hidden_size": 8, "head_dim": 10**400},
    "a negative number": {"num_attention_heads": 4, "hidden_size": 8, "head_dim": -4},
    "a text that ends the rule": {"num_attention_heads": '4], "x', "head_dim": 4},
    "a list for a mapping": {"text_config": ["a"], "hidden_size": 8},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_that_no_model_has_are_one_message(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tensors({"model.norm.weight": tensor([4])})(folder)
    told = {"model_type": "llama", **CONFIGURATIONS[name]}
    (folder / "config.json").write_text(json.dumps(told))
    outcome = run("convert", folder, tmp_path / "new", "--to", "maxtext")
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith(("error: `config.json` does not tell", "error: these rules"))
    assert not (tmp_path / "new").exists()
