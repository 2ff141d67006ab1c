"""Stacks of blocks: every leaf of the result stands where a loop over the layers puts it."""

import json
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput, LayerError, NnxconvError
from nnxconv.state import family_sources
from nnxconv.state.family_toml import parse_families
from tests.support import checkpoints
from tests.support.command import run

MARKS = {
    "Qwen3-Next": "in_proj_qkvz",
    "Gemma 4": "layer_scalar",
    "DeepSeek-V4": "hca_compressor",
    "gpt-oss": "GptOssAttention",
    "Llama 4": "Llama4MoEBlock_0",
    "OLMo 3": "post_mlp_layer_norm",
    "Gemma 3": "post_self_attention_norm",
    "Envy": "MoeBlock_0",
}
UNIFORM = ("gpt-oss", "Llama 4", "OLMo 3", "Gemma 3")
"""Those whose layers are all of one kind, or alike in their names."""

LOCAL = {"in_proj_qkvz": {"kernel": (7, 5)}, "norm": {"scale": (6,)}}
GLOBAL = {"query": {"kernel": (7, 5)}, "norm": {"scale": (6,)}}


def values(shapes: Any, seed: int) -> Any:
    """Arrays of these shapes, other ones for each seed."""
    if isinstance(shapes, tuple):
        return checkpoints.values(shapes, seed)
    return {name: values(shape, seed + place) for place, (name, shape) in enumerate(shapes.items())}


def stacked(trees: list[Any], axis: int) -> Any:
    """One tree with a further axis in every array, at `axis` or last where there are fewer."""
    if isinstance(trees[0], dict):
        return {name: stacked([tree[name] for tree in trees], axis) for name in trees[0]}
    return np.stack(trees, min(axis, trees[0].ndim))


@dataclass(frozen=True)
class Model:
    """A model of one family: how many layers a block has, blocks, layers before and after them."""

    family: str
    period: int
    blocks: int
    axis: int
    prefix: int = 0
    rest: int = 0

    def layers(self) -> list[Any]:
        kinds = [LOCAL] * (self.period - 1) + [GLOBAL]
        count = self.prefix + self.period * self.blocks + self.rest
        shapes = [kinds[(i - self.prefix) % self.period] for i in range(count)]
        if self.family == "Gemma 4":
            shapes = [GLOBAL | {"layer_scalar": (1,)}] * count
        if self.family in UNIFORM:
            shapes = [GLOBAL | {MARKS[self.family]: {"scale": (6,)}}] * count
        if self.family == "Llama 4":  # not every layer has experts
            shapes = [GLOBAL if i % 2 else shape for i, shape in enumerate(shapes)]
        if self.family == "DeepSeek-V4":
            kinds = [LOCAL | {"hca_compressor": {"kernel": (6, 5)}}, GLOBAL]
            body = [kinds[i % 2] for i in range(count - self.prefix)]
            shapes = [GLOBAL] * self.prefix + body
        if self.family == "Envy":
            ends = [i % self.period == self.period - 1 for i in range(count)]
            shapes = [GLOBAL | {("mlp", "MoeBlock_0")[end]: {"wo": (6,)}} for end in ends]
        return [values(shape, 10 * i) for i, shape in enumerate(shapes)]

    def apart(self) -> dict[str, Any]:
        return {f"layers_{i}": layer for i, layer in enumerate(self.layers())}

    def in_blocks(self) -> dict[str, Any]:
        layers = self.layers()
        body = layers[self.prefix : self.prefix + self.period * self.blocks]
        blocks = [body[i : i + self.period] for i in range(0, len(body), self.period)]
        decoder: dict[str, Any] = {f"layers_{i}": layers[i] for i in range(self.prefix)}
        if self.family in ("Qwen3-Next", "Gemma 4"):
            made = [
                {"local_layers": stacked(block[:-1], self.axis), "global_layer": block[-1]}
                for block in blocks
            ]
        else:
            name = "layer" if self.family == "Qwen3.5" else "layers"
            made = [{f"{name}_{j}": layer for j, layer in enumerate(block)} for block in blocks]
        apart_from_it = self.family in ("Gemma 4", "DeepSeek-V4")
        group = "scanned_blocks" if apart_from_it else "layers"
        if made:
            decoder[group] = stacked(made, self.axis)
        if self.rest:
            rest = layers[len(layers) - self.rest :]
            decoder["layers_remainder"] = (
                {f"layers_{j}": layer for j, layer in enumerate(rest)}
                if self.family == "Gemma 3"
                else {"local_layers": stacked(rest, self.axis)}
            )
        return decoder


