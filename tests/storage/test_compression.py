"""`--compression`: of what is encoded anew, and of nothing else."""

import json

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput, PlanError
from nnxconv.storage.orbax import locate, open_item
from nnxconv.storage.zarr import compressor
from tests.support import checkpoints, pax
from tests.support.command import run
from tests.support.trees import same_bits, values

TOLD = {"zstd:1": "zstd level 1", "zstd:9": "zstd level 9", "none": "none"}


def compressors(path) -> dict[str, str]:
    """What compresses each array, by name."""
    return {name: compressor(one) for name, one in open_item(locate(str(path))).formats.items()}


def zeros():
    """A tree whose kernels take next to no room when they are compressed."""
    kernels = [np.zeros((512, 640), np.float32) for _ in range(3)]
    return checkpoints.linen_with(kernels)


@pytest.fixture
def source(tmp_path):
    return checkpoints.save_item(tmp_path / "source", zeros())


@pytest.mark.sample(4)
@pytest.mark.parametrize("asked", TOLD)
@pytest.mark.parametrize("use_zarr3", [False, True])
@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_new_chunks_are_compressed_as_asked_and_hold_the_same(
    asked, use_ocdbt, use_zarr3, tmp_path
):
    source = checkpoints.save_item(
        tmp_path / "source", checkpoints.linen(), use_ocdbt=use_ocdbt, use_zarr3=use_zarr3
    )
    out, plain = tmp_path / "out", tmp_path / "plain"
    result = nnxconv.convert(
        str(source), str(out), dtype="bfloat16", compression=asked, verify=True
    )
    nnxconv.convert(str(source), str(plain), dtype="bfloat16")
    found, before = compressors(out), compressors(plain)
    assert result.plan.rewritten
    for array in result.plan.arrays:
        expected = TOLD[asked] if array.how == "rewrite" else before[array.name]
        assert found[array.name] == expected
    left, right = values(out), values(plain)
    assert left.keys() == right.keys()
    assert all(same_bits(left[key], right[key]) for key in left)


def test_without_it_chunks_are_compressed_as_the_source_s_are(source, tmp_path):
    nnxconv.convert(str(source), str(tmp_path / "out"), dtype="bfloat16")
    assert set(compressors(tmp_path / "out").values()) == set(compressors(source).values())


def test_what_is_taken_over_keeps_its_own_and_the_result_says_how_much(source, tmp_path):
    outcome = run("convert", source, tmp_path / "out", "--to", "nnx-pure", "--no-scan_layers",
                  "--compression", "none")  # fmt: skip
    result = nnxconv.convert(
        str(source), str(tmp_path / "x"), to="nnx-pure", scan_layers=False, dry_run=True
    )
    assert outcome.exit_code == 0
    renamed = len(result.plan.renamed)
    assert len(result.plan.rewritten) == 1
    assert renamed
    assert (
        f"chunks    none for 1 rewritten array; {renamed} renamed arrays as compressed as before"
        in outcome.stdout
    )
    told = run("convert", source, tmp_path / "y", "--to", "nnx-pure", "--no-scan_layers",
               "--compression", "none", "--json")  # fmt: skip
    assert json.loads(told.stdout)["compression"] == {"new": "none", "kept": renamed}


@pytest.mark.parametrize("text", ["zstd", "zstd:0", "zstd:23", "zstd:x", "gzip:1", "None", ""])
def test_what_is_no_compression_is_refused(text, source, tmp_path):
    with pytest.raises(BadInput) as caught:
        nnxconv.convert(str(source), str(tmp_path / "out"), compression=text)
    assert str(caught.value) == (
        f"`{text}` is no compression\n\nhint: `zstd:1` (quick) to `zstd:22` (small), or `none`"
    )
    assert not (tmp_path / "out").exists()


def test_safetensors_are_not_compressed(source, tmp_path):
    with pytest.raises(BadInput) as caught:
        nnxconv.convert(
            str(source), str(tmp_path / "out"), to="safetensors", params_only=True,
            compression="none",
        )  # fmt: skip
    assert str(caught.value) == (
        "safetensors are not compressed\n\nhint: leave out `--compression`"
    )


def test_without_compression_room_is_asked_for_the_bytes_as_they_are(source, tmp_path, monkeypatch):
    asked: dict[str, int] = {}

    def refuse(needed, target):
        asked[target.path.name] = needed
        raise PlanError("enough")

    monkeypatch.setattr("nnxconv.storage.transfer.check_space", refuse)
    for name in ("zstd:1", "none"):
        with pytest.raises(PlanError):
            nnxconv.convert(
                str(source), str(tmp_path / name), dtype="bfloat16", params_only=True,
                compression=name,
            )  # fmt: skip
    kernels = 3 * 512 * 640 * 2
    assert asked["zstd:1"] < 2**20 + kernels // 2
    assert 2**20 + kernels < asked["none"] < 2**20 + 1.1 * kernels


def _averaged(folder, out):
    paths = [str(checkpoints.save_item(folder / name, checkpoints.linen())) for name in "ab"]
    return nnxconv.average(paths, out, weights=[0.75, 0.25], compression="none")


def _merged(folder, out):
    kernels = {"kernel": np.ones((6, 8), np.float32)}
    factors = {"lora_a": {"kernel": np.ones((6, 2))}, "lora_b": {"kernel": np.ones((2, 8))}}
    base, adapter = (
        str(checkpoints.save_item(folder / name, {"params": {"params": {"attn": tree}}}))
        for name, tree in (("base", kernels), ("adapter", factors))
    )
    return nnxconv.merge_lora(base, adapter, out, alpha=4, compression="none")


def _clipped(folder, out):
    module = {"wq_b": {"kernel": np.ones((5, 2, 12))}, "wkv_b": {"kernel": np.ones((7, 2, 14))}}
    tree = {"params": {"params": {"decoder": {"layers_0": {"self_attention": module}}}}}
    np.savez(folder / "l.npz", **{"decoder/layers_0/self_attention/max_logits": np.ones(2) * 150})
    return nnxconv.qk_clip_checkpoint(
        str(checkpoints.save_item(folder / "source", tree)),
        out,
        max_logits=str(folder / "l.npz"),
        threshold=100,
        qk_nope_head_dim=8,
        compression="none",
    )


def _imported(folder, out):
    pax.write(folder / "pax", pax.leaves(step=5))
    return nnxconv.gpt3_from_paxml(str(folder / "pax"), out, compression="none")


@pytest.mark.parametrize("command", [_averaged, _merged, _clipped, _imported])
def test_commands_that_compute_compress_as_asked_as_well(command, tmp_path):
    result = command(tmp_path, str(tmp_path / "out"))
    found = compressors(result.target_path)
    new = [array.name for array in result.plan.arrays if array.how == "rewrite"]
    assert new
    assert {found[name] for name in new} == {TOLD["none"]}
