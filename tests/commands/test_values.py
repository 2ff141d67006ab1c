"""Options of the library have the values that those of the command have; others are refused."""

import pytest

import nnxconv
from nnxconv.errors import BadInput
from tests.support import checkpoints

LAYOUTS = (
    "linen, linen-variables, maxtext, nnx, nnx-state, nnx-pure, nnx-optimizer, nnx-rl, tunix,"
    " safetensors"
)
FLOATS = "bfloat16, float16, float32, float64"


@pytest.fixture
def source(tmp_path):
    return checkpoints.save_item(tmp_path / "linen", checkpoints.linen())


def test_paths_are_paths_of_pathlib_as_well(source, tmp_path):
    out = tmp_path / "out"
    nnxconv.convert(source, target_path=out, to="nnx")
    assert nnxconv.compare(source, out).is_match
    assert nnxconv.inspect(path=out).survey.layout == "nnx"
    assert nnxconv.average([source, source], tmp_path / "mean").target_path == str(
        tmp_path / "mean"
    )
    manifest = nnxconv.write_checksums(source, manifest=tmp_path / "manifest.json")
    assert manifest.path == str(tmp_path / "manifest.json")
    assert nnxconv.match(source, out).pairs


def told(given, known):
    return f"`--{given}` is none of the values that there are\n\nhint: it is one of {known}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8", "verify": True}, told("dtype int8", FLOATS)),
        ({"dtype": "bogus"}, told("dtype bogus", FLOATS)),
        ({"layer_axis": 5, "scan_layers": True}, told("layer_axis 5", "0, 1")),
        ({"layer_axis": -1}, told("layer_axis -1", "0, 1")),
        ({"layer_axis": True}, told("layer_axis True", "0, 1")),
        ({"transfer": "move"}, told("transfer move", "copy, link")),
        ({"from_": "flax"}, told("from flax", LAYOUTS)),
        ({"to": "flax"}, told("to flax", f"{LAYOUTS}, hf")),
        ({"direction": "nnx"}, told("direction nnx", "auto, linen_to_nnx, nnx_to_linen")),
    ],
    ids=str,
)
def test_a_value_that_an_option_cannot_have_is_refused(options, message, source, tmp_path):
    with pytest.raises(BadInput) as caught:
        nnxconv.convert(str(source), str(tmp_path / "out"), **options)
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_a_comparison_of_nothing_is_no_match(source):
    with pytest.raises(BadInput) as caught:
        nnxconv.compare(str(source), str(source), compare_only="everything")
    assert str(caught.value) == told("compare_only everything", "params, all")


def test_a_function_that_is_no_command_is_told_of_its_argument(source):
    with pytest.raises(BadInput, match=r"`layer_axis=2` is none of the values that there are"):
        nnxconv.open(str(source), layer_axis=2)


def test_no_pax_model_becomes_a_folder_of_hugging_face(tmp_path):
    with pytest.raises(BadInput) as caught:
        nnxconv.gpt3_from_paxml(str(tmp_path), str(tmp_path / "out"), to="hf")
    assert str(caught.value) == told("to hf", LAYOUTS)


def test_one_text_is_a_list_of_one_and_dashes_may_be_underscores(source, tmp_path):
    result = nnxconv.convert(
        str(source), str(tmp_path / "out"), to="nnx_pure", without="opt_state", dry_run=True
    )
    assert result.conversion.layout == "nnx-pure"
    assert "--without opt_state" in result.account.left_out.values()