def state(decoder: dict[str, Any]) -> dict[str, Any]:
    params = {"params": {"decoder": decoder}}
    adam = {"count": np.int32(2), "mu": params, "nu": params}
    return {"step": np.int32(2), "params": params, "opt_state": [adam]}


MODELS = [
    *(Model("Qwen3-Next", p, b, a) for p in (2, 4) for b in (1, 3) for a in (0, 1)),
    *(
        Model("Gemma 4", p, b, a, rest=r)
        for p in (3, 6)
        for b in (2,)
        for a in (0, 1)
        for r in (0, 2)
    ),
    *(Model("Qwen3.5", p, b, a) for p in (2, 4) for b in (1, 3) for a in (0, 1)),
    *(Model("DeepSeek-V4", 2, b, a, prefix=n) for b in (2, 4) for a in (0, 1) for n in (0, 3)),
    *(Model("Envy", p, b, 1) for p in (2, 3) for b in (1, 3)),
    *(Model("gpt-oss", 2, b, a) for b in (2, 3) for a in (0, 1)),
    *(Model(family, 4, 2, a) for family in ("Llama 4", "OLMo 3") for a in (0, 1)),
    *(Model("Gemma 3", 6, 2, a, rest=r) for a in (0, 1) for r in (0, 2)),
]
each = pytest.mark.parametrize("model", MODELS, ids=str)

ONLY_REST = [
    *(Model(family, 6, 0, a, rest=4) for family in ("Gemma 3", "Gemma 4") for a in (0, 1)),
    *(Model("Qwen3-Next", 4, 0, a, rest=3) for a in (0, 1)),
]
"""Models of fewer layers than a block has."""


def saved(tmp_path, name, tree):
    return str(checkpoints.save_item(tmp_path / name, tree))


def check_equal(a: str, b: str) -> None:
    report = nnxconv.compare(
        a, b, compare_values=True, compare_only="all", atol=0, rtol=0, ignore_rngs=False
    )
    assert report.findings == []


@pytest.mark.sample(3)
@each
def test_blocks_are_taken_apart_layer_by_layer(model, tmp_path):
    source = saved(tmp_path, "blocks", state(model.in_blocks()))
    wanted = saved(tmp_path, "wanted", state(model.apart()))
    options = {"scan_layers": False, "to": "linen", "layer_axis": model.axis}
    nnxconv.convert(source, str(tmp_path / "new"), **options)
    found, there = (nnxconv.inspect(path).item.tree for path in (str(tmp_path / "new"), wanted))
    assert found.keys() == there.keys()
    check_equal(str(tmp_path / "new"), wanted)


@pytest.mark.sample(4)
@each
def test_layers_apart_become_the_blocks_of_a_template(model, tmp_path):
    source = saved(tmp_path, "apart", state(model.apart()))
    like = saved(tmp_path, "like", state(model.in_blocks()))
    nnxconv.convert(source, str(tmp_path / "new"), like=like, layer_axis=model.axis)
    check_equal(str(tmp_path / "new"), like)


MARKED = [
    *(m for m in MODELS if m.family == "Qwen3-Next"),
    *(m for m in MODELS if m.family == "Gemma 4" and m.period == 6),
    *(m for m in MODELS if m.family == "DeepSeek-V4" and m.prefix == 3),
    *(m for m in MODELS if m.family in ("Envy", *UNIFORM)),
]


