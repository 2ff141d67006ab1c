"""The house: rooms import one way, and hand on what others may use."""

import ast
import graphlib
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nnxconv"

ROOMS = [
    "errors",
    "tree",
    "state",
    "layouts",
    "renaming",
    "matching",
    "planning",
    "storage",
    "running",
    "comparing",
    "loading",
    "commands",
    "render",
    "cli",
    "__main__",
]
"""The first level, in the order of imports: a file imports its own room and those before it."""

INNER = [
    "storage.names",
    "storage.interrupts",
    "storage.tasks",
    "storage.gcs",
    "storage.files",
    "storage.zarr",
    "storage.ocdbt",
    "storage.safetensors",
    "storage.msgpack",
    "storage.npz",
    "storage.resume",
    "storage.orbax",
    "storage.transfer",
]
"""The rooms of storage, in the same order."""

OPEN = ("errors", "commands", "cli")
"""Rooms whose files are imported themselves."""

MOST_ENTRIES = 18


def module_of(file: Path) -> str:
    """`tree.keys` for `nnxconv/tree/keys.py`; a room's own name for its `__init__.py`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {module_of(file) for file in PACKAGE.rglob("__init__.py")}


def handed_on() -> dict[str, dict[str, str]]:
    """For each room the names that others may use, and the module that has each."""
    rooms: dict[str, dict[str, str]] = {}
    for file in PACKAGE.rglob("__init__.pyi"):
        room = module_of(file)
        rooms[room] = {
            alias.name: f"{room}.{node.module or alias.name}"
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
    return rooms


HANDED_ON = handed_on()


def imports(code: str) -> Iterator[tuple[str, str]]:
    """Modules of nnxconv that the code imports from, wherever in it, and the names; "" for all."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("nnxconv."):
                    yield alias.name.removeprefix("nnxconv."), ""
        elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("nnxconv."):
            base = str(node.module).removeprefix("nnxconv").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield (inner, "") if inner in FILES else (base, alias.name)


def room_of(module: str) -> str:
    """The innermost package that a module lies in."""
    while module and module not in PACKAGES:
        module = module.rpartition(".")[0]
    return module


def place_of(module: str) -> tuple[int, int]:
    """Where a module stands in the order of imports."""
    first = ROOMS.index(module.split(".")[0])
    inner = [n for n, room in enumerate(INNER) if f"{module}.".startswith(f"{room}.")]
    return first, inner[0] if inner else len(INNER)


def is_handed_on(module: str, name: str) -> bool:
    """True for what other rooms may import."""
    if module.split(".")[0] in OPEN or name in HANDED_ON.get(module, {}):
        return True
    room, _, own = module.rpartition(".")
    return not name and HANDED_ON.get(room, {}).get(own) == module


def wrong_imports(module: str, code: str) -> list[str]:
    """What a module imports against the rules, and why."""
    found = []
    for imported, name in imports(code):
        origin = HANDED_ON.get(imported, {}).get(name, imported)
        if imported == "":
            if name != "__version__" and module != "cli.app":
                found.append(f"{name}: of the whole package")
        elif imported not in FILES:
            found.append(f"{imported}: is not there")
        elif name.startswith("_"):
            found.append(f"{imported}.{name}: is private")
        elif room_of(imported) != room_of(module) and place_of(origin) > place_of(module):
            found.append(f"{imported}: is not above {module}")
        elif room_of(imported) != room_of(module) and not is_handed_on(imported, name):
            found.append(f"{imported} {name}".rstrip() + ": is not handed on")
    return found


