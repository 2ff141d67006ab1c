"""Recurrent cells of Linen and NNX, whose gates the one keeps apart and the other in one array."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nnxconv
from nnxconv.matching.proposing import pair
from tests.support.layouts import source_tree
from tests.support.models import save

WIDTH, HIDDEN, VOCABULARY = 8, 12, 11


class Linen(nn.Module):
    """Two layers of cells, the first with a kernel that is no square."""

    cell: type

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        for _ in range(2):
            x = nn.RNN(self.cell(HIDDEN))(x)
        return nn.Dense(5)(x)


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, cell, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.rnn1 = nnx.RNN(cell(WIDTH, HIDDEN, rngs=rngs))
        self.rnn2 = nnx.RNN(cell(HIDDEN, HIDDEN, rngs=rngs))
        self.out = nnx.Linear(HIDDEN, 5, rngs=rngs)

    def __call__(self, tokens):
        return self.out(self.rnn2(self.rnn1(self.embed(tokens))))


@pytest.mark.full
@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell", "SimpleCell"])
def test_cells_of_linen_say_the_same_in_nnx(name, tmp_path):
    linen, tokens = Linen(getattr(nn, name)), jnp.arange(6).reshape(2, 3)
    variables = linen.init(jax.random.key(0), tokens)
    model = Nnx(getattr(nnx, name), nnx.Rngs(1))
    source = save(tmp_path / "linen", variables)
    template = save(tmp_path / "nnx", nnx.state(model))
    found = nnxconv.match(str(source), str(template))
    assert found.is_complete
    nnxconv.load_into(model, str(source), rename=found.rules)
    np.testing.assert_allclose(model(tokens), linen.apply(variables, tokens), rtol=1e-5, atol=1e-6)


def gates(cell, names):
    """Kernels of a cell's gates, by the input's width."""
    return "".join(f"params/{cell}/{name}/kernel f32[{size},12]\n" for name, size in names.items())


def test_gates_are_in_one_array_in_their_order():
    apart = gates("cell_0", {f"i{g}": 8 for g in "ifgo"} | {f"h{g}": 12 for g in "ifgo"})
    apart += "".join(f"params/cell_0/h{g}/bias f32[12]\n" for g in "ifgo")
    found = pair(
        source_tree(apart),
        source_tree(
            """
            params/rnn/cell/dense_i/kernel f32[8,48]
            params/rnn/cell/dense_h/kernel f32[12,48]
            params/rnn/cell/dense_h/bias f32[48]
            """
        ),
    )
    assert {
        str(one.templates[0]): [str(module) for module in one.sources] for one in found.certain
    } == {
        "rnn.cell.dense_i": [f"cell_0.i{gate}" for gate in "ifgo"],
        "rnn.cell.dense_h": [f"cell_0.h{gate}" for gate in "ifgo"],
    }
    assert found.certain[0].evidence.startswith("the gate i of the ")


def test_a_bias_for_which_nnx_has_no_place_keeps_a_gru_cell_from_being_certain():
    apart = gates("cell_0", {f"i{g}": 8 for g in "rzn"} | {f"h{g}": 12 for g in "rzn"})
    together = """
        params/cell/dense_i/kernel f32[8,36]
        params/cell/dense_h/kernel f32[12,36]
    """
    whole = pair(source_tree(apart), source_tree(together))
    assert {str(one.templates[0]) for one in whole.certain} == {"cell.dense_h", "cell.dense_i"}
    biased = pair(source_tree(apart + "params/cell_0/hn/bias f32[12]\n"), source_tree(together))
    assert [str(one.templates[0]) for one in biased.certain] == ["cell.dense_i"]