@pytest.mark.sample(4)
@pytest.mark.parametrize("model", MARKED, ids=str)
def test_layers_apart_become_blocks_where_their_marks_tell_the_family(model, tmp_path):
    source = saved(tmp_path, "apart", state(model.apart()))
    wanted = saved(tmp_path, "wanted", state(model.in_blocks()))
    options = {"scan_layers": True, "to": "linen", "layer_axis": model.axis}
    result = nnxconv.convert(source, str(tmp_path / "new"), **options)
    check_equal(str(tmp_path / "new"), wanted)
    alike = ", as those of `--family qwen3.5` have" if model.family == "Qwen3-Next" else ""
    assert result.conversion.assumed[-1] == (
        f"`decoder.layers` has blocks of {model.period} as {model.family} has them, for its layers"
        f" have `{MARKS[model.family]}`{alike}; `--family` or `--like` says otherwise"
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("model", MARKED, ids=str)
def test_what_was_taken_apart_becomes_the_same_blocks_again(model, tmp_path):
    source = saved(tmp_path, "blocks", state(model.in_blocks()))
    apart, back = str(tmp_path / "apart"), str(tmp_path / "back")
    options = {"to": "linen", "layer_axis": model.axis}
    nnxconv.convert(source, apart, scan_layers=False, **options)
    nnxconv.convert(apart, back, scan_layers=True, **options)
    trees = [nnxconv.inspect(path).item.tree for path in (source, back)]
    assert trees[0].keys() == trees[1].keys()
    check_equal(source, back)


@pytest.mark.sample(2)
@pytest.mark.parametrize("model", ONLY_REST, ids=str)
def test_layers_that_fill_no_block_are_all_of_them_a_remainder(model, tmp_path):
    apart = saved(tmp_path, "apart", state(model.apart()))
    blocks = saved(tmp_path, "blocks", state(model.in_blocks()))
    for source, scan, wanted in ((apart, True, blocks), (blocks, False, apart)):
        asked = str(tmp_path / f"asked-{scan}")
        options = {"scan_layers": scan, "to": "linen", "layer_axis": model.axis}
        nnxconv.convert(source, asked, **options)
        like = str(tmp_path / f"like-{scan}")
        nnxconv.convert(source, like, like=wanted, layer_axis=model.axis)
        for new in (asked, like):
            trees = [nnxconv.inspect(path).item.tree for path in (new, wanted)]
            assert trees[0].keys() == trees[1].keys()
            check_equal(new, wanted)


@pytest.mark.parametrize(("family", "period"), [("gpt-oss", 2), ("OLMo 3", 4), ("Llama 4", 4)])
def test_fewer_layers_than_a_block_are_no_plain_stack(family, period, tmp_path):
    layers = {"layers_0": values(GLOBAL | {MARKS[family]: {"scale": (6,)}}, 1)}
    source, new = saved(tmp_path, "apart", state(layers)), tmp_path / "new"
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(new), scan_layers=True, to="linen")
    said = f"the 1 layers of `decoder.layers` fill no block of {period}, as {family} has them"
    assert refused.value.message == said
    assert not new.exists()


QWEN35 = Model("Qwen3.5", 4, 2, 1)


def test_a_family_that_is_named_goes_before_the_marks_of_another(tmp_path):
    source = saved(tmp_path, "apart", state(QWEN35.apart()))
    wanted = saved(tmp_path, "wanted", state(QWEN35.in_blocks()))
    options = {"scan_layers": True, "to": "linen", "family": "qwen3.5"}
    result = nnxconv.convert(source, str(tmp_path / "new"), **options)
    check_equal(str(tmp_path / "new"), wanted)
    assert result.conversion.assumed == ()


# what stands beside the layers of a Qwen3.5, which are called as those of Qwen3-Next are
BESIDE_QWEN35 = {
    "its vocabulary": {"token_embedder": {"embedding": np.ones((248320, 1), np.int8)}},
    "its vision encoder": {
        "vision_encoder": {"Qwen3_5MoeVisionEncoder_0": {"norm": {"scale": np.ones(6)}}}
    },
}


