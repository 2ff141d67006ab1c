"""Stacks of blocks: every leaf of the result stands where a loop over the layers puts it."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import LayerError
from tests.support import checkpoints
from tests.support.command import run

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
        if self.family in ("Gemma 4", "DeepSeek-V4", "Qwen3.5"):
            shapes = [LOCAL] * count
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
        group = "layers" if self.family in ("Qwen3-Next", "Qwen3.5") else "scanned_blocks"
        decoder[group] = stacked(made, self.axis)
        if self.rest:
            rest = layers[len(layers) - self.rest :]
            decoder["layers_remainder"] = {"local_layers": stacked(rest, self.axis)}
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
]
each = pytest.mark.parametrize("model", MODELS, ids=str)


def saved(tmp_path, name, tree):
    return str(checkpoints.save_item(tmp_path / name, tree))


def check_equal(a: str, b: str) -> None:
    report = nnxconv.compare(
        a, b, compare_values=True, compare_only="all", atol=0, rtol=0, ignore_rngs=False
    )
    assert report.findings == []


@pytest.mark.sample(6)
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


@pytest.mark.parametrize("model", [m for m in MODELS if m.family == "Qwen3-Next"], ids=str)
def test_layers_apart_become_blocks_where_their_names_tell_the_family(model, tmp_path):
    source = saved(tmp_path, "apart", state(model.apart()))
    wanted = saved(tmp_path, "wanted", state(model.in_blocks()))
    options = {"scan_layers": True, "to": "linen", "layer_axis": model.axis}
    nnxconv.convert(source, str(tmp_path / "new"), **options)
    check_equal(str(tmp_path / "new"), wanted)


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


@pytest.mark.parametrize(("source", "options", "wanted"), PAIRS.values(), ids=PAIRS)
def test_conversions_of_maxtext_0_2_5_have_the_trees_that_it_writes(
    source, options, wanted, conformance, tmp_path
):
    folder = conformance / "maxtext-0.2.5"
    done = run("convert", folder / f"r025_{source}", tmp_path / "new", "--to", "maxtext", *options)
    assert done.exit_code == 0, done.stderr
    assert told(tmp_path / "new") == told(folder / f"r025_{wanted}")


@pytest.mark.parametrize("model", LIKE)
def test_a_template_of_maxtext_0_2_5_is_followed_in_all_its_leaves(model, conformance, tmp_path):
    folder = conformance / "maxtext-0.2.5"
    like = folder / f"r025_{model}_scan_adamw"
    source = folder / f"r025_{model}_unscan_adamw"
    done = run("convert", source, tmp_path / "new", "--like", like)
    assert done.exit_code == 0, done.stderr
    new, there = (nnxconv.inspect(str(path)).item.tree for path in (tmp_path / "new", like))
    assert new.keys() == there.keys()
