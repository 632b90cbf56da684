import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cggm.errors import UserError
from cggm.runs.storage.files import (
    file_digest,
    is_draft,
    new_folder,
    prepare_json,
    replacing,
    sweep_drafts,
    write_atomically,
)
from cggm.runs.storage.locks import alone


def test_a_new_folder_appears_in_one_step(tmp_path):
    folder = tmp_path / "made" / "store"
    with new_folder(folder) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "a").write_text("a")
        assert not folder.exists()
        assert is_draft(draft)
    assert (folder / "inner" / "a").read_text() == "a"
    assert os.listdir(tmp_path / "made") == ["store"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_nothing(tmp_path, error):
    def fail():
        with new_folder(tmp_path / "store") as draft:
            (draft / "a").write_text("a")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_folder_in_use_is_refused_before_and_after_the_block(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    with new_folder(folder) as draft:  # empty: taken over
        (draft / "a").write_text("first")
    with (
        pytest.raises(FileExistsError, match=r"expected a new or an empty folder.*store"),
        new_folder(folder),
    ):
        raise AssertionError("entered")
    late = tmp_path / "late"

    def be_late():
        with new_folder(late):
            late.mkdir()
            (late / "a").write_text("first")

    with pytest.raises(FileExistsError):
        be_late()
    assert (folder / "a").read_text() == (late / "a").read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == ["late", "store"]


def test_an_error_inside_names_the_file_that_the_user_knows(tmp_path):
    folder = tmp_path / "store"
    with pytest.raises(OSError, match="full") as caught, new_folder(folder) as draft:
        raise OSError(errno.ENOSPC, "full", str(draft / "inner" / "a"))
    assert caught.value.filename == str(folder / "inner" / "a")


WRITERS = {
    "file": """
with replacing(Path(sys.argv[1])) as draft:
    draft.write_text("half")
""",
    "folder": """
with new_folder(Path(sys.argv[1])) as draft:
    (draft / "inner").mkdir()
    (draft / "inner" / "a").write_text("half")
""",
}


def begun(kind, path):
    """A process that is halfway through a file or a folder."""
    code = "import sys, time; from pathlib import Path\n"
    code += "from cggm.runs.storage.files import new_folder, replacing\n"
    code += f"{WRITERS[kind]}    print('half', flush=True)\n    time.sleep(60)\n"
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    return process


def write(kind, path):
    if kind == "file":
        write_atomically(path, b"whole")
    else:
        with new_folder(path) as draft:
            (draft / "a").write_text("whole")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_draft_goes_once_its_process_is_killed_and_not_before(tmp_path, kind):
    path = tmp_path / "made"
    with begun(kind, path) as process:
        try:
            [draft] = tmp_path.iterdir()
            sweep_drafts(tmp_path)
            write(kind, path)  # beside the other one, which is separate
            assert sorted(tmp_path.iterdir()) == [draft, path]
            shutil.rmtree(path) if kind == "folder" else path.unlink()
            process.kill()
            process.wait()
            write(kind, tmp_path / "another")
            assert draft.exists()
            write(kind, path)
        finally:
            process.kill()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "another", path]


@pytest.mark.parametrize("earlier", [None, b"", b" {}", b"\n[1]"])
def test_a_json_file_may_be_replaced(tmp_path, earlier):
    file = tmp_path / "new" / "a.json"
    if earlier is not None:
        file.parent.mkdir()
        file.write_bytes(earlier)
    prepare_json(file)
    assert [*file.parent.iterdir()] == ([] if earlier is None else [file])


def test_nothing_else_is_replaced_by_json(tmp_path):
    (tmp_path / "a").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match="a: expected JSON or no file yet"):
        prepare_json(tmp_path / "a")
    with pytest.raises(OSError, match="Is a directory"):
        prepare_json(tmp_path)


def test_what_a_fork_inherits_keeps_no_folder(tmp_path):
    with new_folder(tmp_path / "made"):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with alone(tmp_path / "made") as so:
            assert so
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_draft_that_was_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    flock, swept = fcntl.flock, []

    def sweep_once(descriptor, how):
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].rmdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", sweep_once)
    write_atomically(tmp_path / "made", b"whole")
    assert len(swept) == 1
    assert os.listdir(tmp_path) == ["made"]


def test_a_writer_that_renames_keeps_its_draft(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        temporary.with_name("other").write_text("x")
        temporary.with_name("other").rename(temporary)
        sweep_drafts(tmp_path)
    assert (tmp_path / "a").read_text() == "x"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EBADF])  # none at all, none for folders
def test_without_locks_a_draft_goes_a_day_after_its_last_change(tmp_path, monkeypatch, error):
    def no_locks(descriptor, how):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    draft, of_earlier_version = (tmp_path / f".tmp-1-0123abcd-{kind}" for kind in WRITERS)
    draft.mkdir()
    of_earlier_version.touch()
    whole = [tmp_path / kind for kind in WRITERS]
    for kind in WRITERS:
        write(kind, tmp_path / kind)
        sweep_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([draft, of_earlier_version, *whole])
    for left in (draft, of_earlier_version):
        os.utime(left, (time.time() - 90_000,) * 2)
    sweep_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(whole)


def test_sweeping_takes_drafts_of_one_name(tmp_path):
    drafts = [tmp_path / f".tmp-1-0123abcd-{name}" for name in ("a", "b-a", ".tmp-2-0123abcd-a")]
    for draft in drafts[:2]:
        draft.touch()
    drafts[2].mkdir()
    (drafts[2] / "inner").touch()
    (tmp_path / "a").touch()
    sweep_drafts(tmp_path, "a")
    assert sorted(os.listdir(tmp_path)) == [".tmp-1-0123abcd-b-a", "a"]
    sweep_drafts(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    sweep_drafts(tmp_path / "absent")


def test_a_draft_within_a_draft_is_the_same(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        write_atomically(temporary, b"x")
        sweep_drafts(tmp_path)
        assert [*tmp_path.iterdir()] == [temporary.parent]
        assert [*temporary.parent.iterdir()] == [temporary]
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"x").hexdigest()