@pytest.mark.parametrize("beside", BESIDE_QWEN35.values(), ids=BESIDE_QWEN35)
def test_qwen35_is_known_by_what_stands_beside_its_layers(beside, tmp_path):
    trees = [state(layers) for layers in (QWEN35.apart(), QWEN35.in_blocks())]
    for tree in trees:
        tree["params"]["params"] |= beside
        tree["opt_state"] = []
    source, wanted = (saved(tmp_path, n, tree) for n, tree in zip("ab", trees, strict=True))
    result = nnxconv.convert(source, str(tmp_path / "new"), scan_layers=True, to="linen")
    check_equal(str(tmp_path / "new"), wanted)
    assert result.conversion.assumed == (
        "`decoder.layers` has blocks of 4 as Qwen3.5 has them, for its layers have `query`, and"
        " what is beside them is theirs as well; `--family` or `--like` says otherwise",
    )


# a family that is named, and blocks of another period than it usually has
PERIODS = [Model("Qwen3.5", 2, 2, 1), Model("Qwen3.5", 3, 2, 1), Model("Qwen3-Next", 2, 4, 1)]


@pytest.mark.parametrize("model", PERIODS, ids=str)
def test_marks_tell_the_period_of_a_family_that_is_named(model, tmp_path):
    source = saved(tmp_path, "apart", state(model.apart()))
    wanted = saved(tmp_path, "wanted", state(model.in_blocks()))
    options = {"scan_layers": True, "to": "linen", "family": model.family.lower()}
    nnxconv.convert(source, str(tmp_path / "new"), **options)
    check_equal(str(tmp_path / "new"), wanted)


def test_blocks_are_no_layers_once_compared(tmp_path):
    blocks = saved(tmp_path, "blocks", state(QWEN35.in_blocks()))
    check_equal(blocks, saved(tmp_path, "apart", state(QWEN35.apart())))
    opened = nnxconv.open(blocks)
    assert np.array_equal(
        opened["params.decoder.layers[6].norm.scale"].read(), QWEN35.layers()[6]["norm"]["scale"]
    )


def test_inspect_counts_the_layers_in_blocks(tmp_path):
    model = Model("DeepSeek-V4", 2, 4, 1, prefix=3)
    shown = run("inspect", saved(tmp_path, "a", state(model.in_blocks()))).stdout
    assert "decoder.layers: 11 layers, stacked on axis 1 in blocks of 2\n" in shown


# --- families of one's own ------------------------------------------------------------------------

OURS = """
[ours]
stack = "body"
members = ["first", "inner[{i}]"]
remainder = "tail[{i}]"
period = 3
prefix = 1
"""


def our_model(tmp_path):
    """Eight layers in two ways: one apart, two blocks of three, one left over."""
    shapes = [GLOBAL, *(2 * [GLOBAL, LOCAL, LOCAL]), GLOBAL]
    layers = [values(shape, 10 * i) for i, shape in enumerate(shapes)]
    made = [{"first": layers[i], "inner": stacked(layers[i + 1 : i + 3], 1)} for i in (1, 4)]
    tail = stacked(layers[7:], 1)
    blocks = {"layers_0": layers[0], "body": stacked(made, 1), "tail": tail}
    (tmp_path / "ours.toml").write_text(OURS)
    return (
        saved(tmp_path, "apart", state({f"layers_{i}": layer for i, layer in enumerate(layers)})),
        saved(tmp_path, "blocks", state(blocks)),
    )


def test_a_file_describes_a_family(tmp_path):
    apart, blocks = our_model(tmp_path)
    family = str(tmp_path / "ours.toml")
    for source, scan, wanted in ((apart, True, blocks), (blocks, False, apart)):
        new = str(tmp_path / f"to-{scan}")
        nnxconv.convert(source, new, to="linen", scan_layers=scan, family=family, layer_axis=1)
        assert nnxconv.inspect(new).item.tree.keys() == nnxconv.inspect(wanted).item.tree.keys()
        check_equal(new, wanted)


