"""Files that belong to a checkpoint but stand beside it: `adapter_config.json` of a LoRA adapter.

MaxText writes and reads it beside the steps (`maxtext/utils/lora_utils.py`,
`generate_param_only_checkpoint.py`); other programs put it into the step, beside the item.

```
adapter/adapter_config.json    beside the steps
adapter/0/adapter_config.json  beside the item
adapter/0/items/
adapter/0/items/adapter_config.json   in an item that was made of a folder of PEFT
```

The marker of a step that Orbax v1 wrote stays in the step.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage import ADAPTER_CONFIG, MARKER, STEP_METADATA
from nnxconv.storage.files import SmallFiles, read_if_there, refuse_strangers, write_files
from nnxconv.storage.orbax.documents import PYTREE_HANDLER, step_metadata
from nnxconv.storage.orbax.location import Location
from nnxconv.storage.orbax.saving import Target
from nnxconv.storage.orbax.steps import is_step
from nnxconv.storage.safetensors import home_of

NAMES = (ADAPTER_CONFIG,)


@dataclass(frozen=True)
class ExtraFiles:
    """Where such files come from, by where they go.

    Attributes:
      inside: names of files that go into the new step, before it is committed.
      beside: paths outside the target, which are written when it is committed.
      step: what the metadata of the step say in which the target is an item, by their path; they
        are written where there are none, so that a program that asks for the step finds the item.
    """

    inside: Mapping[str, epath.Path] = field(default_factory=dict)
    beside: Mapping[epath.Path, epath.Path] = field(default_factory=dict)
    step: Mapping[epath.Path, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What is carried over, each name once."""
        return sorted({*self.inside, *(path.name for path in self.beside)})

    def refuse_others(self, overwrite: bool) -> None:
        """Refuses to replace a file outside the target that says something else.

        Raises:
          BadInput: there is one, and it may not be replaced.
        """
        for new, old in self.beside.items():
            text = None if overwrite else read_if_there(new)
            if text is not None and text != read_if_there(old):
                raise BadInput(
                    f"`{new}` exists, and is not the one of the source",
                    hint="add `--overwrite` to replace it",
                )

    def write_beside(self) -> None:
        """Writes the files outside the target."""
        for new, old in self.beside.items():
            text = read_if_there(old)
            if text is not None and text != read_if_there(new):
                write_files({new: text})
        for new, told in self.step.items():
            if read_if_there(new) is None:
                write_files({new: told})


def files_beside(location: Location, target: Target) -> ExtraFiles:
    """The files that travel with a checkpoint: each keeps its distance from the item."""
    folder, small = location.item.parent, location.small
    if location.container == "safetensors":
        inside = _found(small, home_of(location.item), target.path)
        return ExtraFiles({new.name: old for new, old in inside.items()})
    if location.given_as == "item" or location.is_bare_step:
        beside = _found(small, folder, target.path.parent)
        is_folder = location.container == "orbax"
        found = _found(small, location.item, target.path) if is_folder else {}
        inside = {new.name: old for new, old in found.items()}
        return ExtraFiles(inside, beside, _step_metadata(location, target))
    inside = {new.name: old for new, old in _found(small, folder, target.path, MARKER).items()}
    return ExtraFiles(inside, _found(small, folder.parent, target.path.parent))


def _step_metadata(location: Location, target: Target) -> dict[epath.Path, str]:
    """The metadata of the new step, where an item of a step becomes an item of another one."""
    step, before = target.path.parent, location.item.parent
    if target.is_split or step == before or not is_step(step.name):
        return {}
    if read_if_there(before / STEP_METADATA) is None:
        return {}
    now = time.time_ns()
    handlers = {target.path.name: PYTREE_HANDLER}
    told = step_metadata(handlers, target.custom_metadata, begun=now, committed=now)
    return {step / STEP_METADATA: told}


def _found(
    small: SmallFiles, folder: epath.Path, target: epath.Path, *further: str
) -> dict[epath.Path, epath.Path]:
    """The files in a folder, by their new paths."""
    names = (*NAMES, *further)
    refuse_strangers(folder, *(folder / name for name in names))
    return {target / name: folder / name for name in names if small.read(folder / name) is not None}
