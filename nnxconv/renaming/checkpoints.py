"""Rename modules: as rules say, or as the built-in rules say that alone lead to `like`."""

from collections.abc import Iterable
from dataclasses import replace

from nnxconv.errors import NnxconvError, RuleError
from nnxconv.layouts import Options, Understood, is_excluded, unlike, with_layer_names
from nnxconv.renaming.apply import fits
from nnxconv.renaming.builtin import builtin_rules
from nnxconv.renaming.rule import UNDOING, Rules
from nnxconv.renaming.understood import reread, with_new_names
from nnxconv.state import RNGS, TrainState, known_families, sections_of
from nnxconv.tree import Key, Leaf, spell


def renamed(
    source: Understood, rules: Rules, options: Options, like: Understood | None = None
) -> Understood:
    """The checkpoint with its keys renamed; with `like`, they must then be those of `like`.

    Raises:
      RuleError: keys collide, rules fit nothing, or leaves do not match `like`; all are listed.
    """
    new, problems = _tried(source, rules, options, like)
    if problems:
        proposes = "`nnxconv match SRC TEMPLATE` proposes rules" if like is not None else ""
        raise RuleError(
            "the rename rules do not fit",
            where=rules.name,
            details=problems,
            hint=_other_way(source, rules, options, like) or proposes,
        )
    return new


def _tried(
    source: Understood, rules: Rules, options: Options, like: Understood | None
) -> tuple[Understood, list[str]]:
    """The checkpoint with its keys renamed, and what does not fit."""
    source = _reread_with(in_terms_of(source, rules), rules.layer_names()[0], options.layer_axis)
    new, problems = with_new_names(source, rules, options.layer_axis)
    if not options.params_only and "opt_state" not in options.without:
        problems += _computed_with(source.state, rules)
    if like is not None:
        problems += _unlike_modules(new, like, options)
    return new, problems


def _computed_with(state: TrainState, rules: Rules) -> list[str]:
    """Arithmetic on weights that the optimizer's state would have to follow, each tree once.

    Moments are of gradients and of their squares, which change otherwise than the weights do.
    """
    if not any(rule.computes for rule in rules.rules):
        return []
    trees = {h: tree for h, tree in sections_of(state)[0].items() if h[0] == "opt_state"}
    told: dict[Key, str] = {}
    for head, tree in trees.items():
        for key, fit in fits(tree, rules.counted(list(tree))).items():
            if rules.rules[fit.rule].computes:
                told.setdefault(
                    head,
                    f"{spell((*head, *key))} is of the optimizer, and `times`, `over` and `plus`"
                    " are for weights: `--params_only` (or `--compare_only params`) leaves it out",
                )
    return list(told.values())


def _other_way(source: Understood, rules: Rules, options: Options, like: Understood | None) -> str:
    """The hint that a built-in set leads the other way, where its inverse fits; else nothing."""
    name = rules.name.removeprefix(UNDOING)
    if name not in builtin_rules():
        return ""
    is_inverse = rules.name != name
    try:
        other = builtin_rules()[name] if is_inverse else rules.inverse()
        _, problems = _tried(source, other, options, like)
    except NnxconvError:
        return ""
    option = "rename" if is_inverse else "rename_back"
    return f"these rules lead the other way: `--{option} {name}`" if not problems else ""


def follow(
    source: Understood, rules: Rules | None, like: Understood | None, options: Options
) -> tuple[Understood, Understood | None]:
    """The source renamed, by these rules or else by the built-in ones that alone lead to `like`.

    Raises:
      RuleError: the rules do not fit, or do not lead to `like`.
    """
    if rules is None:
        return (source, None) if like is None else towards(source, like, options)
    if like is not None:
        like = _reread_with(in_terms_of(like, rules), _all_names(rules), None)
    return renamed(source, rules, options, like), like


def towards(
    source: Understood, like: Understood, options: Options
) -> tuple[Understood, Understood]:
    """The source renamed by the built-in rules that alone lead to `like`, if there are such."""
    fitting = _fitting_rules(source, like, options)
    is_clear = bool(fitting) and all(new.state == fitting[0][0].state for new, _ in fitting)
    return fitting[0] if is_clear else (source, like)


def _fitting_rules(
    source: Understood, like: Understood, options: Options
) -> list[tuple[Understood, Understood]]:
    """The source renamed by each built-in set that leads to `like`, if its names are other ones."""
    if not _unlike_modules(source, like, options):
        return []
    found = []
    for rules in builtin_rules().values():
        for way in (rules, rules.inverse()):
            try:
                there = _reread_with(in_terms_of(like, way), _all_names(way), None)
                new = renamed(source, way, options, there)
            except NnxconvError:
                continue
            why = f"{way.name} is chosen: these rules alone lead to the names of `--like`"
            found.append((replace(new, renamed=(*new.renamed, why)), there))
    return found


def in_terms_of(side: Understood, rules: Rules) -> Understood:
    """The side, its blocks of layers left as they are where the rules themselves name their parts.

    Rules that name none speak of layers that are apart.
    """
    families = known_families()
    words = set().union(*(family.words() for family in families.values() if not family.is_general))
    if not words & rules.words() or side.families == (families["blocks"],):
        return side
    return reread(replace(side, families=(families["blocks"],)), None)


def _all_names(rules: Rules) -> tuple[str, ...]:
    """The names of layers on both sides: a group that keeps its name is one in `like` as well."""
    left, right = rules.layer_names()
    return *left, *right


def _reread_with(side: Understood, names: Iterable[str], layer_axis: int | None) -> Understood:
    wanted = with_layer_names(side, names)
    return side if wanted.layer_group == side.layer_group else reread(wanted, layer_axis)


def _unlike_modules(new: Understood, like: Understood, options: Options) -> list[str]:
    """How the renamed modules differ from those of `like`; unclear stacks are left aside."""
    unclear = [group.key for side in (new, like) for group in side.groups if group.problem]

    def modules(state: TrainState) -> dict[Key, Leaf]:
        return {
            key: leaf
            for key, leaf in state.leaves().items()
            if _is_module_variable(key, options)
            and not any(key[at : at + len(u)] == u for u in unclear for at in (1, 2))
        }

    return unlike(modules(new.state), modules(like.state))


def _is_module_variable(key: Key, options: Options) -> bool:
    """True for parameters, and for other variables but RNG state and those not wanted."""
    if key[0] == "aux":
        return key[1] != RNGS and not is_excluded(key[1:], options.without)
    return key[0] == "params"