def test_a_described_family_is_known_wherever_layers_are(tmp_path):
    apart, blocks = our_model(tmp_path)
    how = {"family": str(tmp_path / "ours.toml")}
    assert not nnxconv.compare(apart, blocks).is_match
    assert nnxconv.compare(apart, blocks, compare_values=True, **how).is_match
    key = "params.decoder.layers[5].norm.scale"
    there = nnxconv.open(blocks, **how)
    assert np.array_equal(there[key].read(), nnxconv.open(apart)[key].read())
    pairs = nnxconv.match(blocks, apart, **how).pairs
    assert (len(pairs.certain), pairs.only_source, pairs.only_template) == (3, (), ())
    like = {"params": checkpoints.restore(apart)["params"]}
    loaded = nnxconv.load(blocks, like=like, layer_axis=1, **how)["params"]
    scale = loaded["params"]["decoder"]["layers_5"]["norm"]["scale"]
    assert np.array_equal(scale, there[key].read())
    nnxconv.write_checksums(apart)
    manifest = f"{apart}.checksums.json"
    assert nnxconv.check_checksums(blocks, manifest=manifest, **how).is_match
    new = str(tmp_path / "new")
    nnxconv.convert(apart, new, scan_layers=True, to="linen", layer_axis=1, verify=True, **how)


def test_a_package_announces_families(monkeypatch, tmp_path):
    _, blocks = our_model(tmp_path)
    point = metadata.EntryPoint("ours", "json:__name__", family_sources.GROUP)
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: OURS)
    announced = {family_sources.GROUP: [point]}
    monkeypatch.setattr(metadata, "entry_points", lambda group: announced.get(group, []))
    family_sources.known_families.cache_clear()
    try:
        assert "ours" in family_sources.known_families()
        shown = run("inspect", blocks).stdout
    finally:
        monkeypatch.undo()
        family_sources.known_families.cache_clear()
    assert "decoder.layers: 8 layers, stacked on axis 1 in blocks of 3\n" in shown


def test_families_that_cannot_be_loaded_are_an_error_that_names_their_package(monkeypatch):
    point = metadata.EntryPoint("ours", "no_such_module:FAMILIES", family_sources.GROUP)
    announced = {family_sources.GROUP: [point]}
    monkeypatch.setattr(metadata, "entry_points", lambda group: announced.get(group, []))
    family_sources.known_families.cache_clear()
    try:
        with pytest.raises(BadInput) as raised:
            family_sources.known_families()
    finally:
        monkeypatch.undo()
        family_sources.known_families.cache_clear()
    assert raised.value.message == "the families `ours` of `no_such_module` cannot be loaded"
    assert raised.value.where == "no_such_module:FAMILIES"
    assert raised.value.details == ("ModuleNotFoundError: No module named 'no_such_module'",)
    assert raised.value.hint == (
        "repair `no_such_module`, or remove it: `pip uninstall no_such_module`"
    )


# what a description says, and what is wrong with it
FAULTS = {
    "": "there is no table in it",
    "x = 1": "x: this is no table",
    "[x]\nsize = 3": "x: `size` is not known",
    "[x]\nmembers = ['a']": "x: it has no `stack`, or no list of `members`",
    "[x]\nstack = 'a'\nmembers = []": "x: it has no `stack`, or no list of `members`",
    "[x]\nstack = 3\nmembers = ['a']": "x: `stack` is 3",
    "[x]\nstack = 'a'\nmembers = ['{i}{i}']": "x: '{i}{i}' is no member: `layers_{i}`,"
    " `local_layers[{i}]` or a name",
    "[x]\nstack = 'a'\nmembers = ['a_{i}', 'b[{i}]']": "x: more than one member has the `{i}`",
    "[x]\nstack = 'a'\nmembers = ['a']\nremainder = 'b'": "x: `remainder` has no `{i}`",
    "[x]\nstack = 'a'\nmembers = ['a', 'b']\nperiod = 1": "x: `period` is 1, with 2 members",
    "[x]\nstack = 'a'\nmembers = ['a']\nprefix = true": "x: `prefix` is True",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_faulty_description_is_refused(text):
    with pytest.raises(BadInput) as refused:
        parse_families(text, "ours.toml")
    assert str(refused.value.message) == "this describes no family of models"
    assert refused.value.details == (FAULTS[text],)


def test_a_family_that_does_not_fit_is_refused(tmp_path):
    source, new = saved(tmp_path, "apart", state(QWEN35.apart())), str(tmp_path / "new")

    def refusal(family):
        with pytest.raises(NnxconvError) as refused:
            nnxconv.convert(source, new, to="linen", scan_layers=True, family=str(family))
        return refused.value.message

    text = "[{name}]\nstack = 'a'\nmembers = ['a_{{i}}']\n{rest}"
    for name, rest in (("h", "apart = 'h'"), ("open", ""), ("long", "period = 6\nprefix = 3")):
        (tmp_path / name).write_text(text.format(name=name, rest=rest))
    said = "`nobody` is no file that describes a family of models, and no family that is known"
    assert refusal("nobody") == said
    assert refusal(tmp_path / "h") == "no layers are called `h`, as those of h are"
    said = "the description of open does not say how many layers a block has"
    assert refusal(tmp_path / "open") == said
    said = "the 8 layers of `decoder.layers` fill no block of 6 after the first 3, as long has it"
    assert refusal(tmp_path / "long") == said
    assert not (tmp_path / "new").exists()


# --- what is not understood -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocks", "scanned_blocks", "linear_layers"])
def test_stacks_within_layers_are_not_left_in_silence(name, tmp_path):
    inner = stacked([values(LOCAL, i) for i in range(3)], 1)
    layers = stacked([{name: inner, "full": values(GLOBAL, i)} for i in range(2)], 1)
    source = saved(tmp_path, "a", state({"layers": layers}))
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=False, layer_axis=1)
    assert any(f"layers[0].{name}.norm.scale  f32[6,3]" in line for line in refused.value.details)


