"""The names of all layouts: our own, and those that other packages announce.

Those are entry points of the group `nnxconv.codecs`:

```toml
[project.entry-points."nnxconv.codecs"]
ours = "our_package.our_codec"
```

The entry point's name is the layout's, and what it refers to is a `form.Codec`: a module, or any
object, with those names in it. `examples/write_a_codec.py` is one. Names are told without importing
anything of the other packages, or of our own codecs.
"""

from functools import cache
from typing import TYPE_CHECKING

from nnxconv.errors import BadInput
from nnxconv.state import announced_points, package_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "nnxconv.codecs"
OWN = (
    "linen",
    "linen-variables",
    "maxtext",
    "nnx",
    "nnx-state",
    "nnx-pure",
    "nnx-optimizer",
    "nnx-rl",
    "tunix",
    "safetensors",
)
ALONE = ("maxtext", "tunix", "nnx-rl", "safetensors")
"""Layouts whose programs restore one state and nothing around it."""

AUX_AXES = {"maxtext": 0}
"""Where programs stack all variables but parameters, wherever they stack those: MaxText scans over
`nnx.Param` on `param_scan_axis`, and over everything else on axis 0."""

TUNIX_ITEMS = ("model_params", "optimizer_state")
"""The items of a step of Tunix, which together are one state; the second may be missing."""


def layouts() -> tuple[str, ...]:
    """Every name that `--to` and `--from` take."""
    return (*OWN, *announced())


@cache
def announced() -> dict[str, "EntryPoint"]:
    """The layouts of other packages, in order of their names.

    Raises:
      BadInput: two packages have a layout of one name, or one has a name of ours.
    """
    found: dict[str, EntryPoint] = {}
    for point in announced_points(GROUP):
        known = found.get(point.name)
        if known is not None or point.name in OWN:
            other = "nnxconv" if known is None else package_of(known)
            raise BadInput(
                f"`{package_of(point)}` and `{other}` both have a layout called `{point.name}`",
                hint=f"remove one of them: `pip uninstall {package_of(point)}`",
            )
        found[point.name] = point
    return found
