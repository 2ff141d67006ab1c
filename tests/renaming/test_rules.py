"""Rename rules: patterns, files, inverses, and everything that can be wrong with them."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nnxconv
from nnxconv.errors import BadInput, NnxconvError, PlanError
from nnxconv.renaming.apply import apply, cannot_be_undone, fits
from nnxconv.renaming.builtin import builtin_rules
from nnxconv.renaming.pattern import Layer, Name, Number, Pattern, literal, parse, spell_pattern
from nnxconv.renaming.rule import Rule, Rules
from nnxconv.renaming.steps import Concat
from nnxconv.renaming.toml import parse_rules, write_rules
from nnxconv.tree.views import Source
from tests.support import checkpoints
from tests.support.checkpoints import save_item
from tests.support.command import check_golden, run, session

# --- patterns ---------------------------------------------------------------------------------

LAYER = ("decoder", "layers", 5, "mlp", "wi_1", "kernel")

# pattern, key, what is open there
FITTING = [
    ("decoder.layers[5]", LAYER, {}),  # a layer
    ("decoder.layers[{i}].mlp", LAYER, {"i": 5}),
    ("decoder.layers[{i+2}]", LAYER, {"i": 3}),  # shifted
    ("decoder.layers[{2*i+1}]", LAYER, {"i": 2}),  # every other one
    ("decoder.layers[{4*block+i}]", LAYER, {"block": 1, "i": 1}),  # in blocks
    ("decoder.layers[{i}].mlp.wi_{j}", LAYER, {"i": 5, "j": 1}),
    ("{*a}.layers[{i}].{*b}.wi_1", LAYER, {"a": "decoder", "i": 5, "b": "mlp"}),
    ("decoder.{*x}s", LAYER, {"x": "layer"}),  # the rest of a name
    ("h.{i}", ("h", "12", "w"), {"i": 12}),  # a name that is a number
    ("a_{i}.b_{i}", ("a_3", "b_3"), {"i": 3}),  # the same number twice
    ('["a.b"]["c[0]"]', ("a.b", "c[0]"), {}),  # names that are no words
    ('["model.layers.{i}.q"].w', ("model.layers.7.q", "w"), {"i": 7}),  # numbers in such names
    ('["net/~/linear_{i+1}"].w', ("net/~/linear_2", "w"), {"i": 1}),
    ('["{*module}.weight"]', ("layers.0.norm.weight",), {"module": "layers.0.norm"}),
    ('["a{{i}}b"]', ("a{i}b",), {}),  # braces of the name itself
]


@pytest.mark.parametrize(("pattern", "key", "binding"), FITTING)
def test_a_pattern_fits_and_gives_the_key_back(pattern, key, binding):
    found = parse(pattern).match(key)
    assert found.binding == binding
    assert (*parse(pattern).fill(found.binding), *found.rest) == key


# pattern, key
NOT_FITTING = [
    ("decoder.layers[{i+6}]", LAYER),  # i would be negative
    ("decoder.layers[{2*i}]", LAYER),  # and here no whole number
    ("decoder.layers.{i}", LAYER),  # a name is no layer
    ("decoder.layers[4]", LAYER),
    ("decoder.layer", LAYER),  # a name fits whole or not at all
    ("h[{i}]", ("h", "12", "w")),  # a layer is no name
    ("a_{i}.b_{i}", ("a_3", "b_4")),
    ("a_{i}", ("a_03",)),  # flax writes no leading zeros
    ("decoder.layers[{i}].mlp.wi_1.kernel.more", LAYER),
]


@pytest.mark.parametrize(("pattern", "key"), NOT_FITTING)
def test_a_pattern_does_not_fit_what_only_looks_alike(pattern, key):
    assert parse(pattern).match(key) is None


@pytest.mark.parametrize("text", [pattern for pattern, _ in NOT_FITTING])
def test_a_pattern_is_spelled_as_it_was_read(text):
    assert spell_pattern(parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "a..b", ".a", "a[", "a[x]", "a[{i*}]", "{i", "a.{2i}", "a.{i-j}"]
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(BadInput):
        parse(text)


NAMES = st.text(
    st.sampled_from("abz_-09.,/~[]{}\"'\\ é\n\x7f"), min_size=1, max_size=6
) | st.sampled_from(["model.layers.0.q.weight", "net/~/linear_1", "h", "12"])
KEYS = st.lists(NAMES | st.integers(0, 12), min_size=1, max_size=4).map(tuple)


def with_numbers_open(key):
    """The pattern of a key with every number left open."""
    parts = []
    for part in literal(key).parts:
        names = iter("ijklmnopqrst")
        if isinstance(part, Layer):
            parts.append(Layer(Number(((1, "layer"),), 0)))
            continue
        texts = re.split("(0|[1-9][0-9]*)", part.fill({}))
        found = [Number(((1, next(names)),)) if at % 2 else t for at, t in enumerate(texts)]
        parts.append(Name(tuple(text for text in found if text != "")))
    return Pattern(tuple(parts))


@given(KEYS, KEYS)
@settings(max_examples=300, deadline=None)
def test_every_key_has_rules_that_read_back(old, new):
    for sources in (literal(old), with_numbers_open(old)):
        rules = Rules((Rule((sources, sources), (literal(new),), (Concat(0),)),))
        text = write_rules(rules)
        if sources == literal(old):
            assert parse_rules(text).rules == rules.rules
        [left] = [parse(spell_pattern(sources))]
        assert spell_pattern(left) == spell_pattern(sources)
        assert left.match(old) == sources.match(old)


# --- files ------------------------------------------------------------------------------------

WHOLE = """[counts]
n = "decoder.dense_layers[{i}]"

