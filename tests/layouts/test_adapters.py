"""LoRA adapters as MaxText writes them: they convert, stack and unstack, with their configuration.

The tree and the place of `adapter_config.json` are those of MaxText's `get_lora_abstract_state`
and `_save_lora_decode_checkpoint`: a single `params` level, `None` where the base model has a
parameter that the adapter does not touch.
"""

import json

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput, Mismatch
from tests.support import checkpoints
from tests.support.command import run
from tests.support.trees import entries, same_bits, values

WIDTH, HEADS, HEAD, RANK, LAYERS = 16, 4, 8, 2, 3
CONFIGURATION = json.dumps({"r": RANK, "target_modules": ["q_proj", "o_proj"]})

# module: the two matrices of the adapter, per layer
MATRICES = {
    "query": ((WIDTH, RANK), (RANK, HEADS, HEAD)),
    "out": ((HEADS, HEAD, RANK), (RANK, WIDTH)),
}


def layer(index, names):
    """One layer: matrices at its targets, None elsewhere."""
    attention = {"key": {"kernel": None}}
    for place, (module, shapes) in enumerate(MATRICES.items()):
        pair = [checkpoints.values(shape, 10 * index + place) for shape in shapes]
        attention[module] = names(*pair)
    return {"self_attention": attention, "mlp": {"wi": {"kernel": None}}}


def apart(a, b):
    return {"lora_a": {"kernel": a}, "lora_b": {"kernel": b}}


def dotted(a, b):
    return {"lora_a.kernel": a, "lora_b.kernel": b}


def stacked(layers):
    """The layers as one, on axis 1."""
    first = layers[0]
    if isinstance(first, dict):
        return {name: stacked([one[name] for one in layers]) for name in first}
    return None if first is None else np.stack(layers, axis=1)


def adapter(names, *, is_stacked):
    layers = [layer(index, names) for index in range(LAYERS)]
    decoder = {"norm": {"scale": None}}
    if is_stacked:
        decoder["layers"] = stacked(layers)
    else:
        decoder |= {f"layers_{index}": one for index, one in enumerate(layers)}
    return {"step": 0, "params": {"decoder": decoder}, "opt_state": {}}


def saved(root, *, is_stacked, names=apart):
    """An adapter as MaxText lays it out: a configuration beside the steps."""
    checkpoints.save_root(root, {0: adapter(names, is_stacked=is_stacked)})
    (root / "adapter_config.json").write_text(CONFIGURATION)
    return root


def is_same(a, b):
    """True for two items with the same leaves and values."""
    ours, theirs = values(a), values(b)
    is_alike = entries(a) == entries(b) and ours.keys() == theirs.keys()
    return is_alike and all(same_bits(ours[path], theirs[path]) for path in theirs)


@pytest.mark.parametrize("names", [apart, dotted])
@pytest.mark.parametrize("is_stacked", [True, False], ids=["unstack", "stack"])
def test_an_adapter_is_stacked_and_unstacked(names, is_stacked, tmp_path):
    source = saved(tmp_path / "a", is_stacked=is_stacked, names=names)
    model = saved(tmp_path / "b", is_stacked=not is_stacked, names=names)
    nnxconv.convert(
        str(source), str(tmp_path / "out"), to="linen", scan_layers=not is_stacked, verify=True
    )
    assert is_same(tmp_path / "out/0/items", model / "0/items")


@pytest.mark.parametrize("names", [apart, dotted])
@pytest.mark.parametrize("layout", ["nnx", "nnx-pure", "nnx-state", "maxtext"])
def test_an_adapter_comes_back(layout, names, tmp_path):
    source = saved(tmp_path / "a", is_stacked=True, names=names)
    nnxconv.convert(str(source), str(tmp_path / "there"), to=layout)
    nnxconv.convert(str(tmp_path / "there"), str(tmp_path / "back"), to="linen")
    assert is_same(tmp_path / "back/0/items", source / "0/items")


@pytest.mark.sample(3)
@pytest.mark.parametrize("names", [apart, dotted])
@pytest.mark.parametrize("layout", ["linen", "nnx", "nnx-pure"])
@pytest.mark.parametrize("is_stacked", [True, False], ids=["unstack", "stack"])
def test_like_gives_an_adapter_the_conventions_of_another(is_stacked, layout, names, tmp_path):
    source = saved(tmp_path / "a", is_stacked=is_stacked, names=names)
    other = saved(tmp_path / "b", is_stacked=not is_stacked, names=names)
    nnxconv.convert(str(other), str(tmp_path / "like"), to=layout)
    result = nnxconv.convert(
        str(source), str(tmp_path / "out"), like=str(tmp_path / "like"), verify=True
    )
    assert is_same(tmp_path / "out/0/items", tmp_path / "like/0/items")
    assert result.extra_files == ("adapter_config.json",)


