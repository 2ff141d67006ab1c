"""The steps of a root: what programs call their directories, and which one a user asks for."""

import re
from typing import TypeAlias

from etils import epath

from nnxconv.errors import BadInput, NotACheckpoint
from nnxconv.storage import COMMITTED
from nnxconv.storage.files import Folder, SmallFiles
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax.foreign import looks_like

Step: TypeAlias = int | float | str
"""How a step is named: by its number, or by what its directory is called."""


_RUN_FOLDERS = ("checkpoints", "checkpoint", "ckpts", "ckpt")
"""What programs call the root of steps within the folder of a run."""


def holding_steps(given: Folder) -> Folder:
    """The root of steps: the folder itself, or the one in the folder of a run."""
    if steps_in(given):
        return given
    names = [name for name in _RUN_FOLDERS if name in given.folders]
    inner = [given.inner(name) for name in names]
    roots = [folder for folder in inner if steps_in(folder)]
    return roots[0] if len(roots) == 1 else given


def step_number(name: str) -> int | float | None:
    """The number in `100`, `checkpoint_100`, `step-1.5` or `0007`; None for any other name."""
    match = re.fullmatch(r"(?:[^.]*[_-])?([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)", name)
    if match is None:
        return None
    return int(match[1]) if match[1].isdigit() else float(match[1])


def is_step(name: str) -> bool:
    """True for what programs call the directory of a step: `100`, `checkpoint_100`."""
    return step_number(name) is not None


def is_called(name: str, step: Step) -> bool:
    """True for a directory that has this number, or is called so.

    >>> is_called("ckpt_00000100", 100), is_called("ckpt_00000100", "100")
    (True, True)
    """
    if name == str(step):
        return True
    try:
        return step_number(name) == float(step)
    except ValueError:
        return False


def steps_in(root: Folder) -> dict[int | float, epath.Path]:
    """The steps under a root, by number; in a bucket also those that are being saved."""
    numbers = {step_number(name): root.path / name for name in root.folders}
    return {number: numbers[number] for number in sorted(n for n in numbers if n is not None)}


def _finished(root: Folder, steps: dict[int | float, epath.Path]) -> dict[int | float, epath.Path]:
    """The steps without those that are being saved, which outside of buckets have other names."""
    if not is_remote(root.path):
        return steps
    if root.objects is not None:
        marked = {name for name in root.objects if name.endswith(f"/{COMMITTED}")}
        return {n: path for n, path in steps.items() if f"{path.name}/{COMMITTED}" in marked}
    marks = SmallFiles(ahead=[path / COMMITTED for path in steps.values()])
    return {n: path for n, path in steps.items() if marks.read(path / COMMITTED) is not None}


def choose_step(
    root: Folder,
    step: Step | None,
    has_step: bool = True,
    allow_uncommitted: bool = False,
    *,
    takes_newest: bool = False,
) -> epath.Path:
    """The step that `--step` names, or the only one, or with `takes_newest` the newest.

    Raises:
      NotACheckpoint: there are no steps.
      BadInput: there are several to choose from, or not the one that is asked for.
    """
    steps, path = steps_in(root), root.path
    if not steps:
        raise NotACheckpoint(f"`{path}` is not an Orbax checkpoint", hint=looks_like(root))
    if step is None and len(steps) > 1 and not allow_uncommitted:
        steps = _finished(root, steps) or steps
    listed = ", ".join(map(str, steps))
    if step is None and len(steps) > 1 and not takes_newest:
        name_it = f"name one of them, for example `{steps[max(steps)]}`"
        hint = "choose one with `--step N`" if has_step else name_it
        raise BadInput(f"`{path}` holds {len(steps)} steps: {listed}", hint=hint)
    if step is None:
        return steps[max(steps)]
    called = [there for there in steps.values() if is_called(there.name, step)]
    if not called:
        raise BadInput(f"`{path}` has no step {step}", hint=f"it has {listed}")
    return called[0]
