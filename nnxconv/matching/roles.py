"""What the modules of a tree are, as far as their names and shapes say it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from nnxconv.matching.modules import ModuleFamily, Path, scopes_in
from nnxconv.matching.vocabulary import meanings_of, side, spelled

_EXPERTS = ("experts", "expert", "shared_expert", "shared_experts")


def roles_of(modules: Sequence[ModuleFamily]) -> dict[ModuleFamily, str]:
    """The roles of those modules whose names say what they are.

    Outside of layers a role says whether it is the encoder's or the decoder's, in a tree of both.
    """
    paths = [(*m.scope.path, *m.path) for m in modules]
    experts = {
        path[:end]
        for path in paths
        for end in range(1, len(path))
        if spelled(path[end]) in _EXPERTS and not path[end - 1].endswith("#")
    }
    experts |= {path[:-1] for path in paths if path and spelled(path[-1]) == "router"}
    sides = {told for path in paths if (told := side(path))}
    found: dict[ModuleFamily, str] = {}
    for scope, some in scopes_in(modules).items():
        by_path = {(*scope, *module.path): module for module in some}
        known = meanings_of(by_path, "block" if scope else "root", experts)
        for path, role in known.items():
            told = side(path) if len(sides) > 1 and not scope else ""
            found[by_path[path]] = f"{told}.{role}" if told else role
    found = _unequivocal(found)
    return _without_odd_gates(found)


def _unequivocal(found: Mapping[ModuleFamily, str]) -> dict[ModuleFamily, str]:
    """Without the roles that several modules of one scope have, as two MLPs, if no experts."""
    sharing: dict[tuple[Path, str], set[Path]] = defaultdict(set)
    for module, role in found.items():
        sharing[module.scope.path, role].add(module.skeleton)
    return {m: role for m, role in found.items() if len(sharing[m.scope.path, role]) == 1}


def _without_odd_gates(found: Mapping[ModuleFamily, str]) -> dict[ModuleFamily, str]:
    """Without the roles of an MLP whose gate is not shaped as what it gates: names misled.

    `w1`, `w2` and `w3` are gate, down and up in most projects, but gate, up and down in some.
    """
    mlps: dict[tuple[Path, Path, str], dict[str, ModuleFamily]] = defaultdict(dict)
    for module, role in found.items():
        head, _, last = role.rpartition(".")
        if last in ("gate", "up", "down"):
            mlps[module.scope.path, module.path[:-1], head][last] = module
    odd = {
        module
        for parts in mlps.values()
        if {"gate", "up"} <= parts.keys() and parts["gate"].main.shapes != parts["up"].main.shapes
        for module in parts.values()
    }
    return {module: role for module, role in found.items() if module not in odd}


_SPOKEN = {
    "norm.attention": "the norm of attention",
    "norm.mlp": "the norm of the MLP",
    "norm.cross": "the norm of cross attention",
    "norm.after_attention": "the norm after attention",
    "norm.after_mlp": "the norm after the MLP",
    "norm.final": "the last norm",
    "norm.embedding": "the norm of the embedding",
    "token": "the token embedding",
    "position": "the position embedding",
    "type": "the embedding of types",
    "patch": "the patch embedding",
    "class": "the class token",
    "out": "the output projection",
    "up": "the up projection",
    "down": "the down projection",
    "qkv": "query, key and value in one",
    "kv": "key and value in one",
    "gate_up": "gate and up projection in one",
}

_SPOKEN |= {gate: f"the gate {gate}" for gate in "ifgorzn"}
_WHOSE = {
    "hidden": "the hidden state",
    "cross": "cross attention",
    "moe": "the experts",
    "shared": "the shared experts",
    "tokens": "the MLP over tokens",
    "channels": "the MLP over channels",
}


def spoken(role: str) -> str:
    """A role in words.

    >>> spoken("cross.query"), spoken("norm.mlp")
    ('the query of cross attention', 'the norm of the MLP')
    """
    if role in _SPOKEN:
        return _SPOKEN[role]
    head, _, rest = role.partition(".")
    if not rest:
        return f"the {head.replace('_', ' ')}"
    if head in ("norm", "scale"):
        return f"the {head} of {rest}"
    return f"{spoken(rest)} of {_WHOSE.get(head, f'the {head}')}"
