"""Whatever JSON stands in a checkpoint: it is read, or refused by one message.

Hypothesis puts generated JSON in the place of a part of one of the checkpoint's files, some of it
no JSON at all: huge and negative numbers, deep nesting, names that stand there twice, control
characters and halves of characters, paths that lead out of the checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nnxconv
from nnxconv.cli.output import printable
from nnxconv.errors import NnxconvError
from tests.support import checkpoints
from tests.support.campaign import SCREEN, Watched

EXAMPLES, MORE_EXAMPLES = 120, 4_000
WIDE = 2**10
"""The longest message, in characters a line; keys are cut before that."""

pytestmark = pytest.mark.trust

NUMBERS = st.sampled_from(
    [
        "0",
        "-1",
        "1e400",
        "-0.5",
        "NaN",
        "Infinity",
        str(10**18),
        str(2**63),
        str(-(2**63)),
        "9" * 5000,
    ]
)
NAMES = st.one_of(
    st.sampled_from(
        ["", ".", "..", "../../outside", "/etc/passwd", "a/../../outside", "step", "\x00"]
    ),
    st.text(st.characters(exclude_categories=())),  # control and half characters too
    st.integers(1, 3).map(lambda count: "long" * 10**count),
)
LEAVES = st.one_of(
    NUMBERS,
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.sampled_from(["null", "true", "false", "", "{", '"']),
    NAMES.map(json.dumps),
    st.sampled_from([100, 100_000]).map(lambda depth: "[" * depth + "]" * depth),
)


def _inner(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Lists and mappings of parts; a name may stand in a mapping more than once."""
    pairs = st.tuples(st.one_of(st.sampled_from(["key", "shape"]), NAMES), parts)
    return st.one_of(
        st.lists(parts, max_size=4).map(lambda found: f"[{','.join(found)}]"),
        st.lists(pairs, max_size=4).map(
            lambda found: f"{{{','.join(f'{json.dumps(name)}:{part}' for name, part in found)}}}"
        ),
    )


JSON = st.recursive(LEAVES, _inner, max_leaves=8)


@dataclass(frozen=True)
class Damage:
    """A text that replaces a part of a file.

    Attributes:
      file: relative to the checkpoint.
      place: names and indices that lead to the part.
      text: what stands there instead.
    """

    file: str
    place: tuple[str | int, ...]
    text: str

    def apply(self, content: str) -> str:
        """The file with the damage."""
        mark = "the place of the damage"
        document = _with(json.loads(content), self.place, mark)
        return json.dumps(document).replace(json.dumps(mark), self.text)


def _with(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A document with another value at a place."""
    if not place:
        return value
    first, *rest = place
    new = _with(document[first], tuple(rest), value)
    if isinstance(document, list):
        return [new if n == first else old for n, old in enumerate(document)]
    return {**document, first: new}


def _places(document: Any) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document, the whole of it first."""
    yield ()
    children = document.items() if isinstance(document, dict) else ()
    if isinstance(document, list):
        children = enumerate(document)
    for name, child in children:
        yield from ((name, *rest) for rest in _places(child))


def damages(root: Path) -> st.SearchStrategy[Damage]:
    """Damages to the files of JSON below a directory; each file is as likely as any other."""

    def in_file(file: Path) -> st.SearchStrategy[Damage]:
        places = list(_places(json.loads(file.read_text())))
        name = file.relative_to(root).as_posix()
        return st.builds(Damage, st.just(name), st.sampled_from(places), JSON)

    return st.one_of([in_file(file) for file in json_files(root)])


def json_files(root: Path) -> list[Path]:
    """Every file whose content is a mapping in JSON."""
    found = []
    for file in sorted(root.rglob("*")):
        if file.is_file() and file.read_bytes()[:1] == b"{":
            found.append(file)
    return found


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> Path:
    """A step as Orbax saves it without OCDBT: every format is a file of its own."""
    root = tmp_path_factory.mktemp("generated")
    tree = {
        "params": {"params": {"a": jnp.ones((4, 2))}},
        "step": np.int32(3),
    }
    saved = checkpoints.save_step(root / "7", tree, use_ocdbt=False)
    names = {file.name for file in json_files(saved)}
    assert {"_METADATA", "_CHECKPOINT_METADATA", "_sharding", ".zarray", "process_0"} <= names
    return saved


COMMANDS: dict[str, Callable[[str, str], object]] = {
    "inspect": lambda source, target: nnxconv.inspect(source),
    "convert": lambda source, target: nnxconv.convert(source, target, to="nnx-pure"),
    "load": lambda source, target: nnxconv.load(
        source, like={"params": {"params": {"a": jnp.zeros((4, 2))}}}, note=lambda text: None
    ),
}


def contents(root: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(file): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_a_member_that_no_zarr_has_is_not_written(step, tmp_path):
    source = shutil.copytree(step, tmp_path / "7")
    for name in ("params.params.a", "step"):
        file = source / "items" / name / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "\x1b[31m": 1}))
    nnxconv.convert(str(source), str(tmp_path / "new"), to="nnx-pure", verify=True)
    [file] = (tmp_path / "new").rglob(".zarray")
    assert "\x1b[31m" not in json.loads(file.read_text())


@pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(MORE_EXAMPLES, marks=pytest.mark.trust(only=True))]
)
def test_generated_json_is_read_or_refused(examples, step, tmp_path, record_property):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    source = shutil.copytree(step, tmp_path / "in" / "7")
    whole = contents(tmp_path)
    ends = {"read": 0, "refused": 0}

    @settings(
        max_examples=examples,
        deadline=10_000,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage=damages(step), command=st.sampled_from(sorted(COMMANDS)))
    def law(damage: Damage, command: str) -> None:
        file = source / damage.file
        content = file.read_bytes()
        file.write_text(damage.apply(content.decode()))
        try:
            COMMANDS[command](str(source), str(tmp_path / "new" / "7"))
            ends["read"] += 1
        except NnxconvError as error:
            ends["refused"] += 1
            lines = printable(error.render()).splitlines()
            assert len(lines) <= SCREEN and max(map(len, lines)) <= WIDE
        finally:
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
            file.write_bytes(content)

    with Watched(tmp_path / "outside") as watched:
        law()
    assert watched.opened() == []
    assert contents(tmp_path) == whole
    record_property("figures", f"{examples:,} generated files: {ends}")
    assert min(ends.values()) > examples / 20
