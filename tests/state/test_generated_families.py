"""Blocks of layers of any family: every leaf stands where a loop over the layers puts it."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from nnxconv.errors import LayerError
from nnxconv.state.arranging import arrange
from nnxconv.state.family_toml import parse_families
from nnxconv.state.layer_groups import Apart, Blocks
from nnxconv.state.train_state import TrainState
from nnxconv.state.unstacking import unstack
from nnxconv.tree.keys import spell
from tests.support import states

PREFIXES, PERIODS, BLOCKS, RESTS, AXES = range(4), range(1, 6), range(1, 5), range(4), (0, 1)

# what a block is made of, and where the layers stand that fill none
FORMS = {
    "numbered": ('"layer_{i}"', "layers_remainder.layers_{i}"),
    "within": ('"local_layers[{i}]", "global_layer"', "layers_remainder.local_layers[{i}]"),
    "within, last": ('"first", "local_layers[{i}]"', "Rest_{i}"),
    "between": ('"first", "middle_{i}", "last"', "rest[{i}]"),
}


@dataclass(frozen=True)
class Case:
    """A model: its family's form, and its numbers."""

    form: str
    period: int
    blocks: int
    prefix: int
    rest: int
    axis: int

    @property
    def is_possible(self):
        fixed = {"numbered": 0, "between": 2}.get(self.form, 1)
        # layers left over are the first ones of a block, which are equal where they are stacked
        equal = {"within": self.period - 1, "between": 1}.get(self.form, self.period)
        return fixed <= self.period > self.rest and self.rest <= equal

    @property
    def family(self):
        members, rest = FORMS[self.form]
        text = f'[it]\nstack = "blocks"\nmembers = [{members}]\nremainder = "{rest}"\n'
        return parse_families(f"{text}prefix = {self.prefix}", "here")["it"]

    @property
    def count(self):
        return self.prefix + self.period * self.blocks + self.rest

    def layer(self, i):
        """The leaves of a layer: those of a block's last member have another shape."""
        is_last = (i - self.prefix) % self.period == self.period - 1 and i >= self.prefix
        wide = 11 if is_last and self.form in ("within", "between") else 7
        if self.form in ("within, last", "between") and (i - self.prefix) % self.period == 0:
            wide = 13
        shapes = {("params", "w"): (5, wide), ("params", "norm"): (6,), ("params", "gain"): ()}
        shapes |= {("rngs", "count"): (), ("rngs", "key"): (8,)}
        return {
            key: 10_000 * i + 1_000 * n + np.arange(np.prod(shape, dtype=int)).reshape(shape)
            for n, (key, shape) in enumerate(shapes.items())
        }

    def apart(self):
        """The layers by name, as a program has them that stacks none."""
        return {("dec", f"layers_{i}"): self.layer(i) for i in range(self.count)}

    def stacked(self):
        """The same as a program stacks them: one loop over blocks, one over what is within."""
        layers = [self.layer(i) for i in range(self.count)]
        found = {("dec", f"layers_{i}"): layers[i] for i in range(self.prefix)}
        body = layers[self.prefix : self.prefix + self.period * self.blocks]
        blocks = [body[i : i + self.period] for i in range(0, len(body), self.period)]
        for name, parts in self._members(blocks).items():
            found[("dec", "blocks", name)] = self._piled(parts)
        left = layers[len(layers) - self.rest :] if self.rest else []
        if self.form == "within" and left:
            found[("dec", "layers_remainder", "local_layers")] = self._piled(left)
        elif self.form == "between" and left:
            found[("dec", "rest")] = self._piled(left)
        else:
            above = ("layers_remainder",) if self.form == "numbered" else ()
            name = "layers" if self.form == "numbered" else "Rest"
            found |= {("dec", *above, f"{name}_{j}"): left[j] for j in range(len(left))}
        return found

    def _members(self, blocks):
        if self.form == "numbered":
            return {f"layer_{j}": [block[j] for block in blocks] for j in range(self.period)}
        if self.form == "between":
            middle = range(1, self.period - 1)
            return {
                "first": [block[0] for block in blocks],
                **{f"middle_{j - 1}": [block[j] for block in blocks] for j in middle},
                "last": [block[-1] for block in blocks],
            }
        cut = slice(0, -1) if self.form == "within" else slice(1, None)
        lone = -1 if self.form == "within" else 0
        alone = {"global_layer" if self.form == "within" else "first": [b[lone] for b in blocks]}
        if self.period == 1:
            return alone
        return {"local_layers": [self._piled(block[cut]) for block in blocks], **alone}

    def _piled(self, layers):
        """The layers along a new axis, at the same place in every leaf of one kind."""
        return {
            key: np.stack([layer[key] for layer in layers], self._axis(key, layers[0][key]))
            for key in layers[0]
        }

    def _axis(self, key, leaf):
        """Once stacked leaves are stacked before their layer axis, which then is the second."""
        original = {"w": 2, "norm": 1, "gain": 0}.get(key[1], 0)
        return 0 if key[0] == "rngs" else min(self.axis, original, leaf.ndim)