def test_an_adapter_of_another_rank_is_not_like_it(tmp_path):
    source, like = saved(tmp_path / "a", is_stacked=True), tmp_path / "b"
    tree = adapter(apart, is_stacked=True)
    query = tree["params"]["decoder"]["layers"]["self_attention"]["query"]
    query["lora_a"]["kernel"] = np.zeros((WIDTH, LAYERS, RANK + 2), np.float32)
    checkpoints.save_root(like, {0: tree})
    with pytest.raises(Mismatch) as refused:
        nnxconv.convert(str(source), str(tmp_path / "out"), like=str(like))
    assert refused.value.details == (
        "params.decoder.layers.self_attention.query.lora_a.kernel  f32[16,3,2],"
        " but f32[16,3,4] in `--like`",
    )
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_loaded_as_another_program_has_it(tmp_path):
    source = saved(tmp_path / "a", is_stacked=True)
    like = adapter(apart, is_stacked=False)["params"]
    loaded = nnxconv.load(source, like={"params": like}, without=["step", "opt_state"])
    for index in range(LAYERS):
        ours = loaded["params"]["decoder"][f"layers_{index}"]["self_attention"]["out"]
        assert same_bits(
            ours["lora_b"]["kernel"],
            layer(index, apart)["self_attention"]["out"]["lora_b"]["kernel"],
        )


def test_an_adapter_is_cast(tmp_path):
    source = saved(tmp_path / "a", is_stacked=True)
    nnxconv.convert(
        str(source), str(tmp_path / "out"), to="linen", params_only=True, dtype="bfloat16"
    )
    cast = values(tmp_path / "out/0/items")
    assert {array.dtype.name for path, array in cast.items() if path != ("step",)} == {"bfloat16"}
    assert entries(tmp_path / "out/0/items").keys() >= {
        ("opt_state",),
        ("params", "decoder", "norm", "scale"),
    }


# what is given, where the configuration stands, what is written and where it goes
PLACES = [
    ("a", "a", "out", "out"),
    ("a", "a/0", "out", "out/0"),
    ("a/0", "a", "new/7", "new"),
    ("a/0", "a/0", "new/7", "new/7"),
    ("a/0/items", "a/0", "new/item", "new"),
]


@pytest.mark.parametrize(("given", "place", "target", "new_place"), PLACES)
def test_its_configuration_keeps_its_place(given, place, target, new_place, tmp_path):
    checkpoints.save_root(tmp_path / "a", {0: adapter(apart, is_stacked=True)})
    (tmp_path / place / "adapter_config.json").write_text(CONFIGURATION)
    result = nnxconv.convert(str(tmp_path / given), str(tmp_path / target))
    assert result.extra_files == ("adapter_config.json",)
    written = [path.relative_to(tmp_path) for path in (tmp_path).rglob("adapter_config.json")]
    assert sorted(map(str, written)) == sorted(
        f"{folder}/adapter_config.json" for folder in (place, new_place)
    )
    assert (tmp_path / new_place / "adapter_config.json").read_text() == CONFIGURATION


def test_another_adapters_configuration_is_not_replaced(tmp_path):
    source = saved(tmp_path / "a", is_stacked=True)
    other = tmp_path / "new" / "adapter_config.json"
    other.parent.mkdir()
    other.write_text("{}")
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(source / "0"), str(tmp_path / "new/0"))
    assert refused.value.render() == (
        f"error: `{other}` exists, and is not the one of the source\n"
        "\n"
        "hint: add `--overwrite` to replace it"
    )
    assert [path.name for path in other.parent.iterdir()] == ["adapter_config.json"]
    nnxconv.convert(str(source / "0"), str(tmp_path / "new/0"), overwrite=True)
    assert other.read_text() == CONFIGURATION


def test_a_dry_run_tells_of_the_configuration_and_writes_none(tmp_path):
    source = saved(tmp_path / "a", is_stacked=True)
    outcome = run("convert", source, tmp_path / "out", "--dry_run")
    assert "  beside    adapter_config.json\n" in outcome.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["linen", "maxtext"])
@pytest.mark.parametrize("is_stacked", [True, False])
def test_a_run_that_keeps_its_adapter_alone_stays_what_it_resumes_from(to, is_stacked, tmp_path):
    """MaxText 0.2.5 filters its state by `lora` and `step`, and restores exactly what is left."""

    def tree(is_stacked):
        layers = [
            {
                "kernel_lora_a": checkpoints.values((WIDTH, RANK), i),
                "kernel_lora_b": np.ones((2, 5)),
            }
            for i in range(LAYERS)
        ]
        apart = {f"layers_{i}": {"query": layer} for i, layer in enumerate(layers)}
        decoder = {"layers": {"query": stacked(layers)}} if is_stacked else apart
        return {"params": {"params": {"decoder": decoder}}, "step": np.asarray(7, np.int32)}

    source = checkpoints.save_item(tmp_path / "a", tree(not is_stacked))
    wanted = checkpoints.save_item(tmp_path / "b", tree(is_stacked))
    nnxconv.convert(str(source), str(tmp_path / "new"), to=to, scan_layers=is_stacked)
    assert is_same(tmp_path / "new", wanted)
