"""What a checkpoint says of itself is not believed: sizes, names, links, and records.

Each case changes one file of a small checkpoint, and has the whole message. Nothing outside of the
checkpoint is opened, which Linux tells us.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore as ts

import nnxconv
from nnxconv.errors import NnxconvError
from tests.support import checkpoints
from tests.support.campaign import Watched, snapshot
from tests.support.safety import refusal

pytestmark = pytest.mark.trust

TREE = {"params": {"params": {"a": np.ones((4, 2), np.float32)}}, "step": np.int32(3)}
NAME = "params.params.a"


def edited(file: str, change):
    """A damage: a JSON file is read, changed, and written."""

    def damage(item: Path) -> None:
        value = json.loads((item / file).read_text())
        change(value)
        (item / file).write_text(json.dumps(value))

    return damage


def raw(file: str, text: str):
    """A damage: a file has this text, with `$` for a JSON string that it holds."""

    def damage(item: Path) -> None:
        (item / file).write_text(text)

    return damage


def key_of_a(key):
    """A damage: the array's key in the tree is another one."""

    def change(metadata):
        entry = next(e for n, e in metadata["tree_metadata"].items() if "'a'" in n)
        entry["key_metadata"] = [{"key": part, "key_type": 2} for part in key]

    return edited("_METADATA", change)


def _index_first(metadata):
    for entry in metadata["tree_metadata"].values():
        if len(entry["key_metadata"]) > 1:
            entry["key_metadata"][0] = {"key": "0", "key_type": 1}


def array(**fields):
    return edited(f"{NAME}/.zarray", lambda metadata: metadata.update(fields))


def custom(value):
    return edited("_METADATA", lambda metadata: metadata.update(custom_metadata=value))


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def linked(name: str, to: str):
    """A damage: a link takes the place of what is there, which is moved to `outside/secret`."""

    def damage(item: Path) -> None:
        outside = item.parent.parent / "outside"
        (item / name).rename(outside / "secret")
        (item / name).symlink_to(to.replace("$", str(outside.parent)))

    return damage


def added(make):
    return lambda item: make(item / "added")


ARRAY = "error: 1 of 2 arrays cannot be read\n  at $/in/a\n  params.params.a: "
TREE_ERROR = "error: `$/in/a/_METADATA` is not the metadata of an Orbax tree"
RECORD = "error: `custom_metadata.nnxconv` is not the record of a conversion: "
ENTRIES = "error: the checkpoint has 1 entries that are not read\n  at $/in/a\n  "
HINT = "\n\nhint: copy what is linked into the checkpoint: nothing outside of it is read"
SECRET = "is a link to `$/outside/secret`, which is outside of the checkpoint"

