"""Pairs whose arrays two projects keep by other conventions, which names and shapes do not tell.

Rotary heads are two halves in transformers and Tunix, and pairs of elements in Meta's Llama and in
MaxText, which also keeps queries scaled for most families, and for some 1 added to the weights of
norms and the embedding scaled.
"""

from collections.abc import Callable, Iterable, Sequence

from nnxconv.matching.modules import ModuleFamily
from nnxconv.matching.pairs import ModulePair
from nnxconv.matching.vocabulary import spelled

_ROTARY = ("query", "key", "qkv", "by_head", "kv")
_PAIRED = ("query", "key")
_MAXTEXT, _META, _HALVES = "MaxText", "Meta's Llama", "transformers"
_OFFSET_NORMS = ("pre_self_attention_norm", "pre_ffw_norm")
"""What MaxText calls norms of families that keep them without the 1 that is added."""


def doubts_between(
    left: Sequence[ModuleFamily], right: Sequence[ModuleFamily], role: Callable[[ModuleFamily], str]
) -> Callable[[ModulePair], str]:
    """What speaks against that the values of a pair of the same meaning are the same; or nothing.

    Args:
      left, right: the modules of both trees.
      role: what a module is.
    """
    kinds = {convention(left), convention(right)}
    if _MAXTEXT in kinds and len(kinds) == 2:
        names = {name for m in (*left, *right) for name in m.path}
        is_offset = any(name.startswith(_OFFSET_NORMS) for name in names)
        return lambda found: _of_maxtext(_roles(found, role), is_offset=is_offset)
    is_placed = any(role(m).endswith("position") for m in (*left, *right))
    if kinds == {_META, _HALVES} and not is_placed:
        return lambda found: _rotary(_roles(found, role), _PAIRED)
    return lambda found: ""


def _roles(found: ModulePair, role: Callable[[ModuleFamily], str]) -> set[str]:
    return set(map(role, (*found.sources, *found.templates)))


def _of_maxtext(roles: set[str], *, is_offset: bool) -> str:
    if told := _rotary(roles, _ROTARY):
        return f"{told}, and queries scaled"
    if is_offset and any(role.startswith("norm.") for role in roles):
        return "1 may be added"
    return "may be scaled" if is_offset and "token" in roles else ""


def _rotary(roles: set[str], which: Iterable[str]) -> str:
    is_rotary = any(role.rpartition(".")[2] in which and "norm" not in role for role in roles)
    return "rotary heads may be halves or pairs" if is_rotary else ""


def convention(modules: Sequence[ModuleFamily]) -> str:
    """Whose conventions a tree keeps by its names, as far as they matter here; empty for others."""
    names = {name for m in modules for name in (*m.scope.path, *m.path)}
    if {"token_embedder", "decoder", "decoder_norm"} <= names and "encoder" not in names:
        return _MAXTEXT
    last = {spelled(m.path[-1]) for m in modules if m.path}
    if {"wq", "wk", "attention_norm", "ffn_norm"} <= last:
        return _META
    return _HALVES if {"q_proj", "k_proj"} <= last else ""