def state_of(tree):
    """The tree as a state with one moment for each parameter, and the values by their keys."""
    params, moments, aux, values = {}, {}, {}, {}
    for place, leaves in tree.items():
        for (kind, name), leaf in leaves.items():
            heads = [("params",), ("opt_state", "mu")] if kind == "params" else [("aux", "rngs")]
            for head in heads:
                key = (*head, *place, name)
                view = states.array(key, leaf.shape)
                part = {"params": params, "opt_state": moments, "aux": aux}[head[0]]
                part[key[1:]] = view
                values[view.name] = leaf
    return TrainState(params, moments, None, aux), values


def held(state, values):
    return {spell(key): states.values_of(leaf, values) for key, leaf in state.leaves().items()}


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].shape == value.shape, key
        assert np.array_equal(found[key], value), key


def check(case):
    apart, apart_values = state_of(case.apart())
    stacked, stacked_values = state_of(case.stacked())
    family = case.family
    options = {"layer_axis": case.axis, "families": [family]}
    blocks = Blocks(case.axis, case.period, family=family, prefix=case.prefix)

    canonical, [group] = unstack(stacked, **options)
    assert (group.problem, group.indices) == ("", tuple(range(case.count)))
    assert (group.arrangement.period, group.arrangement.prefix) == (case.period, case.prefix)
    taken = arrange(canonical, [group], {group.key: Apart("suffix")})
    check_same(held(taken, stacked_values), held(apart, apart_values))
    assert arrange(canonical, [group], {group.key: group.arrangement}) == stacked

    canonical, [group] = unstack(apart, **options)
    put = arrange(canonical, [group], {group.key: blocks})
    check_same(held(put, apart_values), held(stacked, stacked_values))


def cases(form):
    numbers = itertools.product(PERIODS, BLOCKS, PREFIXES, RESTS, AXES)
    return [case for one in numbers if (case := Case(form, *one)).is_possible]


@pytest.mark.parametrize("form", FORMS)
def test_layers_stand_where_a_loop_puts_them_and_come_back(form):
    for case in cases(form)[::37]:
        check(case)


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", AXES)
def test_layers_of_every_number_stand_where_a_loop_puts_them(form, axis):
    for case in cases(form):
        if case.axis == axis:
            check(case)


def test_layers_that_fill_no_block_need_a_place():
    case = Case("numbered", 3, 2, 0, 1, 0)
    text = '[it]\nstack = "blocks"\nmembers = ["layer_{i}"]'
    family = parse_families(text, "here")["it"]
    canonical, [group] = unstack(state_of(case.apart())[0])
    with pytest.raises(LayerError) as refused:
        arrange(canonical, [group], {group.key: Blocks(0, 3, family=family)})
    assert "these layers fill no block of 3: 6" in refused.value.details[0]
