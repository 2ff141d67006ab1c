"""Names that lead elsewhere: what is written stays within the target, or nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

import nnxconv
from tests.support.command import run
from tests.support.safety import snapshot

pytestmark = pytest.mark.trust


def item(path: Path, names: list[str], *, use_ocdbt: bool) -> Path:
    """An item of Linen parameters with these names, which Orbax itself may not write."""
    base = {"driver": "file", "path": f"{path}/"}
    told = {}
    for number, name in enumerate(names):
        key = ["params", "params", name]
        place = {**base, "path": f"{path}/{'.'.join(key)}/"}
        if use_ocdbt:
            place = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(key)}/"}
        spec = {"driver": "zarr", "kvstore": place}
        array = ts.open(spec, create=True, dtype="float32", shape=[4]).result()
        array.write(np.full(4, number, "float32")).result()
        told[str(tuple(key))] = {
            "key_metadata": [{"key": part, "key_type": 2} for part in key],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    metadata = {"tree_metadata": told, "use_ocdbt": use_ocdbt, "use_zarr3": False}
    (path / "_METADATA").write_text(json.dumps(metadata))
    return path


ELSEWHERE = "leads to another folder"
OWN = "is a file of the checkpoint itself"

# name: why no folder of the target can have it
REFUSED = {
    "..": ELSEWHERE,
    ".": ELSEWHERE,
    "/$/evil": ELSEWHERE,
    "": "is empty",
    "_METADATA": OWN,
    "manifest.ocdbt": OWN,
    "commit_success.txt": OWN,
}


@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_written_outside_of_the_target(name, transfer, tmp_path):
    (tmp_path / "evil").mkdir()
    real = name.replace("/$", str(tmp_path))
    source = item(tmp_path / "in", ["a", real], use_ocdbt=False)
    before = snapshot(tmp_path)
    target = tmp_path / "out"
    outcome = run("convert", source, target, "--to", "nnx-pure", "--transfer", transfer)
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "error: the new checkpoint cannot have arrays of these names\n"
        f"  `{real}` {REFUSED[name]}\n\n"
        "hint: `--rename` gives them others\n",
    )
    assert snapshot(tmp_path) == before


STRANGE = ["a", "x" * 200, "b\n\x1b[31m\u202eb", "-rf", "~", "$(id)", "<script>", '"]\n[rules]\n"']
STRANGE += ["[0]", "CON", "0", "c", "a/b/c"[2:]]


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_strange_names_are_kept(use_ocdbt, tmp_path):
    source = item(tmp_path / "in", STRANGE, use_ocdbt=use_ocdbt)
    nnxconv.convert(str(source), str(tmp_path / "out"), to="nnx-pure", verify=True)
    same = nnxconv.compare(str(source), str(tmp_path / "out"), compare_values=True)
    assert same.is_match


def test_a_database_has_names_that_no_folder_has(tmp_path):
    source = item(tmp_path / "in", ["..", ".", "/a", "x" * 300], use_ocdbt=True)
    nnxconv.convert(str(source), str(tmp_path / "out"), to="nnx-pure", verify=True)
    assert nnxconv.compare(str(source), str(tmp_path / "out"), compare_values=True).is_match


def test_an_array_does_not_lie_within_another_one(tmp_path):
    source = item(tmp_path / "in", ["a", "a/0"], use_ocdbt=True)
    outcome = run("convert", source, tmp_path / "out", "--to", "nnx-pure")
    assert outcome.exit_code == 2
    assert "  `a/0` lies within `a`\n" in outcome.stderr
