"""`qk_clip`: the same for live states, for example after each step of a training program."""

from collections.abc import Mapping
from typing import Any, TypeVar
from typing import Literal as OneOf

from nnxconv.commands.boundary import in_python
from nnxconv.commands.qk_clip import check_numbers, without_logits
from nnxconv.errors import BadInput
from nnxconv.layouts import SurveyOptions, one_state, survey
from nnxconv.loading import (
    Template,
    by_array,
    is_known,
    is_module,
    multiply_parts,
    template_of,
    update,
    variables,
)
from nnxconv.state import (
    LOGITS,
    Clipped,
    attention_modules,
    clipped_kernels,
    logits_of,
    refuse_infinite,
)
from nnxconv.tree import Key, Source

State = TypeVar("State")


@in_python
def qk_clip(
    state: State,
    intermediates: Any,
    *,
    config: Any,
    threshold: float | None = None,
    missing: OneOf["error", "keep"] = "error",
    layer_axis: int | None = None,
) -> State:
    """Clips the queries and keys of multi-head latent attention of a live state, head by head.

    ```python
    logits, variables = model.apply(variables, tokens, mutable=["intermediates"])
    state = nnxconv.qk_clip(state, variables["intermediates"], threshold=100, config=config)
    ```

    `qk_clip_checkpoint` is the same for checkpoints; `state.qk_clip` has the formula, which is
    computed in float32, and the product is rounded once to the type of the kernel. Whatever is
    not clipped, moments included, is as it was. It may be called in a function that `jax.jit`
    traces; then logits that are no finite numbers are not refused, and spread.

    Args:
      state: a mapping of Linen variables, a `TrainState`, an `nnx.State`, or an NNX module with the
        parameters; layers apart or stacked.
      intermediates: what the model sowed: `max_logits` below each attention module, shape
        (..., heads), or (layers, ..., heads) for stacked layers.
      config: an object or mapping with `qk_nope_head_dim`. Where it has them, `attention_type`
        must be `mla`, `attn_logits_soft_cap` must not be set, and `qk_clip_threshold` is the
        threshold if none is given.
      threshold: above which logits are scaled down to it.
      missing: `keep` leaves layers without recorded logits as they are.
      layer_axis: axis of the layers, where they are stacked and shapes leave it open.

    Returns:
      The state with clipped kernels. A module is changed in place, and returned; everything else
      is as it was, and what is returned is new.

    Raises:
      BadInput: attention is not multi-head latent or has a soft cap, a layer has no recorded
        logits or several, or sizes do not fit; `state` is as it was.
    """
    nope, threshold = _settings(config, threshold)
    own = variables(state) if is_module(state) else state
    template = template_of(own)
    logits = _recorded(intermediates)
    found = _kernels(template, logits, threshold, nope, missing, layer_axis)
    clipped = template.rebuild(_multiplied(template, found))
    if not is_module(state):
        return clipped
    update(state, clipped)
    return state


def _settings(config: Any, threshold: float | None) -> tuple[int, float]:
    """How many of each head have no rotary position, and the threshold."""
    kind = _setting(config, "attention_type")
    if kind not in (None, "mla"):
        raise BadInput(
            f"attention is `{kind}`: only that of multi-head latent attention is clipped"
        )
    if _setting(config, "attn_logits_soft_cap"):
        raise BadInput("logits with a soft cap are not clipped", where="attn_logits_soft_cap")
    nope = _setting(config, "qk_nope_head_dim")
    if nope is None:
        raise BadInput("`config` has no `qk_nope_head_dim`")
    if threshold is None:
        threshold = _setting(config, "qk_clip_threshold")
    if threshold is None:
        raise BadInput("there is no `--threshold`, and `config` has no `qk_clip_threshold`")
    check_numbers(threshold, int(nope))
    return int(nope), float(threshold)


def _setting(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _recorded(intermediates: Any) -> dict[Key, Any]:
    """The recorded logits by path."""
    leaves = template_of(intermediates).leaves
    found = {key: leaf for key, leaf in leaves.items() if LOGITS in key and hasattr(leaf, "ndim")}
    if not found:
        raise BadInput(f"`intermediates` has no `{LOGITS}`")
    return found


def _kernels(
    template: Template,
    recorded: Mapping[Key, Any],
    threshold: float,
    nope: int,
    missing: str,
    layer_axis: int | None,
) -> dict[Key, Clipped]:
    """The kernels of attention, as views of the leaves of a live state."""
    how = SurveyOptions(layer_axis=layer_axis, where="`state`")
    params = one_state(survey(template.tree, how), "`state`").understood.state.params
    modules = attention_modules(params)
    logits = logits_of(modules, recorded)
    if all(map(is_known, logits.values())):
        refuse_infinite(logits)
    without_logits(modules, logits, missing, "intermediates")
    return clipped_kernels(params, logits, threshold, nope)


def _multiplied(template: Template, found: Mapping[Key, Clipped]) -> dict[Key, Any]:
    """The leaves of a live state, those of the kernels multiplied."""
    arrays = by_array((one.kernel, one.factors) for one in found.values())
    filled = dict(template.leaves)
    for key, source in template.tree.items():
        if isinstance(source, Source) and source.name in arrays:
            filled[key] = multiply_parts(filled[key], arrays[source.name])
    return filled
