"""Every function works where an event loop runs already, as it does in notebooks."""

import asyncio

import pytest

import nnxconv
from tests.support import checkpoints, pax


@pytest.fixture
def source(tmp_path):
    return str(checkpoints.save_item(tmp_path / "a", checkpoints.linen()))


@pytest.mark.parametrize("transfer", ["copy", "link"])
def test_a_cell_converts_compares_and_looks(transfer, source, tmp_path):
    async def cell():
        target, manifest = str(tmp_path / "b"), str(tmp_path / "sums.json")
        converted = nnxconv.convert(source, target, verify=True, transfer=transfer)
        report = nnxconv.compare(source, target, compare_values=True, compare_only="all")
        nnxconv.write_checksums(source, manifest=manifest)
        found = nnxconv.check_checksums(target, manifest=manifest)
        proposal = nnxconv.match(source, target)
        step = nnxconv.inspect(target).step
        return converted.is_verified, report.is_match, found.exit_code, proposal.is_complete, step

    assert asyncio.run(cell()) == (True, True, 0, True, 7)


def test_a_cell_imports_pax(tmp_path):
    async def cell():
        pax.write(tmp_path / "pax", pax.leaves())
        return nnxconv.gpt3_from_paxml(str(tmp_path / "pax"), str(tmp_path / "out"), verify=True)

    assert asyncio.run(cell()).is_verified
