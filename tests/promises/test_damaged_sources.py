"""A damaged source is one clear error that names the array, and nothing is written."""

import json
import os
import shutil
from pathlib import Path

import pytest

from nnxconv.errors import DamagedCheckpoint, NotACheckpoint
from tests.support import checkpoints
from tests.support.safety import CANNOT, KERNEL, convert, database, delete_keys, refusal, snapshot


def _write_key(item: Path, key: str, content: bytes) -> None:
    store = database(item)
    assert store.read(key).result().state == "value"
    store.write(key, content).result()


def _truncate_data(item: Path) -> None:
    largest = max(item.rglob("d/*"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)


def _edit(item: Path, change) -> None:
    metadata = json.loads((item / "_METADATA").read_text())
    change(metadata)
    (item / "_METADATA").write_text(json.dumps(metadata))


def _add_leaf(metadata) -> None:
    entries = metadata["tree_metadata"]
    entry = json.loads(json.dumps(next(iter(entries.values()))))
    entry["key_metadata"] = [{"key": "phantom", "key_type": 2}]
    entries["('phantom',)"] = entry


UNREADABLE = "error: 1 of 36 arrays cannot be read\n  at $/in/linen\n  {}: `.zarray` is missing"

# name: storage, damage, how the message begins
DAMAGES = {
    "a deleted array directory": (
        {"use_ocdbt": False},
        lambda item: shutil.rmtree(item / KERNEL),
        UNREADABLE.format(KERNEL),
    ),
    "an array deleted from OCDBT": (
        {},
        lambda item: delete_keys(item, f"{KERNEL}/"),
        UNREADABLE.format(KERNEL),
    ),
    "a deleted chunk": (
        {"use_ocdbt": False},
        lambda item: (item / KERNEL / "0.0").unlink(),
        CANNOT.format(KERNEL),
    ),
    "a chunk deleted from OCDBT": (
        {},
        lambda item: delete_keys(item, f"{KERNEL}/0.0"),
        CANNOT.format(KERNEL),
    ),
    "a zarr3 chunk deleted from OCDBT": (
        {"use_zarr3": True},
        lambda item: delete_keys(item, f"{KERNEL}/c/0/0"),
        CANNOT.format(KERNEL),
    ),
    "a truncated chunk": (
        {"use_ocdbt": False},
        lambda item: os.truncate(item / KERNEL / "0.0", 100),
        CANNOT.format(KERNEL),
    ),
    "an empty chunk": (
        {"use_ocdbt": False},
        lambda item: os.truncate(item / KERNEL / "0.0", 0),
        CANNOT.format(KERNEL),
    ),
    "a garbled chunk": (
        {},
        lambda item: _write_key(item, f"{KERNEL}/0.0", b"garbage"),
        CANNOT.format(KERNEL),
    ),
    "metadata of an array that is not JSON": (
        {},
        lambda item: _write_key(item, f"{KERNEL}/.zarray", b"{"),
        "error: 1 of 36 arrays cannot be read\n  at $/in/linen\n  " + KERNEL,
    ),
    "metadata of an array that lacks its shape": (
        {},
        lambda item: _write_key(item, f"{KERNEL}/.zarray", b"{}"),
        "error: 1 of 36 arrays cannot be read\n  at $/in/linen\n  " + KERNEL,
    ),
    "no manifest": (
        {},
        lambda item: (item / "manifest.ocdbt").unlink(),
        "error: the OCDBT database has no `manifest.ocdbt`\n  at $/in/linen",
    ),
    "a truncated manifest": (
        {},
        lambda item: os.truncate(item / "manifest.ocdbt", 10),
        "error: ",
    ),
    "truncated data files": ({}, _truncate_data, "error: "),
    "no data files": (
        {},
        lambda item: [path.unlink() for path in item.rglob("d/*")],
        "error: ",
    ),
    "no _METADATA": (
        {},
        lambda item: (item / "_METADATA").unlink(),
        "error: `$/in/linen` is not an Orbax checkpoint",
    ),
    "a _METADATA that is not JSON": (
        {},
        lambda item: (item / "_METADATA").write_text("not JSON"),
        "error: `$/in/linen/_METADATA` is not JSON: ",
    ),
    "an empty _METADATA": (
        {},
        lambda item: (item / "_METADATA").write_text(""),
        "error: `$/in/linen/_METADATA` is not JSON: ",
    ),
    "a _METADATA of something else": (
        {},
        lambda item: (item / "_METADATA").write_text("{}"),
        "error: `$/in/linen/_METADATA` is not the metadata of an Orbax tree",
    ),
    "a _METADATA that is a list": (
        {},
        lambda item: (item / "_METADATA").write_text("[]"),
        "error: `$/in/linen/_METADATA` is not what Orbax writes: it holds no mapping",
    ),
    "a _METADATA of bytes": (
        {},
        lambda item: (item / "_METADATA").write_bytes(b"\xff\xfe\x00"),
        "error: `$/in/linen/_METADATA` is not JSON: ",
    ),
    "a leaf that is not stored": (
        {},
        lambda item: _edit(item, _add_leaf),
        "error: 1 of 37 arrays cannot be read\n  at $/in/linen\n  phantom: `.zarray` is missing",
    ),
    "array_metadatas that are not JSON": (
        {},
        lambda item: _put_file(item / "array_metadatas" / "process_0", "not JSON"),
        "error: `$/in/linen/array_metadatas/process_0` is not JSON",
    ),
    "array_metadatas of something else": (
        {},
        lambda item: _put_file(item / "array_metadatas" / "process_0", '{"array_metadatas": [1]}'),
        "error: ",
    ),
    "a _CHECKPOINT_METADATA that is not JSON": (
        {},
        lambda item: (item / "_CHECKPOINT_METADATA").write_text("not JSON"),
        "error: `$/in/linen/_CHECKPOINT_METADATA` is not JSON: ",
    ),
    "a _CHECKPOINT_METADATA that is a list": (
        {},
        lambda item: (item / "_CHECKPOINT_METADATA").write_text("[1]"),
        "error: ",
    ),
}


def _put_file(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def _damaged(name: str, root: Path) -> tuple[Path, str]:
    """A checkpoint with one of the damages, and how the error about it begins."""
    storage, damage, beginning = DAMAGES[name]
    item = root / "in" / "linen"
    checkpoints.save_item(item, checkpoints.linen(), **storage)
    damage(item)
    return item, beginning


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_source_is_one_clear_error_and_nothing_is_written(name, tmp_path):
    item, beginning = _damaged(name, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises((DamagedCheckpoint, NotACheckpoint)) as caught:
        convert(item, tmp_path / "out" / "nnx")
    text = refusal(caught.value, tmp_path)
    assert text.startswith(beginning), text
    assert len(text) < 4000
    assert snapshot(tmp_path) == before


# Chunks that are taken over as they are do not have to be decoded; these damages show anyway.
SEEN_WITHOUT_DECODING = [
    "a deleted array directory",
    "an array deleted from OCDBT",
    "a deleted chunk",
    "a chunk deleted from OCDBT",
    "a zarr3 chunk deleted from OCDBT",
    "no manifest",
    "a truncated manifest",
    "truncated data files",
    "no data files",
    "a leaf that is not stored",
]


@pytest.mark.sample(5)
@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize("name", SEEN_WITHOUT_DECODING)
def test_what_is_missing_is_missed_though_nothing_is_decoded(name, transfer, tmp_path):
    item, _ = _damaged(name, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(DamagedCheckpoint) as caught:
        convert(item, tmp_path / "out" / "linen", to="linen", transfer=transfer)
    assert len(refusal(caught.value, tmp_path)) < 4000
    assert snapshot(tmp_path) == before


def test_a_damaged_source_leaves_the_target_that_it_should_replace(source, old):
    delete_keys(source, f"{KERNEL}/0.0")
    before = snapshot(old.parent)
    with pytest.raises(DamagedCheckpoint):
        convert(source, old, overwrite=True)
    assert snapshot(old.parent) == before


def test_the_error_of_a_missing_chunk_names_array_and_checkpoint(tmp_path):
    item = checkpoints.save_item(tmp_path / "linen", checkpoints.linen(), use_ocdbt=False)
    (item / KERNEL / "0.0").unlink()
    with pytest.raises(DamagedCheckpoint) as caught:
        convert(item, tmp_path / "nnx")
    text = refusal(caught.value, tmp_path)
    assert text.splitlines()[0].startswith(CANNOT.format(KERNEL))
    assert "missing" in text
    assert text.splitlines()[1] == "  at $/linen"
    assert "\n" in text and len(text) < 400
