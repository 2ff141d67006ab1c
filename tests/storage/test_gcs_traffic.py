"""How much is asked of a server, and how much is moved through the client."""

import os

import pytest

import nnxconv
from tests.support import checkpoints
from tests.support.command import run
from tests.support.gcs_proxy import Delay
from tests.support.gcs_twins import (
    KERNELS,
    NAMES_ONLY,
    large,
    pytestmark,
)

__all__ = ["pytestmark"]

# How much is asked and moved


@pytest.mark.parametrize(
    ("name", "transfer"), [("large", "link"), ("large plain", "copy"), ("large step", "copy")]
)
def test_names_only_moves_hardly_anything_through_the_client(
    name, transfer, storage, local, tmp_path
):
    if name == "large":
        source = storage.put(local / "large", "out/source")
    elif name == "large plain":
        path = checkpoints.save_item(tmp_path / "plain", large(), use_ocdbt=False)
        source = storage.put(path, "out/source")
    else:  # another item, which is carried over, is as large
        path = checkpoints.save_step(tmp_path / "step", large(), extra={"iter": {"seen": 7}})
        (path / "iter" / "shuffled").write_bytes(os.urandom(12 * 2**20))
        source = storage.put(path, "out/source")
    stored = sum(storage.sizes("out/source").values())
    assert stored > 20 * 2**20
    with storage.proxy.recording() as traffic:
        result = nnxconv.convert(source, storage.path("out/x"), transfer=transfer, **NAMES_ONLY)
    assert len(result.plan.renamed) >= KERNELS
    assert sum(storage.sizes("out/x").values()) > 0.95 * stored
    assert traffic.client_bytes < 0.05 * stored
    assert traffic.of("copy")


CONTAINERS = ["item", "training state", "step with another item", "root", "files of their own"]


def put(storage, name, folder):
    """A checkpoint whose conversion changes hardly more than names."""
    if name == "training state":  # of small arrays, some of which are rewritten
        path = checkpoints.save_item(folder / "state", checkpoints.linen())
    elif name == "step with another item":
        path = checkpoints.save_step(folder / "step", large(), extra={"iter": {"seen": 7}})
        (path / "iter" / "shards").mkdir()
        (path / "iter" / "shards" / "0").write_bytes(b"shard")
    elif name == "root":
        path = checkpoints.save_root(folder / "root", {1: large(), 2: large()})
    else:
        path = checkpoints.save_item(folder / "item", large(), use_ocdbt=name == "item")
    return storage.put(path, "out/source")


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", CONTAINERS)
def test_names_only_asks_25_times_and_for_each_file_that_has_to_be(name, storage, tmp_path):
    source = put(storage, name, tmp_path)
    with storage.proxy.recording() as traffic:
        nnxconv.convert(source, storage.path("out/x"), **NAMES_ONLY)
    of_arrays = [one for one in traffic.requests if one.name.endswith("/.zarray")]
    assert len(traffic.requests) <= 25 + len(traffic.of("copy")) + len(of_arrays)


@pytest.mark.full
@pytest.mark.parametrize("name", CONTAINERS)
def test_names_only_asks_in_12_rounds(name, storage, tmp_path):
    source = put(storage, name, tmp_path)
    rounds = []
    for number in range(3):  # what is asked for at once may start late where much else goes on
        with storage.proxy.recording() as traffic, storage.proxy.inject(Delay(0.1)):
            nnxconv.convert(source, storage.path(f"out/{number}"), **NAMES_ONLY)
        rounds.append(traffic.rounds())
        if rounds[-1] <= 12:
            return
    assert min(rounds) <= 12


def test_links_are_copies_by_the_server_and_the_result_says_so(storage, sources):
    outcome = run(
        "convert", sources["large"], storage.path("out/x"), "--to", "nnx-pure",
        "--no-scan_layers", "--transfer", "link",
    )  # fmt: skip
    assert outcome.exit_code == 0
    assert "server" in outcome.stdout
    assert "gs://" in outcome.stdout


def leafy(count: int) -> checkpoints.Tree:
    """A checkpoint of many small arrays."""
    layers = {
        f"layers_{index}": {"norm": {"scale": checkpoints.values((16,), index)}}
        for index in range(count)
    }
    return {"params": {"params": {"decoder": layers}}}


@pytest.mark.parametrize("use_ocdbt", [True, False], ids=["OCDBT", "a directory per array"])
def test_requests_of_inspect_and_compare_grow_with_leaves_at_worst(use_ocdbt, storage, tmp_path):
    few, many = 20, 120
    asked: dict[str, list[int]] = {"inspect": [], "compare": []}
    for count in (few, many):
        item = checkpoints.save_item(tmp_path / str(count), leafy(count), use_ocdbt=use_ocdbt)
        path = storage.put(item, f"out/{count}")
        with storage.proxy.recording() as traffic:
            nnxconv.inspect(path)
        asked["inspect"].append(len(traffic.requests))
        assert traffic.client_bytes < sum(storage.sizes(f"out/{count}").values()) + 4000 * count
        with storage.proxy.recording() as traffic:
            nnxconv.compare(path, path)
        asked["compare"].append(len(traffic.requests))
    assert asked["inspect"][1] - asked["inspect"][0] <= many - few + 10
    assert asked["compare"][1] - asked["compare"][0] <= 2 * (many - few) + 10
    assert asked["inspect"][0] <= few + 40


@pytest.mark.parametrize("name", ["item", "step", "lone"])
def test_nothing_is_listed_twice(name, storage, sources):
    with storage.proxy.recording() as traffic:
        nnxconv.inspect(sources[name])
    whole = [each.target for each in traffic.of("list") if "maxResults=1&" not in each.target + "&"]
    assert sorted(whole) == sorted(set(whole))


def test_metadata_is_read_in_parallel(storage, tmp_path):
    item = checkpoints.save_item(tmp_path / "item", leafy(100), use_ocdbt=False)
    path = storage.put(item, "out/item")
    with storage.proxy.recording() as traffic, storage.proxy.inject(Delay(0.05), kind="read"):
        nnxconv.inspect(path)
    assert traffic.most_at_once("read") >= 16


@pytest.mark.full
@pytest.mark.parametrize("use_ocdbt", [True, False], ids=["OCDBT", "a directory per array"])
def test_data_is_read_in_parallel(use_ocdbt, storage, tmp_path):
    item = checkpoints.save_item(tmp_path / "item", large(), use_ocdbt=use_ocdbt)
    path = storage.put(item, "out/item")
    with storage.proxy.recording() as traffic, storage.proxy.inject(Delay(0.05), kind="read"):
        nnxconv.convert(path, storage.path("out/x"), dtype="bfloat16")
        assert traffic.most_at_once("read") >= 4


@pytest.mark.full
def test_many_small_nodes_of_a_database_are_read_at_once(storage, tmp_path):
    item = checkpoints.save_item(tmp_path / "item", leafy(3000))
    source = storage.put(item, "out/item")
    nnxconv.convert(source, storage.path("out/many"), to="nnx-pure", scan_layers=False)
    with storage.proxy.recording() as traffic:
        nnxconv.inspect(storage.path("out/many"))
    assert len(traffic.requests) <= 8