@pytest.mark.parametrize(("scan", "option"), [(True, "--scan_layers"), (False, "--no-scan_layers")])
def test_where_there_are_no_layers_the_result_says_so(scan, option, tmp_path):
    source = saved(tmp_path, "a", state({"h": {"scale": np.ones(6)}, "w": {"kernel": np.ones(5)}}))
    result = nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=scan)
    said = f"no layers are known here, and `{option}` leaves everything as it is"
    assert result.conversion.assumed == (said,)


@pytest.mark.parametrize("name", ["moe_layers_2_3", "vision_layers_outside_pipeline"])
def test_stacks_of_some_layers_are_not_left_in_silence(name, tmp_path):
    some = stacked([values(LOCAL, i) for i in range(2)], 1)
    source = saved(tmp_path, "a", state({name: some, "moe_layers_engram_4": values(GLOBAL, 4)}))
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=False)
    assert "look like stacked layers" in refused.value.message


def test_blocks_beside_something_else_are_left_whole(tmp_path):
    blocks = stacked([{f"layers_{j}": values(LOCAL, i + j) for j in range(2)} for i in (0, 2)], 1)
    odd = {"layers_0": values(LOCAL, 8), "head": {"scale": np.ones(6)}}
    source = saved(tmp_path, "a", state({"layers": blocks, "layers_remainder": odd}))
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=False)
    said = "what stands beside the blocks in `decoder.layers` is not what remains of them"
    assert refused.value.message == said
    assert not (tmp_path / "b").exists()


def test_modules_with_numbers_are_no_stack(tmp_path):
    blocks = {str(i): {"a": {"kernel": np.ones((6, 6))}, "b": np.ones(6)} for i in range(2)}
    source = saved(tmp_path, "a", state({"blocks": blocks, "norm": {"scale": np.ones(6)}}))
    nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=False)
    check_equal(source, str(tmp_path / "b"))


def test_stacks_that_no_family_has_are_not_left_in_silence(tmp_path):
    blocks = stacked([{"encoder": values(LOCAL, i)} for i in range(3)], 0)
    source = saved(tmp_path, "a", state({"blocks": blocks, "norm": {"scale": np.ones(6)}}))
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=False)
    assert "look like stacked layers" in refused.value.message
    assert not (tmp_path / "b").exists()
    nnxconv.convert(source, str(tmp_path / "b"), to="linen")


# --- what MaxText 0.2.5 itself wrote --------------------------------------------------------------

