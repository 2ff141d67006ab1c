"""What is asked for and cannot be done, for nothing is called so, is no silent success."""

import numpy as np
import pytest

import nnxconv
from tests.support.checkpoints import save_item
from tests.support.command import run


def blocks(name: str, sizes: tuple[int, ...]) -> dict:
    modules = {f"{name}_{i}": {"kernel": np.full((n, 4), i, "f4")} for i, n in enumerate(sizes)}
    return {"params": {**modules, "head": {"kernel": np.ones((4, 2), "f4")}}}


def test_layers_of_another_name_are_an_error_where_layers_shall_be_stacked(tmp_path):
    source = save_item(tmp_path / "a", blocks("blocks", (4, 4, 4)))
    outcome = run("convert", source, tmp_path / "b", "--to", "linen", "--scan_layers")
    assert outcome.exit_code == 2
    assert outcome.stderr == (
        "error: no layers are stacked: none are called `layers`, and these are alike\n"
        "  blocks_0 to blocks_2\n\n"
        "hint: `--layer_group blocks` says that they are layers; without `--scan_layers` they stay"
        " apart\n"
    )
    assert not (tmp_path / "b").exists()
    named = run(
        *("convert", source, tmp_path / "b", "--to", "linen", "--scan_layers"),
        *("--layer_group", "blocks"),
    )
    assert "blocks: 3 layers, apart as name_0 -> stacked on axis 1" in named.stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("blocks", "blocks_0 to blocks_2 are not taken for layers; `--layer_group blocks` says"),
        ("Dense", ""),
    ],
)
def test_layers_of_another_name_are_told_of_where_layers_would_be_stacked(name, told, tmp_path):
    source = save_item(tmp_path / "a", blocks(name, (4, 4, 4)))
    result = nnxconv.convert(str(source), str(tmp_path / "b"))
    assert [text[: len(told)] for text in result.conversion.assumed] == ([told] if told else [])


def test_no_option_is_named_that_would_not_help(tmp_path):
    tree = {
        "params": {f"layers_{i:02}": {"kernel": np.ones((4, 4), "f4")} for i in range(2)},
        "step": np.int32(1),
    }
    source = save_item(tmp_path / "a", tree)
    outcome = run("convert", source, tmp_path / "b", "--to", "linen", "--scan_layers")
    assert outcome.stderr == (
        "error: no layers are stacked: none are called `layers_0` or `layers/0`, and these are"
        " alike\n  layers_00 to layers_01\n\nhint: without `--scan_layers` they stay apart\n"
    )


def test_a_layer_group_of_no_layers_is_told_what_is_alike(tmp_path):
    source = save_item(tmp_path / "a", blocks("blocks", (4, 4)))
    outcome = run("convert", source, tmp_path / "b", "--layer_group", "block")
    assert outcome.stderr == (
        "error: no layers are called `block`\n  blocks_0 to blocks_1 are alike\n"
    )


def test_a_collection_that_is_not_there_cannot_be_left_out(tmp_path):
    tree = {**blocks("a", (4,)), "batch_stats": {"norm": {"mean": np.ones(4, "f4")}}}
    source = save_item(tmp_path / "a", tree)
    outcome = run("convert", source, tmp_path / "b", "--without", "aux.batchstats")
    assert outcome.stderr == (
        "error: `--without aux.batchstats` leaves nothing out: there is no such collection\n"
        "  aux.batch_stats\n"
    )
    with pytest.raises(nnxconv.NnxconvError, match="leaves nothing out"):
        nnxconv.load(str(source), like=tree, without=["aux.batchstats"])
    assert run("convert", source, tmp_path / "b", "--without", "aux.rngs").exit_code == 0
