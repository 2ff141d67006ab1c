"""The key that was meant is named when its letters are those that were written, and no other."""

import pytest

from nnxconv.tree import fits_no_key

KEYS = [
    ("params", "encoder", "norm", "scale"),
    ("params", "layers", 0, "up", "kernel"),
    ("params", "layers", 1, "up", "kernel"),
    ("params", "h.3", "bias"),
]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("params.layers_0.up.kernel", "params.layers[0].up.kernel"),
        ("params.params.layers_{i}.up", "params.layers[0].up"),
        ("params.layers.7*", "params.layers[0]"),
        ("*.layers_2.*", "params.layers[0]"),
        ("params/layers/0/up/kernel", "params.layers[0].up.kernel"),
        ("params.h.3.bias", 'params["h.3"].bias'),
    ],
)
def test_a_key_of_the_same_letters_is_named(written: str, meant: str) -> None:
    assert fits_no_key(written, KEYS) == f"`{written}` fits no key; one is spelt `{meant}`"


@pytest.mark.parametrize("written", ["params.decoder.norm", "layers", "*.kernel_2", ""])
def test_no_key_is_named_where_none_is_alike(written: str) -> None:
    assert fits_no_key(written, KEYS) == f"`{written}` fits no key"
