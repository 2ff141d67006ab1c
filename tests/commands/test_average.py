"""`average`: the weighted mean of several checkpoints, whatever their layouts."""

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput, Mismatch
from tests.support import checkpoints
from tests.support.command import run


@pytest.fixture
def three(tmp_path):
    """One model three times, of other values, layouts and arrangements; kernels are 1, 2 and 4."""
    made = {
        "a": checkpoints.linen_with([np.full((16, 32), 1, "float32")] * 2, axis=1),
        "b": checkpoints.linen_with([np.full((16, 32), 2, "float32")] * 2),
        "c": checkpoints.linen_with([np.full((16, 32), 4, "float32")] * 2, axis=0),
    }
    paths = [str(checkpoints.save_item(tmp_path / name, tree)) for name, tree in made.items()]
    nnxconv.convert(paths[2], str(tmp_path / "nnx"), to="nnx-state")
    return [*paths[:2], str(tmp_path / "nnx")]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("weights", "expected"), [([0.5, 0.25, 0.25], 2.0), ([1.0, 0.0, 0.0], 1.0), (None, 7 / 3)]
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_parameters_are_averaged_and_the_rest_is_of_the_first(
    three, tmp_path, weights, expected, precision
):
    out = str(tmp_path / "out")
    done = nnxconv.average(three, out, weights=weights, precision=precision, verify=True)
    assert done.is_verified
    averaged, first = nnxconv.open(out), nnxconv.open(three[0])
    kernel = averaged["params.decoder.layers[1].mlp.wi.kernel"][...]
    np.testing.assert_allclose(kernel, np.full((16, 32), expected, "float32"), rtol=1e-6)
    assert list(averaged) == list(first)
    for key in first:
        assert averaged[key].dtype == first[key].dtype
        if not key.startswith("params"):
            np.testing.assert_array_equal(averaged[key][...], first[key][...])


def test_the_average_of_a_checkpoint_with_itself_is_that_checkpoint_bit_for_bit(three, tmp_path):
    nnxconv.average([three[0]] * 3, str(tmp_path / "out"), weights=[0.7, 0.2, 0.1])
    report = nnxconv.compare(
        three[0], str(tmp_path / "out"), compare_values=True, compare_only="all", atol=0, rtol=0
    )
    assert report.is_match


FINEST = {
    "float64": [0.1, -0.0, 1 + 2**-52, 1e300, 5e-324, np.inf, -np.inf, np.nan],
    "float32": [0.1, -0.0, 1 + 2**-23, 3e38, 1e-45, np.inf, -np.inf, np.nan],
    "float16": [0.1, -0.0, 1 + 2**-10, 65504, 6e-8, np.inf, -np.inf, np.nan],
    "bfloat16": [0.1, -0.0, 1 + 2**-7, 3e38, 1e-40, np.inf, -np.inf, np.nan],
}


@pytest.mark.parametrize("dtype", FINEST)
def test_the_average_of_equals_is_equal_in_every_type_signs_of_zero_included(dtype, tmp_path):
    values = np.array(FINEST[dtype] * 64, dtype).reshape(16, 32)
    tree = checkpoints.linen_with([values, values[::-1]])
    paths = [str(checkpoints.save_item(tmp_path / name, tree)) for name in "abc"]
    nnxconv.average(paths, str(tmp_path / "out"), weights=[0.7, 0.4, -0.1], verify=True)
    averaged = nnxconv.open(str(tmp_path / "out"))["params.decoder.layers[0].mlp.wi.kernel"][...]
    assert averaged.tobytes() == values.tobytes()


def test_doubles_are_averaged_as_doubles(tmp_path):
    values = [checkpoints.values((16, 32), seed).astype("float64") + 2**-40 for seed in range(3)]
    trees = [checkpoints.linen_with([one]) for one in values]
    paths = [str(checkpoints.save_item(tmp_path / str(n), t)) for n, t in enumerate(trees)]
    nnxconv.average(paths, str(tmp_path / "out"), verify=True)
    averaged = nnxconv.open(str(tmp_path / "out"))["params.decoder.layers[0].mlp.wi.kernel"][...]
    np.testing.assert_allclose(averaged, np.mean(values, axis=0), atol=1e-15)


@pytest.mark.parametrize(
    ("ema", "expected"), [(None, (1 + 2 + 4) / 3), (0.5, 0.5 * 4 + 0.25 * 2 + 0.25 * 1)]
)
def test_the_last_steps_of_a_root_are_averaged_the_newest_first(tmp_path, ema, expected):
    steps = {
        number: checkpoints.linen_with([np.full((16, 32), value, "float32")], axis=1)
        for number, value in ((5, 100), (10, 1), (20, 2), (30, 4))
    }
    root = checkpoints.save_root(tmp_path / "root", steps)
    done = nnxconv.average([str(root)], str(tmp_path / "out"), last=3, ema=ema)
    assert done.source_path == str(root / "30" / "items")
    assert done.target_path == str(tmp_path / "out" / "items")
    kernel = nnxconv.open(str(tmp_path / "out"))["params.decoder.layers[0].mlp.wi.kernel"][...]
    np.testing.assert_allclose(kernel, np.full((16, 32), expected), rtol=1e-6)