[rules]
"encoder.Dense_{i}.kernel" = "encoder.layers[{i}].linear.kernel"
"decoder.moe_layers[{i}]" = "decoder.layers[{i+n}]"
"mlp.wi" = { to = ["mlp.wi_0", "mlp.wi_1"], split = 1 }
"qkv" = { to = ["q", "k", "v"], split = { axis = 1, sizes = [8, 4, 4] } }
"q.kernel, k.kernel" = { to = "qk.kernel", merge = { axis = 1, of = [4, 8] }, concat = 1 }
"a, b" = { to = "ab", stack = 0 }
"ab" = { to = ["a", "b"], unstack = 0 }
"w" = { to = "w", transpose = [1, 0], divide = { axis = -1, into = [4, 8] } }
"v" = { to = "v", merge = 0, optional = true }
"p" = { to = "p", reshape = { of = [4, 4, 3, 8], to = [48, 8] } }
"s" = { to = "s", reshape = [8] }
"g" = { to = "g", permute = { axis = -1, order = [0, 2, 1, 3] } }
"q" = { to = "q", transpose = [1, 0], halves = { axis = 1, heads = 2 } }
"r" = { to = "r", pairs = { axis = 1, heads = 2 } }
"o" = { to = "o", divide = { axis = 1, into = [-1, 8] } }
"m" = { to = "m", merge = { axis = 1, of = [-1, 8] } }
"t" = { to = "t", steps = [{ merge = { axis = 0, of = [2, 4] } }, { merge = 0 }] }
'["a.b"].c' = "c"
"""


def test_rules_are_written_as_they_were_read():
    assert write_rules(parse_rules(WHOLE)) == WHOLE


@pytest.mark.parametrize("name", builtin_rules())
def test_built_in_rules_have_an_inverse_of_which_they_are_the_inverse(name):
    rules = builtin_rules()[name]
    assert {str(rule) for rule in rules.inverse().inverse()} == {str(rule) for rule in rules}


FAULTY_FILES = {
    "not-toml": 'rules = "',
    "no-table": '[other]\na = "b"',
    "unreadable": '[rules]\n"a..b" = "c"\n"a" = { split = 1 }\n"b" = { to = "c", melt = 1 }\n'
    '"c" = { to = "d", transpose = [0, 0] }\n"d" = 7',
    "not-applicable": '[rules]\n"a_{i}" = "b"\n"a, b" = "c"\n"a" = { to = "b, c", concat = 0 }\n'
    '"a, c" = { to = "c, d", concat = 0 }',
}


def check_session(name, tmp_path, source, rules, *options):
    """Converts with the options, and holds what is printed against a golden file."""
    target = tmp_path / "b"
    outcome = run("convert", source, target, *options)
    names = {"LINEN": source, "RULES": rules, "NNX": target}
    check_golden(f"rules/{name}.txt", session(outcome, names))


@pytest.mark.parametrize("name", FAULTY_FILES)
def test_every_faulty_rule_of_a_file_is_told(name, tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    rules = tmp_path / "rules.toml"
    rules.write_text(FAULTY_FILES[name])
    outcome = run("convert", source, tmp_path / "b", "--rename", rules)
    check_golden(
        f"rules/{name}.txt",
        session(outcome, {"LINEN": source, "RULES": rules, "NNX": tmp_path / "b"}),
    )


# --- rules that do not fit a checkpoint -------------------------------------------------------

NOT_FITTING_RULES = {
    "collision": '"decoder.norm" = "embed"\n"decoder.layers[0].norm" = "embed"',
    "fits-nothing": '"decoder.layers[{i}].attention" = "x_{i}"\n"decoder" = "d"\n"y" = "z"',
    "taken-earlier": '"decoder" = "d"\n"decoder.norm" = "n"',
    "spelt-otherwise": '"decoder.layers_{i}.mlp" = "decoder.layers_{i}.ffn"',
    "does-not-split": '"embed.embedding" = { to = "a, b, c", split = 0 }\n'
    '"decoder.norm" = { to = "n", transpose = [1, 0] }',
    "no-inverse": '"decoder.norm" = "n"\n"embed.embedding" = { to = "e", merge = 0 }',
    "inside-an-array": '"decoder.norm.scale" = "decoder.layers[0].mlp"',
}


@pytest.mark.parametrize("name", NOT_FITTING_RULES)
def test_everything_that_does_not_fit_is_told_at_once(name, tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    rules = tmp_path / "rules.toml"
    rules.write_text("[rules]\n" + NOT_FITTING_RULES[name])
    option = "--rename_back" if name == "no-inverse" else "--rename"
    outcome = run("convert", source, tmp_path / "b", option, rules)
    check_golden(
        f"rules/{name}.txt",
        session(outcome, {"LINEN": source, "RULES": rules, "NNX": tmp_path / "b"}),
    )


def test_what_is_left_over_under_like_is_told_with_the_rest(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    like = save_item(tmp_path / "like", checkpoints.nnx_state())
    rules = tmp_path / "rules.toml"
    rules.write_text('[rules]\n"decoder.norm" = "final_norm"\n"encoder" = "decoder"')
    outcome = run("convert", source, tmp_path / "b", "--rename", rules, "--like", like)
    names = {"LINEN": source, "RULES": rules, "NNX": tmp_path / "b", "LIKE": like}
    check_golden("rules/like.txt", session(outcome, names))


def test_rules_that_are_not_there_are_told_with_those_that_are(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    check_session("unknown", tmp_path, source, tmp_path / "rules.toml", "--rename", "deepsek")


def test_what_was_renamed_is_told(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[rules]\n"decoder.layers[{i}].mlp.wi.kernel" = { to = "decoder.layers[{i}].wi_0, '
        'decoder.layers[{i}].wi_1", split = 1 }\n"embed.embedding" = { to = "e", divide = '
        "{ axis = 1, into = [4, 4] } }"
    )
    outcome = run(
        "convert", source, tmp_path / "b", "--rename", rules, "--dry_run", "--without", "opt_state"
    )
    names = {"LINEN": source, "RULES": rules, "NNX": tmp_path / "b"}
    check_golden("rules/plan.txt", session(outcome, names))


def test_a_block_that_is_too_large_for_the_memory_is_refused(tmp_path):
    tree = {
        "params": {"params": {"w": np.ones((512, 512), np.float32), "v": np.ones(3, np.float32)}}
    }
    source = save_item(tmp_path / "a", tree)
    rules = parse_rules('[rules]\n"w" = { to = "w", divide = { axis = 0, into = [2, 256] } }')
    with pytest.raises(PlanError) as error:
        nnxconv.convert(str(source), str(tmp_path / "b"), rename=rules, max_memory="1MiB")
    assert error.value.where == "w.value  f32[2,256,512]"


# --- inverses ---------------------------------------------------------------------------------

NAMES = ("a", "b", "mlp_0", "mlp_1", "x.y")
PARTS = st.one_of(st.sampled_from(NAMES), st.integers(0, 3))


@st.composite
def trees(draw):
    """Leaves of four axes under keys of which none is within another."""
    keys = draw(
        st.lists(st.lists(PARTS, min_size=1, max_size=3).map(tuple), max_size=8, unique=True)
    )
    kept = [
        k
        for k in keys
        if isinstance(k[0], str) and not any(k != o and k[: len(o)] == o for o in keys)
    ]
    return {
        key: Source(str(n), (2, 4, 6, 2), "float32", (2, 4, 6, 2)) for n, key in enumerate(kept)
    }


# left, right
NAMES_OF_RULES = [
    ("a", "c.d"),
    ("b[{i}]", "blocks[{i+2}]"),
    ("mlp_{i}", "ffn[{2*i+1}].in"),
    ("a.b", "ab"),
    ("{*x}.b", "out.{*x}"),
    ("b[{i}].a[{j}]", "flat[{4*i+j}]"),
]
STEPS = [
    "",
    "transpose = [3, 1, 0, 2]",
    "divide = { axis = 1, into = [2, 2] }",
    "merge = { axis = -2, of = [6, 2] }",
    "transpose = [1, 0, 2, 3], divide = { axis = -1, into = [2, 1] }",
    "reshape = { of = [4, 4, 6, 2], to = [4, 24, 2] }",
    "permute = { axis = 2, order = [1, 2, 0] }",
    "divide = { axis = 2, into = [-1, 3] }",
    "merge = { axis = 1, of = [4, -1] }",
    "pairs = { axis = -2, heads = 3 }, halves = { axis = 1, heads = 2 }",
]
CUTS = [
    "split = 2",
    "split = { axis = -2, sizes = [1, 2, 3] }",
    "split = { axis = 1, sizes = [2, 1, 1] }",
]


@st.composite
def rule_sets(draw):
    """Rules whose left sides may overlap, some of which change and cut arrays."""
    names = draw(st.lists(st.sampled_from(NAMES_OF_RULES), min_size=1, max_size=4, unique=True))
    lines = []
    for left, right in names:
        kind = draw(st.sampled_from(("", "steps", "cut")))
        steps = draw(st.sampled_from({"": [""], "steps": STEPS, "cut": CUTS}[kind]))
        to = f"{right}.r0, {right}.r1, {right}.r2" if kind == "cut" else right
        lines.append(f"'{left}' = {{ to = '{to}'{', ' if steps else ''}{steps} }}")
    return parse_rules("[rules]\n" + "\n".join(lines))


def renamed(tree, rules):
    return apply(tree, rules, fits(tree, rules))


@pytest.mark.full
@settings(max_examples=300, deadline=None)
@given(trees(), rule_sets())
def test_the_inverse_rules_undo_the_rules(tree, rules):
    there = renamed(tree, rules)
    assume(not there.problems and not cannot_be_undone(there.moves, rules))
    back = renamed(there.tree, rules.inverse())
    assert (back.problems, back.tree) == ([], tree)


@settings(max_examples=300, deadline=None)
@given(trees(), rule_sets())
def test_no_leaf_is_lost_without_a_problem_that_says_so(tree, rules):
    there = renamed(tree, rules)
    if not there.problems:
        cut = sum(len(targets) for targets in there.moves.values())
        assert len(there.tree) == cut


def test_what_the_inverse_would_not_bring_back_is_told(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    rules = parse_rules('[rules]\n"embed" = "decoder"')
    result = nnxconv.convert(str(source), str(tmp_path / "b"), rename=rules)
    assert result.conversion.source.renamed[1] == (
        "not to be undone: decoder.layers[0].mlp.wi.kernel would become"
        " embed.layers[0].mlp.wi.kernel, and 9 more"
    )


@pytest.mark.parametrize("rename", ["rename", "rename_back"])
def test_rules_are_for_one_direction_at_a_time(rename, tmp_path):
    with pytest.raises(NnxconvError, match="both given"):
        nnxconv.compare("a", "b", rename=Rules(()), rename_back=Rules(()))


def test_the_rules_in_the_docs_can_be_read():
    page = (Path(__file__).parents[2] / "docs/rename.md").read_text()
    [text] = re.findall(r"```toml\n(.*?)```", page, re.S)
    assert len(parse_rules(text).rules) == 7