# damage: what it does, the whole message
DAMAGES = {
    "a huge shape": (
        array(shape=[10**18, 2]),
        ARRAY + "250,000,000,000,000,000 chunks, but at most 2 are stored",
    ),
    "a shape beyond 64 bits": (
        array(shape=[2**63, 2]),
        ARRAY + "`9223372036854775808` is not the size of an axis",
    ),
    "a negative size": (array(shape=[-4, 2]), ARRAY + "`-4` is not the size of an axis"),
    "a size that is a fraction": (
        array(shape=[4.5, 2]),
        ARRAY + "`4.5` is not the size of an axis",
    ),
    "a size that is a text": (array(shape=["4", 2]), ARRAY + "`4` is not the size of an axis"),
    "sizes that are a text": (array(shape="42"), ARRAY + "`42` is not a list of at most 32 sizes"),
    "too many axes": (
        array(shape=[1] * 33, chunks=[1] * 33),
        ARRAY + f"`{str([1] * 33)[:40]}` is not a list of at most 32 sizes",
    ),
    "huge chunks": (
        array(chunks=[2**31, 2**10]),
        ARRAY + "chunks (2147483648, 1024) are larger than the shape (4, 2)",
    ),
    "empty chunks": (array(chunks=[0, 2]), ARRAY + "chunks (0, 2) have no elements"),
    "chunks whose names lead upwards": (
        array(dimension_separator="/../../outside/"),
        ARRAY + "chunks are named with `/../../outside/` between numbers",
    ),
    "an array format that is nested too deeply": (
        raw(f"{NAME}/.zarray", "[" * 100_000 + "]" * 100_000),
        ARRAY + "it is nested too deeply",
    ),
    "an array format with mappings of many levels": (
        array(attributes=nested(100)),
        ARRAY + "it is nested too deeply",
    ),
    "a tree that is nested too deeply": (
        raw("_METADATA", "[" * 100_000 + "]" * 100_000),
        "error: `$/in/a/_METADATA` is not JSON: it is nested too deeply",
    ),
    "a lone surrogate": (
        raw("_METADATA", '{"tree_metadata": {"\\ud800": 1}}'),
        "error: `$/in/a/_METADATA` is not JSON: it has a lone surrogate, which is half a character",
    ),
    "a leaf that stands there twice": (
        key_of_a(["step"]),
        f"{TREE_ERROR}: a leaf stands there twice",
    ),
    "a leaf within a leaf": (
        key_of_a(["step", "a"]),
        f"{TREE_ERROR}: `step.a` stands within another leaf",
    ),
    "names beside indices": (
        edited("_METADATA", _index_first),
        f"{TREE_ERROR}: `step`: names and indices stand side by side",
    ),
    "a key of many parts": (key_of_a(["a"] * 5000), f"{TREE_ERROR}: a key has 5,000 parts"),
    "a key that is a list": (
        key_of_a([["a"]]),
        f"{TREE_ERROR}: a key has a part that is neither a name nor a number: ['a']",
    ),
    "a very long key": (
        key_of_a(["long " * 1000]),
        f"{TREE_ERROR}: a key has a part that is neither a name nor a number: " + "long " * 8,
    ),
    "a key that leads upwards": (
        key_of_a(["..", "..", "outside", "x"]),
        ARRAY.replace(NAME, "......outside.x") + "`.zarray` is missing",
    ),
    "metadata that are no mapping": (
        custom(["a"]),
        "error: `$/in/a/_METADATA` is not what Orbax writes: `custom_metadata` is no mapping",
    ),
    "metadata of many levels": (
        custom(nested(100)),
        "error: `$/in/a/_METADATA` has more than 64 levels in `custom_metadata`",
    ),
    "a record that is none": (
        custom({"nnxconv": {"layout": 3}}),
        RECORD + "`layout` is not what a conversion writes\n  at $/in/a",
    ),
    "a record with a form that is none": (
        custom({"nnxconv": {"forms": {"linen": {"empties": [1]}}}}),
        RECORD + "`empties` is not what a conversion writes\n  at $/in/a",
    ),
    "a link out of the checkpoint": (
        linked("_METADATA", "$/outside/secret"),
        f"{ENTRIES}`$/in/a/_METADATA` {SECRET}{HINT}",
    ),
    "a relative link out of it": (
        linked(NAME, "../../outside/secret"),
        f"{ENTRIES}`$/in/a/{NAME}` {SECRET}{HINT}",
    ),
    "a link of a chunk": (
        linked(f"{NAME}/0.0", "$/outside/secret"),
        f"{ENTRIES}`$/in/a/{NAME}/0.0` {SECRET}{HINT}",
    ),
    "a link to a device": (
        added(lambda path: path.symlink_to("/dev/zero")),
        f"{ENTRIES}`$/in/a/added` is a link to `/dev/zero`, which is outside of the checkpoint"
        + HINT,
    ),
    "a link to nothing": (
        added(lambda path: path.symlink_to("nothing")),
        f"{ENTRIES}`$/in/a/added` is a link to nothing{HINT}",
    ),
    "a link to itself": (
        added(lambda path: path.symlink_to("added")),
        f"{ENTRIES}`$/in/a/added` cannot be read: Too many levels of symbolic links{HINT}",
    ),
    "a link to a parent": (
        added(lambda path: path.symlink_to(".")),
        f"{ENTRIES}`$/in/a/added` is a link to a directory that it stands in{HINT}",
    ),
    "a named pipe": (
        added(os.mkfifo),
        f"{ENTRIES}`$/in/a/added` is neither a file nor a directory{HINT}",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("untrusted")
    return checkpoints.save_item(root / "a", TREE, use_ocdbt=False)


@pytest.fixture
def item(saved, tmp_path) -> Path:
    """A plain item, and a directory beside it that is none of its business."""
    (tmp_path / "outside").mkdir()
    return Path(shutil.copytree(saved, tmp_path / "in" / "a"))


@pytest.mark.parametrize("name", DAMAGES)
def test_what_a_checkpoint_says_is_checked_before_it_is_believed(name, item, tmp_path):
    damage, message = DAMAGES[name]
    damage(item)
    before = snapshot(tmp_path)
    with Watched(tmp_path / "outside") as watched, pytest.raises(NnxconvError) as caught:
        nnxconv.convert(str(item), str(tmp_path / "new"), to="nnx-pure")
    assert refusal(caught.value, tmp_path) == message
    assert watched.opened() == []
    assert snapshot(tmp_path) == before


def test_a_step_that_is_no_number_is_shown_as_it_is(item):
    edited("step/.zarray", lambda metadata: metadata.update(shape=[0], chunks=[1]))(item)
    assert nnxconv.inspect(str(item)).step == ()


def test_what_is_opened_outside_would_be_seen(tmp_path):
    (tmp_path / "secret").write_text("x")
    with Watched(tmp_path) as watched:
        (tmp_path / "secret").read_text()
    assert "secret" in watched.opened()


# References in a database


OWN = "ocdbt.process_0/"


def database(path: Path) -> ts.KvStore:
    """A database whose nodes are not compressed, so that a test can change what they refer to."""
    spec = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{path}/"},
        "config": {"compression": None, "max_inline_value_bytes": 0},
    }
    return ts.KvStore.open(spec, context=CONTEXT).result()


CONTEXT = ts.Context()


def referring_item(path: Path, saved: Path) -> Path:
    """The item, as an OCDBT database that refers to the files of another one within it."""
    shutil.copytree(saved, path / "item")
    item, inner = path / "item", path / "item" / OWN
    files = [file for name in (NAME, "step") for file in (item / name).iterdir()]
    store = database(inner)
    for file in files:
        store.write(file.relative_to(item).as_posix(), file.read_bytes()).result()
    store.experimental_copy_range_to(database(item)).result()
    for name in (NAME, "step"):
        shutil.rmtree(item / name)
    metadata = json.loads((item / "_METADATA").read_text())
    (item / "_METADATA").write_text(json.dumps({**metadata, "use_ocdbt": True}))
    return item


def refer_to(item: Path, other: str) -> None:
    """The database's nodes refer to another directory, of as many letters; sums are right."""
    [node] = (item / "d").iterdir()
    content = node.read_bytes()[:-4]
    assert content.count(OWN.encode()) == 1 and len(other) == len(OWN)
    content = content.replace(OWN.encode(), other.encode())
    node.write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))


