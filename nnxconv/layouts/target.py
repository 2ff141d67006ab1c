"""What a conversion leads to: the layout, how its layers are spelled, and its form."""

from dataclasses import replace

from nnxconv.errors import BadInput, UnknownLayout
from nnxconv.layouts.form import Codec, Form
from nnxconv.layouts.options import Options
from nnxconv.layouts.recognition import CODECS
from nnxconv.layouts.understanding import Understood
from nnxconv.state import Spelling, TrainState
from nnxconv.tree import Key

NO_OPTIMIZER = ("absent", "Dict")
"""How forms call it that a tree has no optimizer state."""


def target_codec(
    source: Understood, options: Options, like: Understood | None
) -> tuple[Codec, bool | None]:
    """The target's codec, and whether its layers are stacked (None: as they are)."""
    direction = options.direction
    named = options.to or (like.codec.name if like is not None else None)
    if named is None and direction == "auto" and _is_rearranged(source, options):
        named = source.codec.name
    if like is not None and options.to not in (None, like.codec.name):
        raise BadInput(f"`--to` is {options.to}, but `--like` is a {like.codec.name} checkpoint")
    if named is None and source.codec.family == "torch":
        raise BadInput(
            "the names of safetensors lead to no layout of JAX's",
            hint="name it: `--to maxtext`, `--to nnx-pure`, ...",
        )
    families = {CODECS[layout].family for layout in (source.codec.name, *source.others)}
    target_family = "nnx" if source.codec.family == "linen" else "linen"
    if direction != "auto":
        source_family, _, target_family = direction.partition("_to_")
        if source_family not in families:
            raise BadInput(
                f"`--direction {direction}` needs a {source_family} source,"
                f" but this is a {source.codec.name} checkpoint",
                details=source.evidence,
                hint="leave `--direction` out, or name the layout that you want with `--to`",
            )
        if named is not None and CODECS[named].family != target_family:
            raise BadInput(f"`--direction {direction}` does not lead to the {named} layout")
    elif named is None and len(families) > 1:
        raise _unclear(source)
    target = CODECS[named or target_family]
    if options.scan_layers is not None or (direction == "auto" and named is not None):
        return target, options.scan_layers
    return target, target.family == "nnx"


def _is_rearranged(source: Understood, options: Options) -> bool:
    """True for a run of MaxText that is given an arrangement, or a replica, and no other layout.

    MaxText 0.2.5 trains in one layout; its other family is history, and is asked for by `--to`.
    """
    asked = (options.scan_layers, options.layer_axis, options.replica)
    return source.codec.name == "maxtext" and any(option is not None for option in asked)


def _unclear(source: Understood) -> UnknownLayout:
    """Where the other family shall be gone to, and both could be meant."""
    return UnknownLayout(
        f"this could be {' or '.join((*source.others, source.codec.name))}",
        details=source.evidence,
        hint="`--to LAYOUT` says what it shall become, `--from LAYOUT` what it is",
    )


def spelling_of(codec: Codec, options: Options) -> Spelling:
    """How layers are spelled that are taken apart.

    MaxText calls the layers of an NNX model that it serves `layers_0`, as its Linen models do; its
    `generate_param_only_checkpoint` unrolls stacks to that.
    """
    return "suffix" if options.params_only and codec.name == "nnx" else codec.spelling


def target_form(
    codec: Codec,
    source: Understood,
    state: TrainState,
    like: Understood | None,
    *,
    is_copy: bool = False,
) -> Form:
    if like is not None:
        return like.form
    recorded = source.record.forms.get(codec.name)
    if codec.name == source.codec.name:
        known = {} if recorded is None else recorded.spellings
        return replace(source.form, spellings={**known, **source.form.spellings})
    is_export = state.opt_state is None and state.step is None
    if recorded is not None and is_export and recorded.opt_state not in NO_OPTIMIZER:
        return bare_form(recorded, codec.default_form(state))
    usual = replace(codec.default_form(state), empties=_known_empties(source))
    if is_copy:
        usual = replace(usual, has_root=codec.family == "linen" and bool(state.aux))
    if codec.family == source.codec.family == "linen":
        usual = replace(
            usual,
            collections=source.form.collections,
            inner_collections=source.form.inner_collections if usual.has_level else (),
        )
    return recorded or usual


def _known_empties(source: Understood) -> tuple[tuple[Key, str], ...]:
    """The optimizer's empty states, from the layout that spelled them out last."""
    forms = [source.form, *source.record.forms.values()]
    return next((form.empties for form in forms if form.empties), ())


def bare_form(form: Form, usual: Form) -> Form:
    """The form with a root and step as in checkpoints that hold parameters only."""
    return replace(
        form,
        has_root=usual.has_root,
        step_dtype=usual.step_dtype,
        step_is_scalar=usual.step_is_scalar,
        opt_state=usual.opt_state,
        empties=(),
    )
