"""Layouts of other packages: `examples/write_a_codec.py`, installed beside nnxconv."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnxconv.layouts.recognition
from nnxconv.layouts.form import Record
from nnxconv.layouts.names import OWN
from nnxconv.layouts.recognition import CODECS, recognise
from tests.support import states
from tests.support.checkpoints import linen, save_item
from tests.support.states import tiny
from tests.support.trees import entries, same_bits, values

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "write_a_codec.py"


def install(site, package, codec, layout="house"):
    """What `pip install` leaves of a package with one module: the module, and its metadata."""
    module = package.replace("-", "_")
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(codec)
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[nnxconv.codecs]\n{layout} = {module}\n")
    return site


PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "our-package"
version = "1.0"

[tool.hatch.build.targets.wheel]
packages = ["our_package"]

"""


def pip_install(project, site):
    """Builds a package of the example, whose entry point is the one that it asks for."""
    (project / "our_package").mkdir()
    (project / "our_package" / "__init__.py").touch()
    (project / "our_package" / EXAMPLE.name).write_text(EXAMPLE.read_text())
    asked = re.search(r"\n    (\[project\.entry-points.*)\n    (house = .*)\n", EXAMPLE.read_text())
    assert asked is not None
    (project / "pyproject.toml").write_text(PYPROJECT + "\n".join(asked.groups()) + "\n")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "-q", "--target", site, project],
        capture_output=True,
        check=True,
    )
    return site


def nnxconv_beside(site, *arguments):
    """Runs the command in a fresh interpreter that has the packages of `site` too."""
    code = "from nnxconv.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return pip_install(tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("write_a_codec", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the example --------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_example_keeps_the_laws(example, data):
    state = data.draw(states.params_only_states(with_layers=False))
    tree = example.encode(state, example.default_form(state)).tree
    decoded = example.decode(tree, Record())
    assert decoded.state == state
    assert example.encode(decoded.state, decoded.form).tree == tree
    assert not example.recognise(tree).objections
    readings = {name: codec.recognise(tree) for name, codec in CODECS.items()}
    assert all(reading.objections or reading.is_bare for reading in readings.values())


def test_the_example_is_short():
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    body = "\n".join(lines).split('"""', 2)[2]
    code = [line for line in body.splitlines() if line and not line.strip().startswith('"""')]
    assert len(code) <= 32


def test_a_checkpoint_goes_to_a_layout_of_another_package_and_back(site, tmp_path):
    source = save_item(tmp_path / "a", linen())
    there = nnxconv_beside(
        site,
        "convert",
        source,
        tmp_path / "b",
        "--to",
        "house",
        "--without",
        "opt_state",
        "--verify",
    )
    assert there.returncode == 0, there.stderr
    assert there.stdout.startswith("converted linen to house\n")
    assert {path[0] for path in entries(tmp_path / "b")} == {"weights", "iteration"}
    back = nnxconv_beside(site, "convert", tmp_path / "b", tmp_path / "c", "--to", "linen")
    assert back.returncode == 0, back.stderr
    before, after = values(source), values(tmp_path / "c")
    assert all(same_bits(before[path], after[path]) for path in before if path[0] == "params")


def test_a_foreign_checkpoint_of_that_layout_is_recognised(site, tmp_path):
    source = linen()
    tree = {"weights": source["params"]["params"], "iteration": source["step"]}
    item = save_item(tmp_path / "a", tree)
    shown = nnxconv_beside(site, "inspect", item)
    assert "house" in shown.stdout
    converted = nnxconv_beside(site, "convert", item, tmp_path / "b")
    assert converted.stdout.startswith("converted house to nnx\n")
    compared = nnxconv_beside(site, "compare", item, tmp_path / "b", "--compare_values")
    assert compared.returncode == 0, compared.stdout + compared.stderr


def test_what_it_has_no_place_for_is_told_as_for_any_layout(site, tmp_path):
    item = save_item(tmp_path / "a", {**linen(), "opt_state": [None, {"count": linen()["step"]}]})
    outcome = nnxconv_beside(site, "convert", item, tmp_path / "b", "--to", "house")
    assert (outcome.returncode, outcome.stderr) == (
        2,
        "error: the house layout has no place for 1 array\n"
        "  opt_state[1].count  i32[]\n"
        "\n"
        "hint: `--params_only` leaves the optimizer out\n",
    )


