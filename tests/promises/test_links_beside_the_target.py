"""Links where nnxconv keeps what is unfinished: nothing is written, or removed, through them."""

import os
import shutil
from pathlib import Path

import pytest

import nnxconv
from nnxconv.errors import BadInput, StorageError
from tests.support import checkpoints
from tests.support.safety import UNFINISHED, refusal, snapshot

pytestmark = pytest.mark.trust

TMP = f"out{UNFINISHED}"
RESUME = f"{TMP}-resume"


@pytest.fixture
def place(tmp_path) -> Path:
    """A source, and a folder of somebody else's that must stay as it is."""
    checkpoints.save_item(tmp_path / "in", checkpoints.linen(1))
    theirs = tmp_path / "theirs" / "0"
    theirs.mkdir(parents=True)
    (theirs / "journal").write_text("precious")
    return tmp_path


def convert(place: Path, **options) -> None:
    nnxconv.convert(str(place / "in"), str(place / "out"), to="nnx-pure", **options)


def linked(name: str, to: str):
    def make(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(place / to)

    return make


def named_twice(name: str):
    def make(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(place / "theirs" / "0" / "journal", place / name)

    return make


def pipe(name: str):
    def make(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(place / name)

    return make


LOCK = f"{TMP}-lock"
# what is there: whether `--resume` is asked for, what the message says of it
REFUSED = {
    "a lock that is a link to nothing": (
        linked(LOCK, "theirs/new"),
        False,
        LOCK,
        f"`$/{LOCK}` is a link to `$/theirs/new`",
    ),
    "a lock that is a link to a file": (
        linked(LOCK, "theirs/0/journal"),
        False,
        LOCK,
        f"`$/{LOCK}` is a link to `$/theirs/0/journal`",
    ),
    "a lock that has another name": (
        named_twice(LOCK),
        False,
        LOCK,
        f"`$/{LOCK}` has another name as well",
    ),
    "a lock that is a pipe": (
        pipe(LOCK),
        False,
        LOCK,
        f"`$/{LOCK}` is neither a file nor a directory",
    ),
    "a folder of resumed work that is a link": (
        linked(RESUME, "theirs"),
        True,
        RESUME,
        f"`$/{RESUME}` is a link to `$/theirs`",
    ),
    "a journal that is a link": (
        linked(f"{RESUME}/0/journal", "theirs/0/journal"),
        True,
        RESUME,
        f"`$/{RESUME}/0/journal` is a link to `$/theirs/0/journal`",
    ),
    "a journal that has another name": (
        named_twice(f"{RESUME}/0/journal"),
        True,
        RESUME,
        f"`$/{RESUME}/0/journal` has another name as well",
    ),
    "work that is a link": (
        linked(f"{RESUME}/0/work", "theirs"),
        True,
        RESUME,
        f"`$/{RESUME}/0/work` is a link to `$/theirs`",
    ),
    "what was begun, a pipe": (
        pipe(f"{RESUME}/begun"),
        True,
        RESUME,
        f"`$/{RESUME}/begun` is neither a file nor a directory",
    ),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_written_through_links(name, place):
    make, resume, where, told = REFUSED[name]
    make(place)
    before = snapshot(place)
    with pytest.raises(BadInput) as caught:
        convert(place, resume=resume)
    assert refusal(caught.value, place) == (
        "error: nothing is written through links, and what nnxconv keeps has none\n"
        f"  at $/{where}\n"
        f"  {told}\n\n"
        "hint: remove them, or choose another target"
    )
    assert snapshot(place) == before


@pytest.mark.parametrize("name", [TMP, f"{TMP}-replaced"])
@pytest.mark.parametrize("to", ["theirs", "nothing"])
def test_a_link_of_the_name_of_what_is_unfinished_goes_and_what_it_leads_to_stays(name, to, place):
    (place / name).symlink_to(place / to)
    checkpoints.save_item(place / "out", checkpoints.nnx(2))
    before = snapshot(place / "theirs")
    convert(place, overwrite=True)
    assert snapshot(place / "theirs") == before
    assert sorted(path.name for path in place.iterdir()) == ["in", "out", "theirs"]
    assert nnxconv.compare(str(place / "in"), str(place / "out"), compare_values=True).is_match


def test_an_unfinished_target_that_is_swapped_for_a_link_is_not_committed(place):
    def swap(event):
        if not (place / "moved").exists():
            shutil.move(place / TMP, place / "moved")
            shutil.copytree(place / "moved", place / "swapped")
            (place / TMP).symlink_to(place / "swapped")

    with pytest.raises(StorageError) as caught:
        convert(place, watch=swap)
    assert refusal(caught.value, place) == (
        "error: the unfinished target was moved or replaced while it was written\n"
        f"  at $/{TMP}\n\n"
        "hint: let no other program change it, and try again"
    )
    assert not (place / "out").exists()
    assert not (place / TMP).is_symlink()
    assert (place / "swapped").is_dir()


def test_a_target_that_the_user_names_by_a_link_is_what_it_leads_to_at_the_start(place):
    checkpoints.save_item(place / "old", checkpoints.nnx(2))
    (place / "out").symlink_to(place / "old")

    def swap(event):
        (place / "out").unlink(missing_ok=True)
        (place / "out").symlink_to(place / "theirs")

    before = snapshot(place / "theirs")
    convert(place, overwrite=True, watch=swap)
    assert snapshot(place / "theirs") == before
    (place / "out").unlink()
    (place / "out").symlink_to(place / "old")
    assert nnxconv.compare(str(place / "in"), str(place / "out"), compare_values=True).is_match


def test_two_names_of_one_folder_are_one_target(place):
    (place / "alias").symlink_to(place)
    told = []

    def second(event):
        if not told:
            with pytest.raises(BadInput) as caught:
                nnxconv.convert(str(place / "in"), str(place / "alias" / "out"), to="linen")
            told.append(refusal(caught.value, place))

    convert(place, watch=second)
    assert told == [
        "error: another conversion is writing `$/out`\n\n"
        "hint: wait until it is done, or choose another target"
    ]
