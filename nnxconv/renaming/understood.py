"""A checkpoint that is understood, under the names that rules give it."""

from dataclasses import replace

from nnxconv.layouts import Understood, reboxed, with_layer_names, with_layers
from nnxconv.renaming.rule import Rules
from nnxconv.renaming.states import rename


def reread(understood: Understood, layer_axis: int | None) -> Understood:
    """The same checkpoint, renamed as it was, unclear stacks read with the layers on that axis."""
    found = with_layers(understood, layer_axis)
    if found.rules is not None:
        found, _ = with_new_names(found, found.rules, layer_axis)
    params = {
        k: leaf for k, leaf in found.state.params.items() if ("params", *k) not in found.aside
    }
    return replace(found, state=replace(found.state, params=params))


def with_new_names(
    source: Understood, rules: Rules, layer_axis: int | None
) -> tuple[Understood, list[str]]:
    """The checkpoint with its keys renamed, and what does not fit."""
    new = rename(
        source.state,
        source.groups,
        rules,
        spelling=source.codec.spelling,
        names=source.layer_group,
        layer_axis=layer_axis,
        is_scanned=source.is_scanned,
        families=source.families,
    )
    moves = {key: new.moves[key] for key in source.state.params}
    form, problems = reboxed(source.form, moves)
    forms = {name: reboxed(known, moves)[0] for name, known in source.record.forms.items()}
    understood = replace(
        with_layer_names(source, rules.layer_names()[1]),
        state=new.state,
        groups=new.groups,
        form=form,
        record=replace(source.record, forms=forms),
        rules=rules,
        renamed=new.notes,
    )
    return understood, [*new.problems, *problems]