def with_table(values):
    """A model with an array of integers among its variables."""
    tree = checkpoints.linen()
    return tree | {"batch_stats": {"table": np.array(values, np.int32)}}


def test_integers_must_be_equal(tmp_path):
    a, b = (
        str(checkpoints.save_item(tmp_path / name, with_table(values)))
        for name, values in (("a", [1, 2]), ("b", [1, 3]))
    )
    nnxconv.average([a, a], str(tmp_path / "same"))
    with pytest.raises(BadInput) as error:
        nnxconv.average([a, b], str(tmp_path / "out"))
    assert error.value.render().replace(b, "B") == (
        "error: these arrays are not floating-point and differ, so that there is no average of them"
        "\n  aux.batch_stats.table  in `B`"
    )
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused_and_what_differs_is_listed(tmp_path):
    a = str(checkpoints.save_item(tmp_path / "a", checkpoints.linen(2)))
    b = str(checkpoints.save_item(tmp_path / "b", checkpoints.linen(3)))
    with pytest.raises(Mismatch) as error:
        nnxconv.average([a, b], str(tmp_path / "out"))
    assert error.value.message == f"`{b}` does not hold the model of `{a}`"
    assert "params.decoder.layers[2].norm.scale  nothing here, f32[16] there" in (
        error.value.details
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["A", "OUT"], "error: there is one checkpoint, and an average needs two\n\n"
         "hint: `--last N` averages the last N steps of a root\n"),
        (["A", "B", "OUT", "--weights", "1"], "error: 1 weight for 2 checkpoints\n\n"
         "hint: `--weights` has one number for each, in their order\n"),
        (["A", "B", "OUT", "--weights", "0.5,0.6"],
         "error: the weights add up to 1.1, and not to 1\n"),
        (["A", "B", "OUT", "--ema", "1.5"], "error: `--ema 1.5` is not between 0 and 1\n"),
        (["A", "B", "OUT", "--ema", "0.5", "--weights", "0.5,0.5"],
         "error: `--weights` and `--ema` are both given: give one of them\n"),
        (["A", "B", "OUT", "--last", "2"],
         "error: `--last N` takes one root of steps, and N is 2 or more\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_one_message(three, tmp_path, arguments, message):
    places = {"A": three[0], "B": three[1], "OUT": str(tmp_path / "out")}
    outcome = run("average", *(places.get(word, word) for word in arguments))
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (2, "", message)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_averaged_and_what_is_not(three, tmp_path):
    outcome = run("average", *three, tmp_path / "out", "--weights", "0.5,0.25,0.25", "--verify")
    told = [line.strip() for line in outcome.stdout.splitlines()]
    weights = ", ".join(f"{w} of {p}" for w, p in zip((0.5, 0.25, 0.25), three, strict=True))
    assert outcome.exit_code == 0
    assert told[0] == "averaged 3 checkpoints: linen"
    assert f"decided   averaged: {weights}" in told
    assert f"decided   optimizer state, step: of {three[0]}, as they are" in told


def test_of_several_states_the_way_to_one_of_them_is_a_command_that_there_is(tmp_path):
    tree = {name: checkpoints.linen() for name in ("D", "G")}
    source = str(checkpoints.save_item(tmp_path / "gan", tree))
    with pytest.raises(BadInput) as caught:
        nnxconv.average([source, source], str(tmp_path / "out"))
    assert str(caught.value).endswith("hint: `--at D` or `--at G`")


def test_one_of_several_states_is_averaged_alone(tmp_path):
    kernels = [np.full((16, 32), 1, "float32")] * 2
    pair = {"a": kernels, "b": [kernels[0] * 3] * 2}
    both, alone = [], []
    for name, some in pair.items():
        tree = checkpoints.linen_with(some)
        two = {"D": tree, "G": checkpoints.linen()}
        both.append(str(checkpoints.save_item(tmp_path / name, two)))
        alone.append(str(checkpoints.save_item(tmp_path / f"{name} alone", tree)))
    outcome = run("average", *both, tmp_path / "out", "--at", "D", "--verify")
    assert outcome.exit_code == 0, outcome.stderr
    nnxconv.average(alone, str(tmp_path / "wanted"))
    places = str(tmp_path / "out"), str(tmp_path / "wanted")
    assert nnxconv.compare(*places, compare_values=True, compare_only="all").is_match


def test_second_copies_stay_as_the_first_has_them(tmp_path):
    kernels = [np.full((16, 32), 1, "float32")] * 2
    first, second = checkpoints.linen_with(kernels), checkpoints.linen_with([kernels[0] * 3] * 2)
    paths = [
        str(checkpoints.save_item(tmp_path / name, {**tree, "ema_params": tree["params"]}))
        for name, tree in (("a", first), ("b", second))
    ]
    outcome = run("average", *paths, tmp_path / "out")
    told = "  copy      ema_params: arranged as the parameters, its values as they were\n"
    assert told in outcome.stdout
    kernel = "decoder.layers[0].mlp.wi.kernel"
    averaged, copy = nnxconv.open(tmp_path / "out"), nnxconv.open(tmp_path / "out", at="ema_params")
    assert averaged[f"params.{kernel}"].read().max() == 2
    assert copy[f"params.{kernel}"].read().max() == 1
