"""Several processes do what one does: the same trees, values and messages, or nothing at all.

They run on loopback, one coordinator for each group. A process takes a second or two to start, so
that a group makes all its conversions one after the other, by library calls.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

import nnxconv
from tests import checkpoints, pax, processes
from tests.trees import entries, same_bits, values

STEP = 7
UNFINISHED = ".orbax-checkpoint-tmp"
COUNTS = [2, 4]

# case: source, function, options
CASES = {
    "renamed": ("apart", "convert", {"to": "nnx", "scan_layers": True}),
    "linked": ("apart", "convert", {"to": "nnx", "scan_layers": True, "transfer": "link"}),
    "unstacked": ("stacked", "convert", {"to": "linen", "scan_layers": False, "verify": True}),
    "cast": ("apart", "convert", {"to": "maxtext", "params_only": True, "dtype": "bfloat16"}),
    "in directories": ("directories", "convert", {"to": "nnx-pure", "scan_layers": False}),
    "directories renamed": ("directories", "convert", {"to": "nnx-state"}),
    "from Pax": ("pax", "gpt3_from_paxml", {"verify": True}),
    "from Pax, apart": ("pax", "gpt3_from_paxml", {"scan_layers": False, "max_memory": "64KiB"}),
}


def state(axis=None, megabytes=2):
    """A small training state, but for kernels that are worth a chunk of their own."""
    tree = checkpoints.linen(4, axis=axis)
    kernels = [checkpoints.values((megabytes * 256, 1024), seed) for seed in range(4)]
    decoder = tree["params"]["params"]["decoder"]
    if axis is None:
        for layer, kernel in enumerate(kernels):
            decoder[f"layers_{layer}"]["mlp"]["wi"]["kernel"] = kernel
    else:
        decoder["layers"]["mlp"]["wi"]["kernel"] = np.stack(kernels, axis)
    moments = {name: {"params": tree["params"]["params"]} for name in ("mu", "nu")}
    adam, *others = tree["opt_state"]
    return {**tree, "opt_state": [{**adam, **moments}, *others]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What is converted, by name."""
    root = tmp_path_factory.mktemp("sources")
    chunks = pax.cut(pax.SMALL, D=8, F=14, L=1)
    yield {
        "apart": checkpoints.save_root(
            root / "apart", {STEP: state()}, use_zarr3=True, extra={"iter": {"at": 3}}
        ),
        "stacked": checkpoints.save_item(root / "stacked", state(axis=1)),
        "directories": checkpoints.save_item(root / "directories", state(axis=0), use_ocdbt=False),
        "pax": pax.write(root / "pax", chunks=chunks),
    }
    shutil.rmtree(root)


def convert(sources, folder, case, **more):
    source, function, options = CASES[case]
    getattr(nnxconv, function)(str(sources[source]), str(folder / case), **options, **more)


@pytest.fixture(scope="module")
def by_one(sources, tmp_path_factory):
    """What one process alone makes, by case."""
    folder = tmp_path_factory.mktemp("by one")
    for case in CASES:
        convert(sources, folder, case)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=COUNTS)
def by_many(request, sources, by_one, tmp_path_factory):
    """What several processes make, by case; and what each of them said of comparisons."""
    folder = tmp_path_factory.mktemp("by many")
    conversions = [
        (function, (sources[source], folder / case), options)
        for case, (source, function, options) in CASES.items()
    ]
    reports = processes.call([*conversions, *comparisons(sources, by_one)], request.param)
    yield folder, reports
    shutil.rmtree(folder)


def comparisons(sources, by_one):
    """One that finds nothing, one that finds differences in many leaves, one of layouts."""
    values = {"compare_values": True, "compare_only": "all"}
    return [
        ("compare", (sources["stacked"], by_one / "unstacked"), values),
        ("compare", (sources["apart"], by_one / "cast"), {**values, "ignore_dtype": True}),
        ("compare", (sources["stacked"], sources["directories"]), {}),
    ]


def items(target: Path) -> list[Path]:
    return sorted(file.parent for file in target.rglob("_METADATA"))


@pytest.mark.parametrize("case", CASES)
def test_several_processes_write_what_one_writes(case, by_one, by_many):
    [expected], [found] = items(by_one / case), items(by_many[0] / case)
    assert found.relative_to(by_many[0]) == expected.relative_to(by_one)
    assert entries(found) == entries(expected)
    wanted, stored = values(expected), values(found)
    assert stored.keys() == wanted.keys()
    assert [key for key in wanted if not same_bits(wanted[key], stored[key])] == []
    nnxconv.write_checksums(str(expected))
    manifest = str(expected) + ".checksums.json"
    check = nnxconv.check_checksums(str(found), manifest=manifest)
    assert check.is_match
    Path(manifest).unlink()


def test_other_items_and_files_of_a_step_travel_once(by_many):
    step = by_many[0] / "renamed" / str(STEP)
    assert (step / "iter" / "metadata").read_text() == '{"at": 3}'
    assert UNFINISHED not in " ".join(path.name for path in by_many[0].rglob("*"))


def test_every_process_has_the_report_that_one_makes(sources, by_one, by_many):
    wanted = []
    for _, paths, options in comparisons(sources, by_one):
        wanted.append(nnxconv.compare(*map(str, paths), **options).render())
    assert by_many[1] == [wanted] * len(by_many[1])
    assert wanted[1].startswith("26 of") or "differ" in wanted[1]
