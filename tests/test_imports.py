"""A file imports lower levels only, and `import nnxconv` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nnxconv"

LEVELS = [
    ["errors", "keys", "events", "tasks", "allocator", "difference", "version"],
    ["views", "sizes", "layouts", "team"],
    ["pieces", "state", "checksums", "report_text", "limits"],
    ["optimizer", "blocks", "report"],
    ["renaming"],
    ["plan"],
    ["layers", "bundles"],
    ["codecs", "likeness", "live", "rules", "storage"],
    ["understanding"],
    ["conversion", "assemble", "portions"],
    ["pairing", "execute", "fetch", "inspection", "matching", "opening", "renames"],
    ["comparison", "digests", "mismatch"],
    ["fitting", "verification", "boundary", "bare_optimizer", "cluster"],
    ["outcome"],
    ["api", "importing", "loading", "manifests", "opened"],
    ["__init__"],
    ["render"],
    ["cli"],
]
"""Files and packages of nnxconv, lowest first. Those of one level do not import each other."""

LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
HEAVY = ("jax", "tensorstore", "orbax", "etils", "numpy", "ml_dtypes", "flax", "gcsfs", "rich")


def unit_of(module: str) -> str:
    """`layers` for `nnxconv.layers.groups`; `__init__` for the package itself."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(code: str) -> set[str]:
    """Units of nnxconv that the code imports, anywhere but for the type checker alone."""
    found = set()
    stack: list[ast.AST] = [ast.parse(code)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {unit_of(a.name) for a in node.names if a.name.split(".")[0] == "nnxconv"}
        elif isinstance(node, ast.ImportFrom) and node.module == "nnxconv":
            names = {alias.name for alias in node.names}
            found |= {name if name in LEVEL else "__init__" for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nnxconv."):
            found.add(unit_of(node.module or ""))
        stack += ast.iter_child_nodes(node)
    return found


def wrong_imports(unit: str, code: str) -> list[str]:
    """The units that a file of `unit` imports though they are not below it."""
    return sorted(i for i in imports(code) - {unit} if LEVEL.get(i, 99) >= LEVEL[unit])


FILES = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_lower_levels_only(name):
    unit = Path(name).parts[0].removesuffix(".py")
    assert unit in LEVEL, "a new file or package has no level yet"
    assert wrong_imports(unit, FILES[name].read_text()) == []


def test_every_level_is_that_of_a_file_or_package():
    units = {Path(name).parts[0].removesuffix(".py") for name in FILES}
    assert units == LEVEL.keys()


@pytest.mark.parametrize(
    ("unit", "code", "wrong"),
    [
        ("views", "from nnxconv.plan import Plan", ["plan"]),  # upwards
        ("execute", "from nnxconv.pairing import line_up", ["pairing"]),  # sideways
        ("views", "def f():\n    import nnxconv.storage.item", ["storage"]),  # within a function
        ("codecs", "from nnxconv import api", ["api"]),
        ("codecs", "from nnxconv import convert", ["__init__"]),
        ("codecs", "import nnxconv", ["__init__"]),
        ("codecs", "from nnxconv.codecs.parts import x", []),  # of the same package
        ("plan", "from nnxconv.views import View", []),
        ("plan", "if TYPE_CHECKING:\n    from nnxconv.api import Result", []),
        ("plan", "from nnxconv.nowhere import x", ["nowhere"]),
    ],
)
def test_the_rule_does_tell_right_from_wrong(unit, code, wrong):
    assert wrong_imports(unit, code) == wrong


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after the code."""
    listing = f"; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code + listing], capture_output=True, text=True, check=True
    )
    return set(ast.literal_eval(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import nnxconv", "import nnxconv.cli"])
def test_an_import_loads_nothing_heavy(code):
    assert loaded_by(code) == set()


def test_the_help_loads_nothing_heavy():
    code = "import sys; from nnxconv.cli import main; sys.argv = ['nnxconv', 'convert', '--help']"
    loaded = loaded_by(f"{code}\ntry:\n    main()\nexcept SystemExit:\n    pass\n0")
    assert loaded == set()


def test_what_is_heavy_would_be_seen():
    assert "tensorstore" in loaded_by("import nnxconv, nnxconv.storage.read")
    assert {"jax", "orbax"} <= loaded_by("import nnxconv.storage.save")
