"""Local checkpoints and their twins on gs://, and what both shall have in common."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from orbax.checkpoint.path import step as orbax_step

from tests.support import checkpoints, gcs, pax
from tests.support.command import Outcome
from tests.support.trees import entries, same_bits, values

pytestmark = [
    pytest.mark.usefixtures("gcs_environment"),
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),  # gcsfs
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),  # Orbax
]

NAMES_ONLY: dict[str, Any] = {"to": "nnx-pure", "scan_layers": False}
RULES = '[rules]\n"decoder.layers[{i}].mlp" = "decoder.layers[{i}].ffn"\n'
KERNELS = 12
"""Of 2 MiB: chunks that are large enough to stay as they are."""


def write_all(root: Path) -> Path:
    """Local checkpoints of every container; each has its twin under the same name on gs://."""
    tree = checkpoints.linen()
    checkpoints.save_item(root / "item", tree)
    checkpoints.save_item(root / "stacked", checkpoints.linen(axis=1))
    checkpoints.save_item(root / "plain", tree, use_ocdbt=False)
    checkpoints.save_item(root / "plain zarr3", tree, use_ocdbt=False, use_zarr3=True)
    checkpoints.save_item(root / "zarr3", tree, use_zarr3=True)
    checkpoints.save_item(root / "stacked zarr3", checkpoints.linen(axis=1), use_zarr3=True)
    checkpoints.save_item(root / "nnx", checkpoints.nnx())
    checkpoints.save_item(root / "maxtext", checkpoints.maxtext())
    checkpoints.save_item(root / "renamed", renamed())
    (root / "rules.toml").write_text(RULES)
    checkpoints.save_step(root / "step", tree, extra={"iter": {"seen": 7}})
    checkpoints.save_root(root / "root", {1: tree, 2: checkpoints.linen(step=9)})
    checkpoints.save_root(root / "lone", {3: tree})
    checkpoints.save_item(root / "template", checkpoints.nnx_pure(axis=1))
    checkpoints.save_item(root / "large", large())
    pax.write(root / "pax", pax.leaves(step=5), chunks=pax.cut(pax.SMALL, D=6, F=9, V=15))
    return root


def large() -> checkpoints.Tree:
    """24 MiB that no compressor makes smaller."""
    kernels = {
        f"layers_{index}": {"mlp": {"kernel": checkpoints.values((512, 1024), index)}}
        for index in range(KERNELS)
    }
    return {"step": np.asarray(7, np.int32), "params": {"params": {"decoder": kernels}}}


def renamed() -> checkpoints.Tree:
    """The weights of `linen`, but every `mlp` is called `ffn`."""
    weights = checkpoints.weights()
    for name, layer in weights["decoder"].items():
        if name.startswith("layers_"):
            layer["ffn"] = layer.pop("mlp")
    return {"params": {"params": weights}}


def item_of(target: Path) -> Path:
    """The one item at or below a path."""
    [metadata] = target.rglob("_METADATA")
    return metadata.parent


def check_same(found: Path, wanted: Path) -> None:
    """Fails unless both targets have the same items, keys and bits."""
    a, b = item_of(found), item_of(wanted)
    assert a.relative_to(found) == b.relative_to(wanted)
    assert entries(a) == entries(b)
    left, right = values(a), values(b)
    assert [key for key in right if not same_bits(left[key], right[key])] == []


def is_finished(path: str) -> bool:
    """True when Orbax takes an item or a step, or all steps of a root, for finished."""
    gcs.forget()
    place = epath.Path(path)
    if not place.exists():
        return False
    steps = [child for child in place.iterdir() if child.name.isdigit()]
    return all(orbax_step.is_checkpoint_finalized(each) for each in steps or [place])


def refused(outcome: Outcome) -> str:
    """What a command said that ended with exit code 2 and nothing on stdout."""
    assert outcome.exit_code == 2, outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome.stderr


def words(options: dict[str, Any]) -> list[str]:
    """Options of the API as those of the command."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        else:
            found += [f"--{name}", str(value)]
    return found


def whole(storage: gcs.Storage, name: str) -> str:
    """`old` or `new` for a whole checkpoint of that content, else empty."""
    names = storage.names(name)
    if gcs.COMMITTED not in names or "_METADATA" not in names:
        return ""
    return "new" if "optimizer" in storage.read(f"{name}/_METADATA").decode() else "old"


def everywhere(storage: gcs.Storage) -> set[str]:
    """What whole checkpoints there are in `out/`."""
    folders = {path.split("/")[0] for path in storage.names("out")}
    return {whole(storage, f"out/{folder}") for folder in folders} - {""}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from nnxconv.cli import main; main()", *map(str, arguments)]
