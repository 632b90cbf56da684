"""Walk through a folder and those below it: each folder once, whatever links lead where."""

import os
from collections.abc import Iterator
from pathlib import Path

# What systems keep on a disk or a share; hidden ones are left out anyway.
_OF_SYSTEMS = {"lost+found", "System Volume Information", "$RECYCLE.BIN", "@eaDir"}
_LEFT_OUT = {"__MACOSX"}


class Walk:
    """The files in a folder and below it.

    Hidden files and folders are left out. A folder that several links lead to is searched once, by
    its own place where that lies in the folder, so that links in a circle end and no file is found
    twice.

    Args:
        root: The folder.
        depth: Levels of folders below it that are searched.
    """

    def __init__(self, root: Path, depth: int) -> None:
        self._root = root
        self._depth = depth
        self._seen: set[tuple[int, int]] = set()
        self._deeper: list[Path] = []
        self._refused: list[Path] = []

    def files(self) -> Iterator[Path]:
        """All files, in no order.

        Raises:
            OSError: If the folder itself cannot be read; of those below it :meth:`locked` and
                :meth:`notes` tell.
        """
        links: list[tuple[Path, int]] = []
        self._is_new(self._root)
        with os.scandir(self._root):
            pass  # raises what the system says of the root
        yield from self._below(self._root, self._depth, links)
        for folder, depth in links:  # which grows while it is read
            if self._is_new(folder):
                yield from self._below(folder, depth, links)

    def locked(self) -> list[Path]:
        """The folders that could not be read and may hold cases, sorted."""
        return sorted(folder for folder in self._refused if folder.name not in _OF_SYSTEMS)

    def notes(self) -> list[str]:
        """Sentences on folders that were left out."""
        refused = sorted(folder for folder in self._refused if folder.name in _OF_SYSTEMS)
        notes = [f"{folder} cannot be read and was left out." for folder in refused]
        if self._deeper:
            deeper = min(self._deeper)
            notes.append(f"Folders were searched {self._depth} levels deep, without {deeper}.")
        return notes

    def _below(self, folder: Path, depth: int, links: list[tuple[Path, int]]) -> Iterator[Path]:
        """The files of a folder, and of those in it; links to folders are kept for later."""
        try:
            with os.scandir(folder) as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError:
            self._refused.append(folder)
            return
        for item in items:
            path = Path(item.path)
            if item.name.startswith(".") or item.name in _LEFT_OUT:
                continue
            if not _is_folder(item):  # links that lead nowhere, too: reading them says so
                yield path
            elif not depth:
                self._deeper.append(path)
            elif item.is_symlink():
                links.append((path, depth - 1))
            elif self._is_new(path):
                yield from self._below(path, depth - 1, links)

    def _is_new(self, folder: Path) -> bool:
        try:
            stat = folder.stat()
        except OSError:
            return True  # reading it says why
        place = (stat.st_dev, stat.st_ino)
        if place in self._seen:
            return False
        self._seen.add(place)
        return True


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False
