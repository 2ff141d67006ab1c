"""Whatever is damaged, and however: a right result, or one message that says where.

A few cases of the campaign belong to every run, more to the full run, the whole of it to
`pytest -m trust`; with `NNXCONV_LARGE=1` that is ten times as long.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import nnxconv
from tests.support import checkpoints, pax
from tests.support.campaign import LAYERS, Source, campaign, cases, table
from tests.support.mutations import KINDS

MUTATIONS = 40_000 if os.environ.get("NNXCONV_LARGE") == "1" else 4_000
"""Of which two in five are none, because a source has no such place."""

TO_NNX = ["--to", "nnx-pure", "--scan_layers"]
TO_LINEN = ["--to", "linen"]
OPTIONS = [
    TO_NNX,
    TO_LINEN,
    [*TO_LINEN, "--transfer", "link"],
    ["--to", "nnx-state", "--no-scan_layers", "--verify"],
    ["--params_only", "--to", "linen"],
]
ONLY_PARAMS = [["--to", "nnx-rl"], [*TO_LINEN, "--transfer", "link"], ["--to", "linen-variables"]]


def on_devices(tree):
    """The tree as `jax.Array`s: Orbax saves shardings and typed keys in files of their own."""
    tree = jax.tree.map(jnp.asarray, tree)
    tree["nnx_aux"]["model"]["decoder"]["dropout"]["rngs"]["params"]["key"] = jax.random.key(3)
    return tree


def save_sources(root: Path) -> dict[str, Source]:
    """A small checkpoint of every layout and container."""
    plain, zarr3 = {"use_ocdbt": False}, {"use_zarr3": True}
    item, step = checkpoints.save_item, checkpoints.save_root
    linen, maxtext = checkpoints.linen(LAYERS), on_devices(checkpoints.maxtext(LAYERS))
    saved = {
        "linen": item(root / "linen", linen),
        "linen plain": item(root / "linen_plain", linen, **plain),
        "linen stacked": item(
            root / "linen_stacked", checkpoints.linen(LAYERS, axis=1), chunk_bytes=1024
        ),
        "nnx": item(root / "nnx", checkpoints.nnx(LAYERS), **plain, **zarr3),
        "nnx-state": item(root / "nnx_state", checkpoints.nnx_state(LAYERS, axis=0), **zarr3),
        "nnx-pure": step(root / "nnx_pure", {7: checkpoints.nnx_pure(LAYERS)}, **plain),
        "maxtext": item(root / "maxtext", maxtext, **zarr3),
        "root of steps": step(
            root / "root_of_steps",
            {7: on_devices(checkpoints.maxtext(LAYERS))},
            extra={"iter": {"at": 3}},
        ),
    }
    for layout in ("nnx-optimizer", "nnx-rl", "linen-variables"):
        path = root / layout.replace("-", "_")
        nnxconv.convert(
            str(saved["linen"]), str(path), to=layout, params_only=layout != "nnx-optimizer"
        )
        saved[layout] = path
    sources = {}
    for name, path in saved.items():
        options = ONLY_PARAMS if name in ("nnx-rl", "linen-variables") else OPTIONS
        manifest = nnxconv.write_checksums(str(path), manifest=f"{root}/{path.name}.json").path
        sources[name] = Source(str(path), manifest, options)
    return sources | save_pax(root)


def save_pax(root: Path) -> dict[str, Source]:
    """Pax checkpoints, of which nothing but the import reads anything."""
    sources = {}
    for version in ("0", "1.1"):
        path = root / f"pax_{version}" / "checkpoints"
        pax.write(path.parent, version=version, chunks=pax.cut(pax.SMALL, D=8))
        options = [[], ["--no-scan_layers"], ["--params_only", "--to", "nnx-pure"]]
        sources[f"Pax {version}"] = Source(str(path), "", options, is_pax=True)
    return sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return save_sources(tmp_path_factory.mktemp("damage"))


def run_campaign(sources, count, tmp_path, record_property):
    findings = campaign(sources, cases(list(sources), count), tmp_path / "work")
    record_property("figures", table(findings))
    wrong = [finding for finding in findings if finding.defects]
    assert not wrong, "\n".join(map(str, wrong))
    return findings


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.full)])
def test_damage_is_told_or_does_no_harm(count, sources, tmp_path, record_property):
    assert len(run_campaign(sources, count, tmp_path, record_property)) > count / 2


@pytest.mark.trust(only=True)
def test_no_mutation_of_thousands_is_a_defect(sources, tmp_path, record_property):
    findings = run_campaign(sources, MUTATIONS, tmp_path, record_property)
    assert len(findings) >= MUTATIONS / 2
    assert {finding.case.kind for finding in findings} == set(KINDS)
    assert {finding.case.source for finding in findings} == set(sources)
