"""What is said of a tree that has no layout, the wrong one, or another tree than it should have."""

import numpy as np
import pytest

from nnxconv.errors import BadInput, Mismatch, UnknownLayout
from nnxconv.layouts.conforming import conform
from nnxconv.layouts.recognition import recognise
from tests.support.checkpoints import save_item
from tests.support.command import run
from tests.support.disk import on_disk
from tests.support.layouts import STEP_DTYPES, TRAINING, default_tree, source_tree
from tests.support.states import tiny


def test_a_tree_of_no_layout_is_refused_with_the_likeliest_readings():
    with pytest.raises(UnknownLayout) as refused:
        recognise(source_tree("alpha f32[3]\nbeta/gamma f32[3]"), where="here")
    assert refused.value.render() == (
        "error: this is none of the layouts that nnxconv knows\n"
        "  at here\n"
        "  at the root: alpha, beta\n"
        "  not linen-variables: no weights under `params`\n"
        "  not nnx: weights at the root are not wrapped in `value`\n"
        "\n"
        "hint: `--at KEY` takes a subtree; `nnxconv inspect PATH --tree` lists the keys"
    )


def test_a_tree_of_no_layout_that_is_only_copied_is_said_to_be_of_none(tmp_path):
    source = save_item(tmp_path / "a", {"images": np.ones((2, 3), np.float32)})
    told = run("convert", source, tmp_path / "b").stdout.splitlines()
    assert told[0] == "wrote the tree as it is: none of the layouts that nnxconv knows"
    told = run("convert", source, tmp_path / "c", "--dry_run").stdout.splitlines()
    assert told[0] == "would write the tree as it is: none of the layouts that nnxconv knows"


# direction, source layout, the whole message
DIRECTIONS = [
    (
        "linen_to_nnx",
        "nnx-pure",
        "error: `--direction linen_to_nnx` needs a linen source, but this is a nnx-pure"
        " checkpoint\n"
        "  bare weights under `model`\n"
        "\n"
        "hint: leave `--direction` out, or name the layout that you want with `--to`",
    ),
    (
        "nnx_to_linen",
        "linen",
        "error: `--direction nnx_to_linen` needs a nnx source, but this is a linen checkpoint\n"
        "  weights under `params/params`\n"
        "  `opt_state` at the root, its chains are sequences\n"
        "\n"
        "hint: leave `--direction` out, or name the layout that you want with `--to`",
    ),
]


@pytest.mark.parametrize(("direction", "layout", "message"), DIRECTIONS)
def test_a_source_of_the_other_family_is_refused(direction, layout, message):
    disk = on_disk(default_tree(layout, tiny("adamw", STEP_DTYPES[layout])))
    with pytest.raises(BadInput) as refused:
        disk.converted(direction=direction)
    assert refused.value.render() == message


@pytest.mark.parametrize("layout", TRAINING)
def test_auto_goes_to_the_other_family(layout):
    tree = default_tree(layout, tiny("muon", STEP_DTYPES[layout]))
    _, conversion = on_disk(tree).converted()
    assert conversion.layout == ("nnx" if layout == "linen" else "linen")


def test_a_tree_that_is_not_like_the_other_lists_every_difference():
    ours = source_tree("a f32[2]\nb f32[3]\nc None\ne f32[]")
    theirs = source_tree("a bf16[2]\nb f32[4]\nc {}\nd f32[1]")
    with pytest.raises(Mismatch) as refused:
        conform(ours, theirs)
    assert refused.value.render() == (
        "error: 4 leaves do not match `--like`\n"
        "  b  f32[3], but f32[4] in `--like`\n"
        "  c  None, but {} in `--like`\n"
        "  d  f32[1]  only in `--like`\n"
        "  e  f32[]  not in `--like`"
    )


def test_arrays_of_equal_shapes_under_other_names_are_told_how_to_get_rules():
    ours, theirs = source_tree("a f32[2]\nb f32[]"), source_tree("b f32[]\nc f32[2]")
    with pytest.raises(Mismatch) as refused:
        conform(ours, theirs)
    assert refused.value.hint == (
        "where names alone differ, `nnxconv match SRC TEMPLATE` proposes rules for `--rename`"
    )