# source, options, the checkpoint whose tree the target has, RNG state aside
PAIRS = {
    "llama2, stacked": ("llama2_unscan_adamw", ["--scan_layers"], "llama2_scan_adamw"),
    "llama2, apart": ("llama2_scan_adamw", ["--no-scan_layers"], "llama2_unscan_adamw"),
    "qwen3next, apart": ("qwen3next_scan_adamw", ["--no-scan_layers"], "qwen3next_unscan_adamw"),
    "qwen3next, stacked": ("qwen3next_unscan_adamw", ["--scan_layers"], "qwen3next_scan_adamw"),
    "gemma4, apart": ("gemma4_scan_adamw", ["--no-scan_layers"], "gemma4_unscan_adamw"),
    "diloco": (
        "llama2_diloco",
        ["--at", "inner_state", "--replica", "0"],
        "llama2_scan_adamw",
    ),
}
LIKE = ["llama2", "qwen3next", "gemma4"]


def told(path) -> dict[Any, str]:
    rows = json.loads(run("inspect", path, "--json").stdout)["tree"]
    return {tuple(row["key"]): row["array"] for row in rows if "rngs" not in row["key"]}


@pytest.mark.sample(3)
@pytest.mark.parametrize(("source", "options", "wanted"), PAIRS.values(), ids=PAIRS)
def test_conversions_of_maxtext_0_2_5_have_the_trees_that_it_writes(
    source, options, wanted, conformance, tmp_path
):
    folder = conformance / "maxtext-0.2.5"
    done = run("convert", folder / f"r025_{source}", tmp_path / "new", "--to", "maxtext", *options)
    assert done.exit_code == 0, done.stderr
    assert told(tmp_path / "new") == told(folder / f"r025_{wanted}")


@pytest.mark.sample(2)
@pytest.mark.parametrize("model", LIKE)
def test_a_template_of_maxtext_0_2_5_is_followed_in_all_its_leaves(model, conformance, tmp_path):
    folder = conformance / "maxtext-0.2.5"
    like = folder / f"r025_{model}_scan_adamw"
    source = folder / f"r025_{model}_unscan_adamw"
    done = run("convert", source, tmp_path / "new", "--like", like)
    assert done.exit_code == 0, done.stderr
    new, there = (nnxconv.inspect(str(path)).item.tree for path in (tmp_path / "new", like))
    assert new.keys() == there.keys()


def test_rngs_that_a_template_does_not_have_are_left_out_and_named(tmp_path):
    rngs = {"rngs": {"params": {"count": np.arange(2, dtype=np.uint32)}}}
    layers = stacked([values(GLOBAL, i) for i in range(2)], 1)
    shared = {"rngs": {"params": {"count": np.uint32(5)}}}
    decoders = ({"layers": rngs, **rngs}, {"layers_0": shared})
    apart = {f"layers_{i}": values(GLOBAL, 4 + i) for i in range(2)}
    trees = [state({"layers": layers}), state(apart)]
    for tree, decoder in zip(trees, decoders, strict=True):
        tree["nnx_aux"] = {"model": {"decoder": decoder}}
    source, like = (saved(tmp_path, n, tree) for n, tree in zip("ab", trees, strict=True))
    new = str(tmp_path / "new")
    result = nnxconv.convert(source, new, like=like, layer_axis=1)
    left = {
        ("aux", "rngs", "decoder", "layers", 1, "rngs", "params", "count"),
        ("aux", "rngs", "decoder", "rngs", "params", "count"),
    }
    assert {".".join(map(str, key)) for key in result.conversion.left_out} == {
        ".".join(map(str, key)) for key in left
    }
    assert set(result.conversion.left_out.values()) == {"`--like` has none there"}
    assert nnxconv.inspect(new).item.tree.keys() == nnxconv.inspect(like).item.tree.keys()
    with pytest.raises(NnxconvError, match="do not match"):
        nnxconv.convert(source, str(tmp_path / "strict"), like=like, layer_axis=1, strict=True)


def test_a_run_whose_other_variables_are_called_like_parameters_is_one_state(tmp_path):
    moe = {"MoeBlock_0": {"gate": {"bias": np.ones(4)}, "table": np.ones((8, 2))}}
    tree = state({f"layers_{i}": values(GLOBAL, i) for i in range(2)})
    tree["nnx_aux"] = {"model": {"decoder": {f"layers_{i}": moe for i in range(2)}}}
    assert nnxconv.inspect(saved(tmp_path, "a", tree)).survey.layout == "maxtext"
