import errno
import hashlib
import os
import subprocess
import sys
import time

import pytest

from cggm.runs.storage.files import file_digest, is_draft, new_folder, replacing, sweep_drafts


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
    with pytest.raises(FileExistsError, match="store: expected a new"), new_folder(folder):
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


def test_a_new_folder_takes_away_what_killed_processes_left(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    left = tmp_path / f".tmp-{int(ended.stdout)}-0123abcd-store"
    under_way = [tmp_path / f".tmp-{os.getppid()}-0123abcd-store"]
    under_way += [tmp_path / f".tmp-{int(ended.stdout)}-0123abcd-another"]
    for draft in (left, *under_way):
        draft.mkdir()
        (draft / "inner").touch()
    with new_folder(tmp_path / "store") as draft:
        assert sorted(tmp_path.iterdir()) == sorted([draft, *under_way])


def test_sweeping_takes_drafts_of_one_name_and_age(tmp_path):
    drafts = [tmp_path / f".tmp-1-0123abcd-{name}" for name in ("a", "b-a", ".tmp-2-0123abcd-a")]
    for draft in drafts[:2]:
        draft.touch()
    drafts[2].mkdir()
    (drafts[2] / "inner").touch()
    (tmp_path / "a").touch()
    sweep_drafts(tmp_path, "a", older_than=60)
    assert len(os.listdir(tmp_path)) == 4
    old = time.time() - 120
    for draft in drafts:
        os.utime(draft, (old, old))
    sweep_drafts(tmp_path, "a", older_than=60)
    assert sorted(os.listdir(tmp_path)) == [".tmp-1-0123abcd-b-a", "a"]
    sweep_drafts(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    sweep_drafts(tmp_path / "absent")


def test_a_draft_under_way_is_swept_by_name_alone(tmp_path):
    with replacing(tmp_path / "a") as draft:
        draft.write_text("x")
        sweep_drafts(tmp_path, "b")
        assert draft.exists()
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"x").hexdigest()