@pytest.mark.parametrize("module", sorted(FILES.keys() - {""}))
def test_a_file_imports_what_it_may(module):
    assert wrong_imports(module, FILES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("tree.views", "from nnxconv.planning import Plan", ["planning: is not above tree.views"]),
        (
            "tree.views",
            "def f():\n    import nnxconv.storage.orbax.item",
            ["storage.orbax.item: is not above tree.views"],
        ),
        (
            "state.optimizer",
            "if TYPE_CHECKING:\n    from nnxconv.commands.result import Result",
            ["commands.result: is not above state.optimizer"],
        ),
        (
            "storage.gcs.lock",
            "from nnxconv.storage.orbax import Item",
            ["storage.orbax: is not above storage.gcs.lock"],
        ),
        (
            "planning.plan",
            "from nnxconv.tree.views import View",
            ["tree.views View: is not handed on"],
        ),
        ("planning.plan", "from nnxconv.tree import nothing", ["tree nothing: is not handed on"]),
        (
            "planning.plan",
            "from nnxconv.planning.blocks import _x",
            ["planning.blocks._x: is private"],
        ),
        ("layouts.linen", "from nnxconv import convert", ["convert: of the whole package"]),
        ("layouts.linen", "from nnxconv.nowhere import x", ["nowhere: is not there"]),
        ("planning.plan", "from nnxconv.tree import View", []),
        ("planning.plan", "from nnxconv.planning.blocks import regions", []),
        ("cli.convert", "from nnxconv.commands.convert import convert", []),
    ],
)
def test_the_rules_do_tell_right_from_wrong(module, code, wrong):
    assert wrong_imports(module, code) == wrong


def circles(files: Mapping[str, str]) -> list[str]:
    """A circle of files that import each other; nothing where there is none."""
    graph: dict[str, set[str]] = {}
    for module, code in files.items():
        found = {HANDED_ON.get(base, {}).get(name, base) for base, name in imports(code)}
        graph[module] = (found & files.keys()) - {module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_each_other():
    assert circles({module: file.read_text() for module, file in FILES.items() if module}) == []


def test_a_circle_would_be_seen():
    a = "def f():\n    from nnxconv.tree.keys import spell"
    files = {"tree.views": a, "tree.keys": "from nnxconv.tree.views import View"}
    assert set(circles(files)) == set(files)


@pytest.mark.parametrize("room", sorted(HANDED_ON))
def test_what_a_room_hands_on_is_there_and_public(room):
    package = import_module(f"nnxconv.{room}")
    assert [name for name in HANDED_ON[room] if name.startswith("_")] == []
    assert sorted(package.__all__) == sorted(HANDED_ON[room])
    for name, module in HANDED_ON[room].items():
        origin = import_module(f"nnxconv.{module}")
        assert getattr(package, name) is (
            getattr(origin, name) if not module.endswith(f".{name}") else origin
        )


def test_what_is_handed_on_is_used_by_another_room():
    used = {
        (base, name)
        for module, file in FILES.items()
        for base, name in imports(file.read_text())
        if room_of(module) != base
    }
    example = (PACKAGE.parent / "examples" / "write_a_codec.py").read_text()
    used |= set(imports(example))
    used |= {tuple(base.rsplit(".", 1)) for base, name in used if not name and "." in base}
    for room, names in HANDED_ON.items():
        assert [name for name in names if (room, name) not in used] == [], room


def test_every_room_says_what_it_is_for():
    silent = [p for p in PACKAGES if not ast.get_docstring(ast.parse(FILES[p].read_text()))]
    assert silent == []


def test_the_first_level_is_the_list_of_rooms():
    entries = {e.name for e in PACKAGE.iterdir() if e.is_file() or (e / "__init__.py").exists()}
    rooms = {Path(name).stem for name in entries} - {"README", "__init__", "py"}
    assert rooms == set(ROOMS)
    assert len(entries) <= MOST_ENTRIES


def named_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """The files that the map names, each with the functions and classes that it names after it."""
    drawing = re.findall(r"^\w+ +([a-z_/0-9]+\.py) +(\w+) ", text, re.M)
    for file, name in drawing:
        yield file, [name]
    for file, names in re.findall(r"`([a-z_/0-9]+\.py)`((?:(?:, | and )`\w+`)*)", text):
        yield file, re.findall(r"`(\w+)`", names)


MAP = (PACKAGE / "README.md").read_text()


def test_the_map_names_what_is_there():
    found = list(named_in(MAP))
    assert len(found) > 50
    for file, names in found:
        path = PACKAGE / file
        if not path.exists():
            path = PACKAGE.parent / file
        assert path.exists(), file
        there = {
            name
            for node in ast.parse(path.read_text()).body
            for name in (
                [node.name]
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
                else [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
            )
        }
        assert set(names) <= there, file


def test_the_map_is_short_and_shows_every_room():
    assert MAP.count("\n") <= 150
    rooms = set(re.findall(r"^(\w+)(?:/|\.py) ", MAP, re.M))
    assert rooms == set(ROOMS)