# --- the command line ---------------------------------------------------------------------------


def test_our_own_layouts_are_those_of_the_codecs():
    assert tuple(codec.name for codec in nnxconv.layouts.recognition._ALL) == OWN


def test_the_help_names_it_without_importing_it(tmp_path):
    site = install(tmp_path / "site", "broken", "raise RuntimeError('imported')")
    shown = nnxconv_beside(site, "convert", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    text = re.sub(r"\s+", "", shown.stdout)
    assert text.count(f"[{'|'.join([*OWN, 'house', 'hf'])}]") == 1
    assert text.count(f"[{'|'.join([*OWN, 'house'])}]") == 1


def test_the_short_help_does_not_look_for_other_packages():
    code = (
        "import sys; from nnxconv.cli import main; sys.argv = ['nnxconv', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    print('importlib.metadata' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


def test_a_name_that_no_layout_has_is_refused_with_all_names(site, tmp_path):
    outcome = nnxconv_beside(site, "convert", tmp_path, tmp_path / "b", "--to", "mansion")
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--to': 'mansion' is not one of"
        f" {', '.join([*OWN, 'house', 'hf'])}."
    )


# --- what can be wrong with it --------------------------------------------------------------------

# the package's module, and what is said of it
BROKEN = {
    "it cannot be imported": (
        "import nowhere_to_be_found",
        "error: the layout `house` of `broken` cannot be loaded\n"
        "  at broken\n"
        "  ModuleNotFoundError: No module named 'nowhere_to_be_found'\n",
    ),
    "it fails while it is imported": (
        "raise RuntimeError('no licence\\nat all')",
        "error: the layout `house` of `broken` cannot be loaded\n"
        "  at broken\n"
        "  RuntimeError: no licence\n",
    ),
    "it is no codec": (
        "name, family, spelling = 'home', 'flax', 'suffix'\ndef decode(tree, record): ...",
        "error: the layout `house` of `broken` is not a codec\n"
        "  at broken\n"
        "  it has no `recognise`\n"
        "  it has no `default_form`\n"
        "  it has no `misfits`\n"
        "  it has no `encode`\n"
        "  its `name` is `home`\n"
        "  its `family` is `flax`, not `linen` or `nnx`\n",
    ),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize(("codec", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_package_is_named_in_one_message(codec, message, tmp_path):
    site = install(tmp_path / "site", "broken", codec)
    item = save_item(tmp_path / "a", linen())
    outcome = nnxconv_beside(site, "convert", item, tmp_path / "b")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr == (
        f"{message}\nhint: repair `broken`, or remove it: `pip uninstall broken`\n"
    )


def test_two_packages_with_one_name_are_named(tmp_path):
    site = install(tmp_path / "site", "a-house", EXAMPLE.read_text())
    install(site, "b-house", EXAMPLE.read_text())
    outcome = nnxconv_beside(site, "convert", "--to", "house", "a", "b")
    assert outcome.returncode == 2
    assert re.fullmatch(
        r"error: `[ab]-house` and `[ab]-house` both have a layout called `house`\n"
        r"\n"
        r"hint: remove one of them: `pip uninstall [ab]-house`\n",
        outcome.stderr,
    )


def test_a_package_cannot_replace_a_layout_of_ours(tmp_path):
    site = install(tmp_path / "site", "other", EXAMPLE.read_text(), layout="linen")
    outcome = nnxconv_beside(site, "convert", "--to", "linen", "a", "b")
    assert (outcome.returncode, outcome.stderr) == (
        2,
        "error: `other` and `nnxconv` both have a layout called `linen`\n"
        "\n"
        "hint: remove one of them: `pip uninstall other`\n",
    )


def test_without_other_packages_there_are_only_our_own_layouts():
    assert recognise({("params", *path): leaf for path, leaf in tiny().params.items()})
    assert tuple(CODECS)[: len(OWN)] == OWN
