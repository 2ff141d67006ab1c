"""safetensors on gs://: read by ranges, written shard by shard, the index last."""

from pathlib import Path

import pytest

import nnxconv
from tests.support.gcs_twins import pytestmark
from tests.support.hugging_face import Sizes, arrays_of, save_folder

__all__ = ["pytestmark"]

SIZES = Sizes(64, 4, 2, 16, 128, 300, 3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of Hugging Face in shards."""
    root = tmp_path_factory.mktemp("hf")
    whole = save_folder(root / "whole", "llama", SIZES, arrays_of("llama", SIZES))
    nnxconv.convert(str(whole), str(root / "hf"), to="safetensors", shard_size="150kB")
    return root / "hf"


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("to", ["maxtext", "safetensors", "nnx-pure"])
def test_a_folder_in_a_bucket_is_read_as_its_twin_here(to, storage, folder, tmp_path):
    path = storage.put(folder, "in/hf", is_committed=False)
    nnxconv.convert(path, str(tmp_path / "out"), to=to)
    nnxconv.convert(str(folder), str(tmp_path / "wanted"), to=to)
    compared = nnxconv.compare(str(tmp_path / "out"), str(tmp_path / "wanted"), compare_values=True)
    assert compared.is_match
    if to == "safetensors":
        assert content(tmp_path / "out").keys() == content(tmp_path / "wanted").keys()
        # default shard size: one file
        assert content(tmp_path / "out") == content(tmp_path / "wanted")


def test_one_file_in_a_bucket_is_read(storage, folder, tmp_path):
    nnxconv.convert(str(folder), str(tmp_path / "one.safetensors"), to="safetensors")
    path = storage.put(tmp_path / "one.safetensors", "in/one.safetensors")
    assert nnxconv.compare(path, str(folder), compare_values=True).is_match


@pytest.mark.parametrize("name", ["out/x", "out/x.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_what_is_written_to_a_bucket_is_what_is_written_here(
    name, resume, verify, storage, folder, tmp_path
):
    how = {"to": "safetensors", "shard_size": "150kB"}
    wanted = tmp_path / name.removeprefix("out/")
    nnxconv.convert(str(folder), str(wanted), **how)
    nnxconv.convert(str(folder), storage.path(name), **how, resume=resume, verify=verify)
    if wanted.is_file():
        assert storage.read(name) == wanted.read_bytes()
    else:
        assert content(storage.get(name, tmp_path / "got")) == content(wanted)
    assert {n.split("/")[0] for n in storage.names("out")} == {name.removeprefix("out/")}
