"""What the name of a module means, by what projects call theirs (see `projects`).

A name that means two things in
two projects means what the project says whose names explain most of the modules beside it, and
nothing where that is not clear: `post_attention_layernorm` is the norm before the MLP in Llama, and
the one after attention in Gemma 2, which has four.

>>> meanings_of([("self_attn", "q_proj"), ("input_layernorm",)], "block")
{('self_attn', 'q_proj'): 'query', ('input_layernorm',): 'norm.attention'}
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import cache
from typing import Literal, TypeAlias

from nnxconv.matching.projects import PROJECTS

Path: TypeAlias = tuple[str, ...]
Level: TypeAlias = Literal["block", "root"]

_WITHIN = {
    "cross": "cross_attn cross_attention crossattention encoder_attn enc_dec_attention"
    " encoder_decoder_attention multihead_attn src_attn xattn",
    "attention": "attn attention self_attn self_attention self mha multi_head_attention"
    " multi_head_dot_product_attention multi_head_self_attention multihead_attention"
    " sa self_attention_block attention_block causal_self_attention causal_attn"
    " self_attention_layer masked_self_attention multi_headed_attention",
    "shared": "shared_expert shared_experts",
    "moe": "moe experts expert moe_block block_sparse_moe sparse_moe moe_layer",
    "mlp": "mlp ffn ff ffw feed_forward feedforward dense_relu_dense mlp_block ff_layer"
    " feed_forward_network mlp_blocks",
}
_WITHIN_OF = {name: within for within, names in _WITHIN.items() for name in names.split()}
_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WRAPPERS = ("linear", "einsum", "base_layer", "embedding", "layer")
"""Modules between a module's name and its weights that say nothing: `ffn_layer1.linear.w`."""


_EXPERT = re.compile(r"experts?_?[#0-9]+")
"""One of several experts, whose `gate` is no router."""


def spelled(name: str) -> str:
    """A name in small letters with `_` between its words.

    >>> spelled("SelfAttention"), spelled("MlpBlock_0"), spelled("q_proj")
    ('self_attention', 'mlp_block_0', 'q_proj')
    """
    return _CAPITALS.sub("_", name).replace("__", "_").lower()


@cache
def within(name: str) -> str:
    """What the modules below a name belong to: `attention`, `mlp`, ...; empty where it says not."""
    plain = re.sub(r"_?\d+$", "", spelled(name))
    return _WITHIN_OF.get(plain, "")


@cache
def _index() -> dict[tuple[Level, str, str], list[tuple[int, str]]]:
    """The projects and roles of a name, by level and what it is within; `*` is anything."""
    found: dict[tuple[Level, str, str], list[tuple[int, str]]] = defaultdict(list)
    for number, project in enumerate(PROJECTS):
        levels: tuple[tuple[Level, str], ...] = (("block", project.block), ("root", project.root))
        for level, terms in levels:
            for role, _, name in (term.partition("=") for term in terms.split()):
                head, _, tail = name.partition(".")
                inside, bare = (head, tail) if head in _WITHIN and tail else ("", name)
                found[level, inside, bare].append((number, role))
                found[level, "*", bare].append((number, role))
    return found


def _meanings(path: Path, level: Level, inside: str) -> list[tuple[int, str]]:
    """What a module's name may mean, by project; what is not of self attention says so."""
    names = [spelled(name) for name in path]
    found = _known(names, level, inside)
    while not found and len(names) > 1 and names[-1] in _WRAPPERS:
        names.pop()
        found = _known(names, level, inside)
    if any(_EXPERT.fullmatch(name) for name in names[:-1]):
        found = [(n, "gate" if role == "router" else role) for n, role in found]
    head = f"{inside}." if inside in ("cross", "moe", "shared") else ""
    return [(n, role if role.startswith("norm.") else head + role) for n, role in found]


def _known(names: Sequence[str], level: Level, inside: str) -> list[tuple[int, str]]:
    """The meanings of the last three names, or else of fewer."""
    if level == "root":
        places = ("*",)
    else:
        others = {"": ("", "*"), "cross": ("attention",), "moe": ("moe", "mlp")}
        places = others.get(inside, (inside, "mlp") if inside == "shared" else (inside,))
    index = _index()
    for size in (3, 2, 1):
        for place in places:
            found = index.get((level, place, ".".join(names[-size:])))
            if found:
                return found
    return []


