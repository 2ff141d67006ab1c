"""Families of Hugging Face in transformers' own models of Flax: GPT-2, by formulas of numpy.

The names are those of `modeling_flax_gpt2.py` in transformers 4.46.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput
from nnxconv.renaming import templates
from nnxconv.renaming.hugging_face import model_types, target_of
from tests.renaming.test_hugging_face import check_equal, parameters, tensors
from tests.support.hugging_face import Arrays, save_tensors

WIDTH, VOCABULARY, PLACES, LAYERS = 8, 24, 10, 3


def shapes(*, is_tied: bool, crosses: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as transformers saves them: `Conv1D` has (in, out)."""
    yield "transformer.wte.weight", (VOCABULARY, WIDTH)
    yield "transformer.wpe.weight", (PLACES, WIDTH)
    if not is_tied:
        yield "lm_head.weight", (VOCABULARY, WIDTH)
    yield from _with_bias("transformer.ln_f", (WIDTH,))
    for i in range(LAYERS):
        layer = f"transformer.h.{i}"
        for norm in ("ln_1", "ln_2", *(["ln_cross_attn"] if crosses else [])):
            yield from _with_bias(f"{layer}.{norm}", (WIDTH,))
        yield from _with_bias(f"{layer}.attn.c_attn", (WIDTH, 3 * WIDTH))
        yield from _with_bias(f"{layer}.attn.c_proj", (WIDTH, WIDTH))
        yield from _with_bias(f"{layer}.mlp.c_fc", (WIDTH, 4 * WIDTH))
        yield from _with_bias(f"{layer}.mlp.c_proj", (4 * WIDTH, WIDTH))
        if crosses:
            yield from _with_bias(f"{layer}.crossattention.c_attn", (WIDTH, 2 * WIDTH))
            yield from _with_bias(f"{layer}.crossattention.q_attn", (WIDTH, WIDTH))
            yield from _with_bias(f"{layer}.crossattention.c_proj", (WIDTH, WIDTH))


def _with_bias(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[-1:]


def arrays(*, is_tied: bool = True, crosses: bool = False) -> Arrays:
    made = np.random.default_rng(0)
    return {
        name: made.standard_normal(shape).astype(np.float32)
        for name, shape in shapes(is_tied=is_tied, crosses=crosses)
    }


def flax_of(found: Arrays) -> Arrays:
    """What Flax has, by path below `params`: `weight` is an embedding, a scale or a kernel."""
    named: Arrays = {}
    for name, array in found.items():
        *modules, leaf = name.split(".")
        if leaf == "weight" and modules[-1] in ("wte", "wpe"):
            leaf = "embedding"
        elif leaf == "weight" and modules[-1].startswith("ln_"):
            leaf = "scale"
        elif leaf == "weight":
            leaf, array = "kernel", array.T
        named["/".join([*modules, leaf])] = array
    return named


def folder(path: Path, found: Arrays, **told: object) -> Path:
    config = {"model_type": "gpt2", "n_embd": WIDTH, "n_head": 2, "n_layer": LAYERS, **told}
    return save_tensors(path, config, found)


KINDS = {
    "tied": ({}, {}),
    "its own output": ({"is_tied": False}, {"tie_word_embeddings": False}),
    "cross-attention": ({"crosses": True}, {"add_cross_attention": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_flax_has_what_the_formulas_say_and_it_comes_back_byte_for_byte(kind, tmp_path):
    how, told = KINDS[kind]
    found = arrays(**how)
    source = folder(tmp_path / "hf", found, **told)
    result = nnxconv.convert(str(source), str(tmp_path / "out"), to="linen", verify=True)
    check_equal(parameters(tmp_path / "out"), flax_of(found))
    assert "by `hf-gpt2`" in result.conversion.source.notes[0]
    assert result.account.left_out == {}
    for pair in ((source, tmp_path / "out"), (tmp_path / "out", source)):
        assert nnxconv.compare(*map(str, pair), compare_values=True, atol=0, rtol=0).is_match
    nnxconv.convert(str(tmp_path / "out"), str(tmp_path / "back"), to="hf", config=str(source))
    check_equal(tensors(tmp_path / "back"), found)


def test_a_folder_of_2019_has_no_root_and_its_masks_are_left_out_by_name(tmp_path):
    found = {name.removeprefix("transformer."): array for name, array in arrays().items()}
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 4, 4), np.float32) for i in range(LAYERS)}
    source = folder(tmp_path / "hf", {**found, **masks})
    result = nnxconv.convert(str(source), str(tmp_path / "out"), to="linen")
    check_equal(parameters(tmp_path / "out"), flax_of(arrays()))
    assert set(result.account.left_out.values()) == {"is a mask that is computed anew"}
    assert len(result.account.left_out) == LAYERS
    nnxconv.convert(str(tmp_path / "out"), str(tmp_path / "back"), to="hf", config=str(source))
    check_equal(tensors(tmp_path / "back"), found)


def test_the_configuration_alone_gives_the_names_of_today(tmp_path):
    found = arrays()
    source = folder(tmp_path / "hf", found)
    nnxconv.convert(str(source), str(tmp_path / "out"), to="linen")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "gpt2"}))
    nnxconv.convert(str(tmp_path / "out"), str(tmp_path / "back"), to="hf", config=str(config))
    check_equal(tensors(tmp_path / "back"), found)


def test_maxtext_has_no_gpt_2(tmp_path):
    source = folder(tmp_path / "hf", arrays())
    with pytest.raises(BadInput, match="no family of nnxconv has models of the type `gpt2`"):
        nnxconv.convert(str(source), str(tmp_path / "out"), to="maxtext")


def test_every_family_of_flax_is_tried():
    of_flax = [text for text in templates().values() if target_of(text) == "linen"]
    assert [kind for text in of_flax for kind in model_types(text)] == ["gpt2"]
