"""What is a checkpoint and what is not, and where in a root or step the target is written."""

import json
import shutil
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

import nnxconv
from nnxconv.errors import BadInput
from tests.support import checkpoints
from tests.support.safety import UNFINISHED, contents, convert, refusal, snapshot, step_of


def _file(root: Path) -> Path:
    (root / "file").write_text("text")
    return root / "file"


def _empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def _holding(root: Path, *names: str) -> Path:
    for name in names:
        (root / "dir" / name).mkdir(parents=True)
    return root / "dir"


def _unfinished(root: Path) -> Path:
    item = checkpoints.save_item(root / "linen", checkpoints.linen(1))
    return item.rename(root / f"linen{UNFINISHED}-17")


def _only_unfinished(root: Path) -> Path:
    checkpoints.save_step(root / "dir" / "5", checkpoints.linen(1))
    (root / "dir" / "5").rename(root / "dir" / f"5{UNFINISHED}-17")
    return root / "dir"


def _safetensors(root: Path) -> Path:
    path = _empty(root)
    (path / "model.safetensors").write_bytes(b"")
    return path


def _steps(*steps: int):
    return lambda root: checkpoints.save_root(
        root / "root", {step: checkpoints.linen(1) for step in steps}
    )


def _step_without_item(root: Path) -> Path:
    (root / "root" / "5").mkdir(parents=True)
    return root / "root"


EXPECTED = "hint: expected `_METADATA`, an item that has it, or numbered steps"

# name: builder, --step, error
NOT_FOUND = {
    "nothing": (lambda root: root / "nope", None, "error: `$/nope` does not exist"),
    "a file": (_file, None, "error: `$/file` is a file, not a checkpoint directory"),
    "an empty directory": (
        _empty,
        None,
        "error: `$/empty` is not an Orbax checkpoint\n\nhint: it is empty",
    ),
    "a directory of other things": (
        lambda root: _holding(root, "src", "docs"),
        None,
        f"error: `$/dir` is not an Orbax checkpoint\n\n{EXPECTED}",
    ),
    "an unfinished save": (
        _unfinished,
        None,
        "error: `$/linen.orbax-checkpoint-tmp-17` is an unfinished save\n\n"
        "hint: it was interrupted before it was committed; use a finished step",
    ),
    "only unfinished saves": (
        _only_unfinished,
        None,
        "error: `$/dir` is not an Orbax checkpoint\n\n"
        "hint: it holds only unfinished saves, which were interrupted before they were committed",
    ),
    "a Pax checkpoint": (
        lambda root: _holding(root, "metadata", "state"),
        None,
        "error: `$/dir` is not an Orbax checkpoint\n\n"
        "hint: it looks like a Pax checkpoint: `nnxconv gpt3-from-paxml` imports those of GPT-3",
    ),
    "a directory of Pax checkpoints": (
        lambda root: _holding(root, "checkpoint_00004000/metadata", "checkpoint_00004000/state"),
        None,
        "error: step `$/dir/checkpoint_00004000` has no item with arrays\n\n"
        "hint: it looks like a Pax checkpoint: `nnxconv gpt3-from-paxml` imports those of GPT-3",
    ),
    "safetensors": (
        _safetensors,
        None,
        "error: `$/empty/model.safetensors` is not a safetensors file: its header would have 0 of 0"
        " bytes\n\nhint: download or write it again",
    ),
    "a step without an item": (
        _step_without_item,
        None,
        "error: step `$/root/5` has no item with arrays\n\nhint: it is empty",
    ),
    "another step": (
        _steps(100, 20),
        7,
        "error: `$/root` has no step 7\n\nhint: it has 20, 100",
    ),
    "a step of a step": (
        lambda root: _steps(100)(root) / "100",
        7,
        "error: `$/root/100` is one step of a checkpoint, and it is not step 7",
    ),
    "a step of an item": (
        lambda root: _steps(100)(root) / "100" / "items",
        100,
        "error: `$/root/100/items` is one item of a checkpoint, so `--step` has no meaning",
    ),
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_a_path_that_is_no_checkpoint_is_told_from_one(name, tmp_path):
    build, step, expected = NOT_FOUND[name]
    path = build(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.convert(str(path), str(tmp_path / "out"), step=step)
    assert refusal(caught.value, tmp_path) == expected
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("given", "step", "written"),
    [
        ("5/items", None, ""),  # an item
        ("5", None, "items"),  # a step
        ("5", 5, "items"),
        ("", 5, "5/items"),  # a root of several steps
        ("", 60, "60/items"),
    ],
)
def test_the_target_has_the_structure_that_the_source_was_given_in(given, step, written, tmp_path):
    trees = {step: checkpoints.linen(2, step=step) for step in (5, 60)}
    root = checkpoints.save_root(
        tmp_path / "in",
        trees,
        extra={"iter": {"at": 3}},
        custom_metadata={"scan_layers": False, "note": "kept"},
    )
    target = tmp_path / "out"
    nnxconv.convert(f"{root}/{given}", str(target), step=step)
    assert step_of(target / written) == (60 if written.startswith("60") else 5)
    if written:
        around = (target / written).parent
        carried = contents(around / "iter")
        assert carried["metadata"] == contents(root / str(step or 5) / "iter")["metadata"]
        custom = json.loads((around / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
        assert custom == {"scan_layers": True, "note": "kept"}


def test_unfinished_steps_beside_a_finished_one_are_left_aside(tmp_path):
    root = _steps(5)(tmp_path)
    shutil.copytree(root / "5", root / f"6{UNFINISHED}-17")
    convert(root, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["5"]


def test_steps_converted_one_after_another_stand_side_by_side(tmp_path):
    trees = {step: checkpoints.linen(2, step=step) for step in (5, 60)}
    root = checkpoints.save_root(tmp_path / "in", trees)
    target = tmp_path / "out"
    convert(root, target, step=5)
    first = snapshot(target / "5")
    with pytest.raises(BadInput, match="exists"):
        convert(root, target, step=60)
    convert(root, target, step=60, overwrite=True)
    assert snapshot(target / "5") == first
    convert(root, target, step=60, overwrite=True)
    assert snapshot(target / "5") == first
    with ocp.CheckpointManager(target) as manager:
        assert sorted(manager.all_steps()) == [5, 60]
    for step in (5, 60):
        assert step_of(target / str(step) / "items") == step
