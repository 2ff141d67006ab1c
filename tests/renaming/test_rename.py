"""`convert --rename` and `compare --rename`: what leaves are called, and how they are cut."""

import re
from pathlib import Path

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import RuleError
from tests.support import checkpoints
from tests.support.checkpoints import save_item
from tests.support.command import check_golden, run, session
from tests.support.trees import same_bits, shape_tree, values


def mlp(**leaves):
    """A Linen training state with three differently sized layers and what else is given."""
    params = {
        "encoder": {
            f"Dense_{i}": {
                "kernel": checkpoints.values((4, 4), i),
                "bias": checkpoints.values((4,), i),
            }
            for i in range(3)
        },
        **leaves,
    }
    params = {"params": params}
    adam = {"count": np.asarray(3, np.int32), "mu": params, "nu": params}
    return {"step": np.asarray(3, np.int32), "params": params, "opt_state": [adam, None]}


def rules_file(tmp_path, text, name="rules.toml"):
    path = tmp_path / name
    path.write_text(f"[rules]\n{text}\n")
    return str(path)


def same(before: Path, after: Path) -> None:
    """Fails unless both items have the same tree, containers and bits."""
    assert shape_tree(after) == shape_tree(before)
    old, new = values(before), values(after)
    assert [path for path in old if not same_bits(old[path], new[path])] == []


LAYERS = '"encoder.Dense_{i}" = "encoder.layers[{i}].linear"'

# --- names ------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("to", ["linen", "nnx", "nnx-pure", "nnx-state", "maxtext"])
def test_renamed_modules_become_layers_and_come_back(to, scan_layers, tmp_path):
    source = save_item(tmp_path / "a", mlp())
    rename = rules_file(tmp_path, LAYERS)
    there, back = tmp_path / "b", tmp_path / "c"
    nnxconv.convert(
        str(source), str(there), to=to, scan_layers=scan_layers, rename=rename, verify=True
    )
    found = nnxconv.inspect(str(there)).understood
    assert ("encoder", "layers", 2, "linear", "kernel") in found.state.params
    nnxconv.convert(
        str(there), str(back), to="linen", scan_layers=False, rename_back=rename, verify=True
    )
    same(source, back)


def test_a_stack_is_renamed_as_a_whole(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen(axis=1))
    rename = rules_file(tmp_path, '"decoder.layers" = "decoder.blocks"')
    result = nnxconv.convert(str(source), str(tmp_path / "b"), to="linen", rename=rename)
    assert {array.how for array in result.plan.arrays} == {"rename"}
    restored = checkpoints.restore(tmp_path / "b")["params"]["params"]["decoder"]["blocks"]
    assert restored["norm"]["scale"].shape == (16, 3)
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), to="linen", rename_back=rename)
    same(source, tmp_path / "c")


def test_a_part_of_every_layer_can_be_renamed_and_the_stack_stays(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen(axis=1))
    rename = rules_file(tmp_path, '"decoder.layers[{i}].mlp" = "decoder.layers[{i}].ffn"')
    result = nnxconv.convert(str(source), str(tmp_path / "b"), to="linen", rename=rename)
    assert {array.how for array in result.plan.arrays} == {"rename"}
    restored = checkpoints.restore(tmp_path / "b")["opt_state"][0]["mu"]["params"]["decoder"]
    assert restored["layers"]["ffn"]["wi"]["kernel"].shape == (16, 3, 32)


