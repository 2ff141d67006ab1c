"""`match --by_values`: rules that give the template's bytes, whoever has renamed the weights."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nnxconv
from nnxconv.errors import BadInput
from tests.support import other_names
from tests.support.command import run
from tests.support.models import save


def saved(path, params):
    """A checkpoint of these parameters."""
    return save(path, {"params": params})


def refuse_difference(source, template, rules, target, **how):
    """What `convert` makes of the source by the rules is, bit by bit, the template."""
    nnxconv.convert(str(source), str(target), to="linen", rename=str(rules), **how)
    report = nnxconv.compare(str(target), str(template), compare_values=True, atol=0, rtol=0)
    assert report.is_match, report.render()


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", other_names.PAIRS)
def test_the_rules_make_the_template_of_the_source(name, tmp_path):
    before, after = other_names.PAIRS[name]
    source, template = saved(tmp_path / "a", before()), saved(tmp_path / "b", after())
    rules = tmp_path / "rules.toml"
    outcome = run("match", source, template, "--by_values", "--output", rules)
    assert (outcome.exit_code, outcome.stderr) == (0, ""), outcome.stdout
    how = {"dtype": "bfloat16"} if name == "rounded" else {}
    refuse_difference(source, template, rules, tmp_path / "c", **how)


def test_what_no_step_makes_of_the_same_values_is_open(tmp_path):
    source = saved(tmp_path / "a", other_names.haiku(other_names.flax()))
    template = saved(tmp_path / "b", other_names.torch(other_names.flax()))
    outcome = run("match", source, template, "--by_values")
    assert outcome.exit_code == 1
    assert "\nopen:\n  net.block_#.linear_0  ->  model.layers.#.attn.qkv" in outcome.stdout


@pytest.mark.sample(1)
@pytest.mark.parametrize("max_memory", ["64KiB", "2GiB"])
def test_rules_do_not_depend_on_memory(max_memory, tmp_path):
    source = saved(tmp_path / "a", other_names.flax())
    template = saved(tmp_path / "b", other_names.torch(other_names.flax()))
    found = nnxconv.match(str(source), str(template), by_values=True, max_memory=max_memory)
    assert found.is_complete
    assert found.rules == nnxconv.match(str(source), str(template), by_values=True).rules


def test_weights_of_another_run_are_no_counterparts(tmp_path):
    source = saved(tmp_path / "a", other_names.flax())
    template = saved(tmp_path / "b", other_names.flax(seed=1))
    found = nnxconv.match(str(source), str(template), by_values=True)
    assert not found.pairs.certain
    assert len(found.pairs.only_source) == len(found.pairs.only_template) == 13


def test_what_holds_the_same_and_has_nothing_around_it_is_left_open(tmp_path):
    ones = np.ones(4, np.float32)
    source = saved(tmp_path / "a", {"x": {"p": ones}, "y": {"p": ones}})
    template = saved(tmp_path / "b", {"u": {"q": ones}, "v": {"q": ones}})
    outcome = run("match", source, template, "--by_values")
    assert outcome.exit_code == 1
    assert outcome.stdout == (
        "2 leaves are open\n"
        "\n"
        "open:\n"
        "  x.p  ->  u.q  f32[4]\n"
        "       or  v.q  f32[4]\n"
        "  y.p  ->  u.q  f32[4]\n"
        "       or  v.q  f32[4]\n"
        "\n"
        "no rules: what is certain has the same keys on both sides\n"
    )


def test_equal_values_are_told_by_the_modules_around_them(tmp_path):
    made = np.random.default_rng(0)

    def module():
        kernel = made.normal(size=(4, 4)).astype(np.float32)
        return {"kernel": kernel, "bias": np.zeros(4, np.float32)}

    x, y = module(), module()
    source = saved(tmp_path / "a", {"x": x, "y": y})
    template = saved(tmp_path / "b", {"one": y, "two": x})
    found = nnxconv.match(str(source), str(template), by_values=True)
    assert found.is_complete
    assert {(str(r), str(r.targets[0])) for r in found.rules} == {("x", "two"), ("y", "one")}


def test_a_square_array_of_one_number_is_turned_as_others_are_or_left_open(tmp_path):
    made = np.random.default_rng(0)
    kernel, zeros = made.normal(size=(4, 4)).astype(np.float32), np.zeros((5, 5), np.float32)
    source = saved(tmp_path / "a", {"x": {"kernel": kernel}, "y": {"kernel": zeros}})
    template = saved(tmp_path / "b", {"u": {"weight": kernel.T}, "v": {"weight": zeros}})
    found = nnxconv.match(str(source), str(template), by_values=True)
    assert found.is_complete
    assert [str(rule.steps) for rule in found.rules] == ["(Transpose(order=(1, 0)),)"] * 2
    alone = saved(tmp_path / "c", {"y": {"kernel": zeros}})
    other = saved(tmp_path / "d", {"v": {"weight": zeros}})
    found = nnxconv.match(str(alone), str(other), by_values=True)
    assert not found.pairs.certain
    assert [set(leaf.readings) for p in found.pairs.turned for leaf in p.leaves] == [
        {"same", "turned"}
    ]


def test_a_model_in_python_has_no_values_to_read(tmp_path):
    source = saved(tmp_path / "a", other_names.flax())
    with pytest.raises(BadInput) as refused:
        nnxconv.match(str(source), "tests.support.model_pairs:abstract_mlp", by_values=True)
    assert refused.value.message == (
        "`tests.support.model_pairs:abstract_mlp` is no checkpoint, whose values `--by_values`"
        " could read"
    )


def test_statistics_of_batches_are_found_among_the_arrays_of_a_file(tmp_path):
    """PyTorch keeps its buffers among the parameters, and flax in a collection of its own."""
    made = np.random.default_rng(0)
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    flax = {name: made.normal(size=8).astype(np.float32) for name in names}
    kernel = made.normal(size=(3, 3, 4, 8)).astype(np.float32)
    torch = {f"stem.bn.{new}": flax[old] for old, new in names.items()}
    source = tmp_path / "a.safetensors"
    save_file(
        {**torch, "stem.conv.weight": np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))}, source
    )
    norm = {"BatchNorm_0": {n: flax[n] for n in ("scale", "bias")}}
    stats = {"BatchNorm_0": {n: flax[n] for n in ("mean", "var")}}
    tree = {"params": {"Conv_0": {"kernel": kernel}, **norm}, "batch_stats": stats}
    template = save(tmp_path / "b", tree)
    rules, target = tmp_path / "rules.toml", tmp_path / "c"
    outcome = run("match", source, template, "--by_values", "--output", rules)
    assert (outcome.exit_code, outcome.stderr) == (0, ""), outcome.stdout
    nnxconv.convert(str(source), str(target), like=str(template), rename=str(rules))
    how = {"compare_values": True, "compare_only": "all", "atol": 0, "rtol": 0}
    assert nnxconv.compare(str(target), str(template), **how).is_match
    back = tmp_path / "back.safetensors"
    nnxconv.convert(str(target), str(back), to="safetensors", rename_back=str(rules))
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_what_is_tied_or_padded_is_in_no_rule_and_is_told(tmp_path):
    made = np.random.default_rng(0)
    table, kernel = (made.normal(size=(8, 4)).astype("float32") for _ in "ab")
    old = {"wte": {"embedding": table}, "rotary": {"kernel": kernel}}
    padded = np.concatenate([kernel, np.zeros((3, 4), np.float32)])
    new = {"wte": {"embedding": table}, "head": {"kernel": table.T.copy()}, "large": padded}
    source, template = saved(tmp_path / "a", old), saved(tmp_path / "b", new)
    outcome = run("match", source, template, "--by_values")
    assert outcome.exit_code == 1
    told = outcome.stdout.split("of the same values in some order, but in no pair:\n")[1]
    assert told.split("\n\n")[0] == (
        "  params.head.kernel holds the values of params.wte.embedding\n"
        "  params.large holds the values of params.rotary.kernel, and 12 zeros more"
    )
    found = nnxconv.match(str(source), str(template), by_values=True)
    assert [str(pair.sources[0]) for pair in found.pairs.certain] == ["wte"]
    assert "# params.head.kernel holds the values of params.wte.embedding\n" in found.to_toml()
    assert nnxconv.match(str(template), str(source), by_values=True).pairs.echoes[0].zeros == -12