def meanings_of(
    modules: Collection[Path], level: Level, experts: Collection[Path] = ()
) -> dict[Path, str]:
    """What the modules of one scope are, by their whole paths; those not known are left out.

    Args:
      modules: their paths.
      level: `block` for those of a layer, `root` for those outside.
      experts: the modules that have experts, whose `gate` is the router.
    """
    every = frozenset(modules)
    meanings = {
        path: _meanings(as_counted(path, every), level, _inside(path, experts)) for path in modules
    }
    fit = _fit(meanings.values(), len(modules))
    found: dict[Path, str] = {}
    for path, known in meanings.items():
        best = max((fit[number] for number, _ in known), default=(0, 0))
        told = {role for number, role in known if fit[number] == best}
        if len(told) == 1 and best[0]:
            found[path] = told.pop()
    counted = _of_many_norms(modules)
    return {path: role for path, role in found.items() if path not in counted}


def _of_many_norms(modules: Collection[Path]) -> set[Path]:
    """Norms that are told by a number, of more than two: the second may come after attention."""
    groups: dict[tuple[Path, str], set[Path]] = defaultdict(set)
    for path in modules:
        if path and is_norm(path[-1]) and (stem := path[-1].rstrip("0123456789")) != path[-1]:
            groups[path[:-1], stem].add(path)
    return {path for group in groups.values() if len(group) > 2 for path in group}


def as_counted(path: Path, modules: Collection[Path]) -> Path:
    """A module's names with the number that it has among those that are counted from its own.

    Haiku counts modules of one class, and leaves out the first one's number.

    >>> as_counted(("mlp", "linear"), {("mlp", "linear"), ("mlp", "linear_1")})
    ('mlp', 'linear_0')
    """
    if path and (*path[:-1], f"{path[-1]}_1") in modules:
        return (*path[:-1], f"{path[-1]}_0")
    return path


def _fit(meanings: Collection[list[tuple[int, str]]], count: int) -> dict[int, tuple[int, int]]:
    """How well each project fits a scope: how many modules it explains, less what is missing."""
    explained = Counter(n for known in meanings for n in {number for number, _ in known})
    told: dict[int, set[str]] = defaultdict(set)
    for number, role in (meaning for known in meanings for meaning in known):
        told[number].add(role)
    return {
        number: (
            0 if PROJECTS[number].is_whole and len(told[number]) < count else explained[number],
            -sum(role not in told[number] for role in _roles_in(number)),
        )
        for number in explained
    }


@cache
def _roles_in(number: int) -> frozenset[str]:
    return frozenset(term.partition("=")[0] for term in PROJECTS[number].block.split())


def _inside(path: Path, experts: Collection[Path]) -> str:
    """What a module belongs to: the innermost of its names that says so; cross attention first."""
    if path[:-1] in experts:
        return "moe"
    above = [told for name in path[:-1] if (told := within(name))]
    return "cross" if "cross" in above else above[-1] if above else ""


_SIDES = {
    "encoder": "encoder enc",
    "decoder": "decoder dec",
    "vision": "vision visual image vision_model vision_tower img",
    "text": "text language text_model language_model txt",
    "down": "down down_blocks downs",
    "up": "up up_blocks ups",
    "mid": "mid mid_block middle",
}
_SIDE_OF = {name: told for told, names in _SIDES.items() for name in names.split()}


SIDES = frozenset(_SIDES)


def disagree(role: str, other: str) -> bool:
    """True for two roles that cannot be the same; a part of the model may be told by one only.

    >>> disagree("text.token", "token"), disagree("text.token", "vision.token")
    (False, True)
    """
    (side, _, rest), (other_side, _, other_rest) = role.partition("."), other.partition(".")
    if not role or not other or role == other:
        return False
    return not (
        (side in SIDES and other_side not in SIDES and rest == other)
        or (other_side in SIDES and side not in SIDES and other_rest == role)
    )


@cache
def side(path: Path) -> str:
    """Which part of a model a module stands in, such as `encoder`, as far as its names say so.

    >>> side(("t5", "decoder", "final_layer_norm"))
    'decoder'
    """
    told = [_SIDE_OF.get(re.sub(r"_?[\d#]+$", "", spelled(name)), "") for name in path]
    return next(filter(None, told), "")


_NORM = re.compile(r"(^|_)(ln|layer_?norm|norm|bn|batch_?norm|rms_?norm|group_?norm|gn)(?=_|\d|$)")


@cache
def is_norm(name: str) -> bool:
    """True for what is called a norm.

    >>> is_norm("ln_1"), is_norm("BatchNorm_0"), is_norm("attn_norm"), is_norm("c_proj")
    (True, True, True, False)
    """
    return _NORM.search(spelled(name)) is not None