def test_layers_can_be_counted_on(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    rename = rules_file(
        tmp_path,
        '"decoder.layers[0]" = "decoder.first"\n"decoder.layers[{i+1}]" = "decoder.layers[{i}]"',
    )
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen", rename=rename)
    before = checkpoints.restore(source)["params"]["params"]["decoder"]
    after = checkpoints.restore(tmp_path / "b")["params"]["params"]["decoder"]
    for new, old in {"first": "layers_0", "layers_0": "layers_1", "layers_1": "layers_2"}.items():
        assert np.array_equal(after[new]["mlp"]["wi"]["kernel"], before[old]["mlp"]["wi"]["kernel"])
    nnxconv.convert(str(tmp_path / "b"), str(tmp_path / "c"), to="linen", rename_back=rename)
    same(source, tmp_path / "c")


def test_compare_renames_side_a(tmp_path):
    source = save_item(tmp_path / "a", mlp())
    rename = rules_file(tmp_path, LAYERS)
    nnxconv.convert(str(source), str(tmp_path / "b"), rename=rename)
    options = {"compare_values": True, "compare_only": "all"}
    assert not nnxconv.compare(str(source), str(tmp_path / "b"), **options).is_match
    assert nnxconv.compare(str(source), str(tmp_path / "b"), rename=rename, **options).is_match
    assert nnxconv.compare(str(tmp_path / "b"), str(source), rename_back=rename, **options).is_match


def test_compare_says_which_rules_do_not_fit(tmp_path):
    source = save_item(tmp_path / "a", mlp())
    rename = rules_file(tmp_path, '"decoder.Dense_{i}" = "decoder.layers[{i}]"')
    names = {"A": source, "RULES": rename}
    told = session(run("compare", source, source, "--rename", rename), names)
    told += session(run("compare", source, source, "--rename_back", "gemma4-nnx"), names)
    check_golden("rules/compare.txt", told)


# --- arrays that are cut, joined and turned ---------------------------------------------------

# rules, what the arrays are called and shaped before and after
MLP = {"wi": {"kernel": (6, 8), "bias": (8,)}}
MLP_APART = {f"wi_{i}": {"kernel": (6, 4), "bias": (4,)} for i in range(2)}
HEADS = dict.fromkeys("qkv", (6, 4, 2))
FUSED = (
    '"q, k, v" = { to = "qkv", merge = { axis = 1, of = [4, 2] }, concat = 1, transpose = [1, 0] }'
)

STEPS = {
    "split": (
        '"mlp.wi" = { to = "mlp.wi_0, mlp.wi_1", split = -1 }',
        {"mlp": MLP},
        {"mlp": MLP_APART},
    ),
    "split in given sizes": (
        '"qkv" = { to = ["q", "k", "v"], split = { axis = 1, sizes = [8, 2, 2] } }',
        {"qkv": (5, 12)},
        {"q": (5, 8), "k": (5, 2), "v": (5, 2)},
    ),
    "concat": ('"a, b" = { to = "ab", concat = 0 }', {"a": (3, 2), "b": (3, 2)}, {"ab": (6, 2)}),
    "stack": ('"a, b" = { to = "ab", stack = 1 }', {"a": (3, 2), "b": (3, 2)}, {"ab": (3, 2, 2)}),
    "unstack": ('"ab" = { to = ["a", "b"], unstack = 0 }', {"ab": (2, 7)}, {"a": (7,), "b": (7,)}),
    "transpose": ('"w" = { to = "w", transpose = [2, 0, 1] }', {"w": (2, 3, 4)}, {"w": (4, 2, 3)}),
    "divide": (
        '"w" = { to = "w", divide = { axis = 1, into = [4, 2] } }', {"w": (3, 8)}, {"w": (3, 4, 2)}
    ),
    "merge": (
        '"w" = { to = "w", merge = { axis = 0, of = [3, 4] } }', {"w": (3, 4, 5)}, {"w": (12, 5)}
    ),
    "fused heads": (FUSED, HEADS, {"qkv": (24, 6)}),
    "reshape": (
        '"w" = { to = "w", reshape = { of = [2, 2, 3, 4], to = [12, 4] } }',
        {"w": (2, 2, 3, 4)},
        {"w": (12, 4)},
    ),
    "squeeze": (
        '"w" = { to = "w", reshape = { of = [1, 1, 1, 6], to = [6] } }',
        {"w": (1, 1, 1, 6)},
        {"w": (6,)},
    ),
    "permute": (
        '"w" = { to = "w", permute = { axis = 1, order = [2, 0, 1] } }',
        {"w": (4, 6)},
        {"w": (4, 6)},
    ),
    "halves": (
        '"w" = { to = "w", halves = { axis = 0, heads = 2 } }', {"w": (8, 3)}, {"w": (8, 3)}
    ),
    "a step twice": (
        '"w" = { to = "w", steps = [{ divide = { axis = 0, into = [2, 3] } },'
        " { transpose = [1, 0, 2] }, { divide = { axis = 2, into = [2, 2] } }] }",
        {"w": (6, 4)},
        {"w": (3, 2, 2, 2)},
    ),
}  # fmt: skip


def arrays(shapes, seed=0):
    if isinstance(shapes, dict):
        return {name: arrays(inner, seed + i) for i, (name, inner) in enumerate(shapes.items())}
    return checkpoints.values(shapes, seed)


def shapes(tree):
    return {
        name: shapes(inner) if isinstance(inner, dict) else inner.shape
        for name, inner in tree.items()
    }


def train_state(params):
    params = {"params": params}
    adam = {"count": np.asarray(3, np.int32), "mu": params, "nu": params}
    return {"step": np.asarray(3, np.int32), "params": params, "opt_state": [adam, None]}


@pytest.mark.sample(3)
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize(("text", "before", "after"), STEPS.values(), ids=STEPS.keys())
def test_steps_change_arrays_and_are_undone(text, before, after, layers, tmp_path):
    if layers:
        prefix = "layers[{i}]."
        left, right = text.split(" = ", 1)
        names = [*_names(before), *_names(after)]
        for name in sorted(set(names), key=len, reverse=True):
            left, right = (_prefixed(side, name, prefix) for side in (left, right))
        text = f"{left} = {right}"
        before = {f"layers_{i}": before | {"x": {"kernel": (3, 5)}} for i in range(3)}
    source = save_item(tmp_path / "a", train_state(arrays(before)), chunk_bytes=48)
    rename = rules_file(tmp_path, text)
    nnxconv.convert(
        str(source), str(tmp_path / "b"), to="linen", rename=rename, scan_layers=layers, verify=True
    )
    assert nnxconv.compare(
        str(source), str(tmp_path / "b"), rename=rename, compare_values=True, compare_only="all"
    ).is_match
    if not layers:
        params = checkpoints.restore(tmp_path / "b")["params"]["params"]
        assert shapes(params) == after
    nnxconv.convert(
        str(tmp_path / "b"),
        str(tmp_path / "c"),
        to="linen",
        rename_back=rename,
        scan_layers=False,
        verify=True,
    )
    same(source, tmp_path / "c")


def _names(tree):
    """The outermost module names that stand in the rules."""
    return ["mlp.wi_0", "mlp.wi_1", "mlp.wi"] if "mlp" in tree else list(tree)


def _prefixed(side, name, prefix):
    return re.sub(rf'(?<=["\s]){re.escape(name)}(?=["\,])', prefix + name, side)


def test_values_are_where_numpy_puts_them(tmp_path):
    text = STEPS["fused heads"][0]
    heads = arrays(STEPS["fused heads"][1])
    source = save_item(tmp_path / "a", train_state(heads))
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen", rename=rules_file(tmp_path, text))
    found = checkpoints.restore(tmp_path / "b")["opt_state"][0]["nu"]["params"]["qkv"]
    flat = [heads[name].reshape(6, 8) for name in "qkv"]
    assert np.array_equal(found, np.concatenate(flat, 1).T)


# --- boxes ------------------------------------------------------------------------------------


def boxes():
    """A Linen training state whose kernels stand in boxes, as `nn.with_partitioning` makes them."""
    params = {
        name: {"kernel": {"value": checkpoints.values((4, 4), n)}, "bias": checkpoints.values((4,))}
        for n, name in enumerate(("up", "down"))
    }
    adam = {"count": np.asarray(3, np.int32), "mu": {"params": params}, "nu": {"params": params}}
    return {"step": np.asarray(3, np.int32), "params": {"params": params}, "opt_state": [adam]}


@pytest.mark.parametrize("to", ["linen", "nnx-pure"])
def test_boxes_follow_a_parameter_that_is_called_otherwise(to, tmp_path):
    source = save_item(tmp_path / "a", boxes())
    rename = rules_file(tmp_path, '"{*module}.kernel" = "{*module}.weight"')
    there, back = tmp_path / "b", tmp_path / "c"
    nnxconv.convert(str(source), str(there), to=to, rename=rename)
    names = {path for path in shape_tree(there) if "weight" in path}
    assert len(names) == 6
    assert {path[-1] for path in names} == {"value" if to == "linen" else "weight"}
    nnxconv.convert(str(there), str(back), to="linen", rename_back=rename)
    same(source, back)


def test_a_name_is_boxed_everywhere_or_nowhere(tmp_path):
    source = save_item(tmp_path / "a", boxes())
    rename = rules_file(tmp_path, '"up.kernel" = "up.weight"\n"down.bias" = "down.weight"')
    with pytest.raises(RuleError) as refused:
        nnxconv.convert(str(source), str(tmp_path / "b"), to="linen", rename=rename)
    assert refused.value.details == (
        "some parameters would be called `weight`, others `weight/value`",
    )


# --- built-in rules ---------------------------------------------------------------------------


def test_like_chooses_the_rules_of_deepseek(conformance, tmp_path):
    root = conformance / "maxtext"
    source, like = (
        root / "main_linen_deepseek_unscan_adamw",
        root / "feat_nnx_deepseek_unscan_adamw",
    )
    result = nnxconv.convert(str(source), str(tmp_path / "b"), like=str(like))
    assert result.conversion.source.renamed[-1] == (
        "deepseek-nnx is chosen: these rules alone lead to the names of `--like`"
    )
    kept = shape_tree(like / "1" / "items")
    assert shape_tree(Path(result.target_path)) == kept
    back = nnxconv.convert(
        str(tmp_path / "b"), str(tmp_path / "c"), like=str(source), without=["aux"]
    )
    same(source / "1" / "items", Path(back.target_path))


# --- gemma4, as FORMATS describes it: two blocks of six layers, and two layers more -------------


def gemma4_layer(i):
    wi, wo = checkpoints.values((16, 32), i), checkpoints.values((32, 16), 50 + i)
    return {"mlp": {"wi": wi, "wo": wo}, "norm": {"scale": checkpoints.values((16,), 100 + i)}}


def stacked(layers):
    if isinstance(layers[0], dict):
        return {name: stacked([layer[name] for layer in layers]) for name in layers[0]}
    return np.stack(layers, 1)


def gemma4_blocks(layers):
    blocks = [
        {"local_layers": stacked(layers[at : at + 5]), "global_layer": layers[at + 5]}
        for at in range(0, len(layers) - 5, 6)
    ]
    return {"scanned_blocks": stacked(blocks)}


def gemma4(kind, count=14):
    layers = [gemma4_layer(i) for i in range(count)]
    rest = layers[count // 6 * 6 :]
    if kind == "linen":
        decoder = gemma4_blocks(layers) | {
            f"Gemma4DecoderLayerToLinen_{i}": layer for i, layer in enumerate(rest)
        }
    elif kind == "nnx":
        decoder = gemma4_blocks(layers)
        decoder |= {"layers_remainder": {"local_layers": stacked(rest)}} if rest else {}
    else:
        decoder = {f"layers_{i}": layer for i, layer in enumerate(layers)}
    tree = train_state({"decoder": decoder})
    if kind != "nnx":
        return tree
    model = tree["params"]["params"]
    adam = {"count": np.asarray(3, np.int32), "mu": model, "nu": model}
    optimizer = {"step": np.asarray(3, np.uint32), "opt_state": {"0": adam}}
    return {"model": model, "optimizer": optimizer}


GEMMA4 = [
    ("linen", "nnx", 14, "gemma4-nnx"),
    ("nnx", "linen", 14, "-gemma4-nnx"),
    ("apart", "nnx", 14, "gemma4-blocks"),
    ("apart", "linen", 14, "gemma4-blocks-linen"),
    ("nnx", "apart", 14, "-gemma4-blocks"),
    ("linen", "apart", 14, "-gemma4-blocks-linen"),
    ("apart", "nnx", 12, "gemma4-blocks"),
    ("linen", "apart", 12, "-gemma4-blocks"),
]


@pytest.mark.sample(1)
@pytest.mark.parametrize(("before", "after", "count", "name"), GEMMA4)
def test_like_needs_no_rules_for_gemma4_and_rules_lead_to_the_same(
    before, after, count, name, tmp_path
):
    source = save_item(tmp_path / "a", gemma4(before, count))
    like = save_item(tmp_path / "like", gemma4(after, count))
    nnxconv.convert(str(source), str(tmp_path / "b"), like=str(like), verify=True)
    same(like, tmp_path / "b")
    rules = {"rename_back": name[1:]} if name.startswith("-") else {"rename": name}
    nnxconv.convert(str(source), str(tmp_path / "c"), like=str(like), verify=True, **rules)
    same(like, tmp_path / "c")


WRONG_WAYS = [
    ("apart", "nnx", {"rename_back": "gemma4-blocks"}, "--rename gemma4-blocks"),
    ("nnx", "apart", {"rename": "gemma4-blocks"}, "--rename_back gemma4-blocks"),
    ("linen", "nnx", {"rename_back": "gemma4-nnx"}, "--rename gemma4-nnx"),
    ("linen", None, {"rename_back": "gemma4-nnx"}, "--rename gemma4-nnx"),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize(("before", "after", "given", "right"), WRONG_WAYS)
def test_a_built_in_set_says_which_way_it_leads(before, after, given, right, tmp_path):
    source = save_item(tmp_path / "a", gemma4(before))
    like = None if after is None else str(save_item(tmp_path / "like", gemma4(after)))
    with pytest.raises(RuleError) as refused:
        nnxconv.convert(str(source), str(tmp_path / "b"), like=like, **given)
    assert refused.value.hint == f"these rules lead the other way: `{right}`"


def test_blocks_are_loaded_into_layers_that_are_apart(tmp_path):
    source = save_item(tmp_path / "a", gemma4("linen"))
    like = gemma4("apart")
    loaded = nnxconv.load(source, like={**like, "step": np.int32(0)})
    layer = loaded["params"]["params"]["decoder"]["layers_13"]["mlp"]["wi"]
    assert same_bits(layer, gemma4_layer(13)["mlp"]["wi"])


@pytest.mark.parametrize("rules", ["gemma4-blocks", "gemma4-blocks-linen"])
def test_what_is_opened_has_the_names_that_rules_give(rules, tmp_path):
    tree = nnxconv.open(save_item(tmp_path / "a", gemma4("apart")), rename=rules)
    key = "params.decoder.scanned_blocks[1].local_layers[2].mlp.wi"
    assert same_bits(tree[key].read(), gemma4_layer(8)["mlp"]["wi"])
    back = nnxconv.open(save_item(tmp_path / "b", gemma4("nnx")), rename_back="gemma4-nnx")
    assert back.keys() >= {"params.decoder.Gemma4DecoderLayerToLinen_0.mlp.wi"}


@pytest.mark.parametrize("rules", ["gemma4-blocks", "gemma4-blocks-linen"])
def test_gemma4_without_a_remainder_needs_no_rule_for_it(rules, tmp_path):
    source = save_item(tmp_path / "a", gemma4("apart", 12))
    there, back = str(tmp_path / "b"), str(tmp_path / "c")
    nnxconv.convert(str(source), there, to="nnx-pure", scan_layers=True, rename=rules)
    decoder = checkpoints.restore(tmp_path / "b")["model"]["decoder"]
    assert decoder["scanned_blocks"]["local_layers"]["mlp"]["wi"].shape == (16, 2, 5, 32)
    nnxconv.convert(there, back, to="linen", scan_layers=False, rename_back=rules)
    same(source, tmp_path / "c")
