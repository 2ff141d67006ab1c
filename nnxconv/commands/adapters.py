"""Adapters of PEFT: what a conversion has to know of them besides the family of their model."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nnxconv.commands.opening import Opened
from nnxconv.errors import BadInput
from nnxconv.layouts import TENSORS
from nnxconv.renaming import PEFT, Form
from nnxconv.state import adapters_in
from nnxconv.tree import Key, Source, View

FORMS: Mapping[str, Form] = {
    "maxtext": "flat",
    "nnx": "flat",
    "linen": "modules",
    "tunix": "apart",
}
"""How adapters are named and shaped, by the layout that they get."""
_FACTOR = re.compile(rf"{re.escape(PEFT)}(?P<module>.+)\.lora_(?P<which>[AB])\.weight")


def is_peft(opened: Opened) -> bool:
    """True for a file or folder of safetensors that holds an adapter of PEFT."""
    return opened.location.container == TENSORS and bool(weights_of(opened))


def weights_of(opened: Opened) -> dict[str, View]:
    """The weights that adapters of PEFT belong to: their names and shapes."""
    shapes: dict[str, dict[str, tuple[Source, int]]] = {}
    for leaf in opened.item.tree.values():
        found = _FACTOR.fullmatch(leaf.name) if isinstance(leaf, Source) else None
        if found is not None and isinstance(leaf, Source) and len(leaf.shape) == 2:
            size = leaf.shape[1 if found["which"] == "A" else 0]
            shapes.setdefault(f"{found['module']}.weight", {})[found["which"]] = leaf, size
    weights: dict[str, View] = {}
    for name, both in shapes.items():
        if both.keys() == {"A", "B"}:
            shape = both["B"][1], both["A"][1]
            weights[name] = Source(name, shape, both["A"][0].dtype, shape)
    return weights


def adapters_at(opened: Opened) -> list[Key]:
    """The keys of all adapters of a checkpoint: those of their first factor.

    Raises:
      BadInput: a factor is alone.
    """
    params = {
        key: leaf
        for one in opened.survey.states
        for key, leaf in one.understood.state.params.items()
    }
    found, alone = adapters_in(params)
    if alone:
        raise BadInput(
            "a factor of an adapter is without the other",
            details=[".".join(map(str, key)) for key in alone],
        )
    return [one.b if one.is_torch else one.a for one in found]


def form_of(keys: Iterable[Key]) -> Form:
    """How a checkpoint of MaxText or Tunix has its adapters."""
    keys = list(keys)
    lasts = [str(key[-1]) for key in keys]
    if any(last.startswith("lora_a.") for last in lasts):
        return "dotted"
    if not any(last.endswith("_lora_a") for last in lasts):
        return "modules"
    return "flat" if any("decoder" in key for key in keys) else "apart"


def configuration(opened: Opened, home: Any) -> dict[str, Any]:
    """`adapter_config.json` of a checkpoint, or of its model's folder `home`, by its name.

    Raises:
      BadInput: there is none.
    """
    from nnxconv.storage import ADAPTER_CONFIG
    from nnxconv.storage.files import read_if_there

    item = opened.location.item
    for folder in (item, item.parent, item.parent.parent, home):
        file = folder / ADAPTER_CONFIG
        if folder.is_dir() and read_if_there(file) is not None:
            return {ADAPTER_CONFIG: file}
    raise BadInput(
        f"there is no `{ADAPTER_CONFIG}`, without which PEFT loads no adapter",
        details=[f"looked for in {item}, above it, and in {home}"],
        hint='write it there: {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA,'
        ' "target_modules": ["q_proj", ...]}',
    )