@pytest.mark.parametrize("other", ["../../outside_1/", "/tmp/outside__1/", "a/../../outside/"])
def test_references_out_of_the_checkpoint_are_not_followed(other, saved, tmp_path):
    item = referring_item(tmp_path / "in", saved)
    assert nnxconv.compare(str(saved), str(item), compare_values=True).is_match
    outside = tmp_path / "outside_1"
    shutil.move(item / OWN, outside)
    refer_to(item, other)
    before = snapshot(tmp_path)
    with Watched(outside) as watched, pytest.raises(NnxconvError) as caught:
        nnxconv.convert(str(item), str(tmp_path / "new"), to="nnx-pure")
    text = refusal(caught.value, tmp_path)
    assert text.startswith(f"error: the OCDBT database cannot be read: it refers to `{other}d/")
    assert text.endswith("`, which is outside of the checkpoint\n  at $/in/item")
    assert watched.opened() == []
    assert snapshot(tmp_path) == before


def test_references_within_the_checkpoint_are_followed(saved, tmp_path):
    item = referring_item(tmp_path / "in", saved)
    (item / OWN).rename(item / "ocdbt.process_7/")
    refer_to(item, "ocdbt.process_7/")
    assert nnxconv.compare(str(saved), str(item), compare_values=True).is_match


# What is not said


SECRETS = {
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "ya29.a-token-that-must-not-show",
    "AWS_SECRET_ACCESS_KEY": "a-key-that-must-not-show",
    "HF_TOKEN": "hf_a-token-that-must-not-show",
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("given", ["good", "damaged", "gs://user:password@bucket/a"])
def test_no_credentials_are_told(given, saved, item, tmp_path):
    """In none of the commands' output, reports and files, nor in those of the new checkpoint."""
    source = given
    if not given.startswith("gs://"):
        source = str(item)
    if given == "damaged":
        (item / "_METADATA").write_text("{")
    (tmp_path / "account.json").write_text(json.dumps({"private_key": "must-not-show"}))
    environment = {
        **os.environ,
        **SECRETS,
        "XLA_FLAGS": "",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json"),
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9",
        "NNXCONV_GCS_RETRIES": "0",
    }
    report = tmp_path / "report.html"
    both = ("--compare_values", "--json", "--report", str(report))
    commands = [
        ("inspect", source, "--json"),
        ("compare", str(saved), source, *both),
        ("convert", source, str(tmp_path / "new"), "--to", "nnx-pure", "--json"),
        ("checksum", source, "--manifest", str(tmp_path / "digests")),
    ]
    if given.startswith("gs://"):
        commands = commands[:1]
    code = f"""
import sys
from nnxconv.cli import main
for words in {commands!r}:
    sys.argv = ["nnxconv", *words]
    try:
        main()
    except SystemExit as end:
        print("command ended with", end.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.stdout.count("command ended with") == len(commands), done.stderr
    written = [tmp_path / "new", report, tmp_path / "digests"]
    files = [path for one in written for path in (one, *one.rglob("*")) if path.is_file()]
    everything = done.stdout + done.stderr
    everything += "".join(path.read_bytes().decode("latin-1") for path in files)
    assert bool(files) == (given == "good")
    assert "must-not-show" not in everything
    assert "Traceback" not in everything
