"""Build of the slice cache: cases that are missing or stale are read and cached by processes."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from cggm.errors import DataError, UserError
from cggm.runs import alone, map_processes, sweep_drafts
from cggm_seg.data.cache.entries import (
    FORMAT,
    entries,
    is_current,
    is_superseded,
    key_of,
    refresh,
)
from cggm_seg.data.cache.reading import SliceCache
from cggm_seg.data.cases import Case

logger = logging.getLogger(__name__)


def build_cache(
    cases: Sequence[Case],
    folder: Path,
    *,
    recorded: Mapping[Path, str] | None = None,
    workers: int = 2,
    strict: bool = False,
    progress: bool = True,
) -> tuple[SliceCache, list[DataError]]:
    """Caches the cases that are missing or stale, and opens the cache.

    A cached case is stale if one of its files or the format changed. Files of the same size and
    modification time count as unchanged, others are compared by content. Every case is one file,
    named after its content, that appears complete or not at all: an interrupted build goes on
    where it stopped, several processes may build at once, and cohorts with equal names of cases may
    share a folder. What was made from an earlier content of the same files is removed, unless
    another process uses the folder, see ``cggm.runs.share``.

    Args:
        cases: Labelled cases, each with at least one image.
        folder: Where the files lie, about 30 MB for a BraTS case; made if missing.
        recorded: File to its SHA-256, see :func:`cggm_seg.data.manifest.recorded_digests`; a case
            with a file of another content is bad. Files not recorded are taken as they are.
        workers: Processes, each of about 0.3 GB. They import the main module: a script that
            calls this needs ``if __name__ == "__main__"``.
        strict: Whether the first bad case ends the build.
        progress: Whether to show a bar with the time left, if there is a terminal, and to say
            why cases are cached again.

    Returns:
        The cache of all good cases, and one error for each bad one.

    Raises:
        DataError: If no case is left, or with ``strict`` if one is bad.
        UserError: If a file cannot be written, for example because no space is left.
        ValueError: If two cases share an identifier, or a case has no label map.
    """
    _check_cases(cases)
    _prepare(folder)
    recorded = recorded or {}
    files, pending = _found(cases, folder, recorded)
    if progress:
        _explain(pending, folder)
    attempt = partial(_attempt, folder=folder, recorded=recorded, strict=strict)
    bar = tqdm(total=len(pending), desc="Caching", unit="case", disable=None if progress else True)
    errors: list[DataError] = []
    with bar:
        for case_id, outcome in map_processes(attempt, pending, workers):
            if isinstance(outcome, DataError):
                errors.append(outcome)
            else:
                files[case_id] = outcome
            bar.update()
    errors.sort(key=lambda error: error.case)
    if not files:
        first = f" The first: {errors[0]}" if errors else ""
        what = f"Expected at least one good case, but found none among {len(cases)}.{first}"
        raise DataError(str(folder), None, what, "Mend the cases.")
    _remove_superseded(cases, folder, set(files.values()))
    return SliceCache({case.id: files[case.id] for case in cases if case.id in files}), errors


def _found(
    cases: Sequence[Case], folder: Path, recorded: Mapping[Path, str]
) -> tuple[dict[str, Path], list[Case]]:
    """The cases that are cached, by identifier, and those that are to be."""
    known, files, pending = entries(folder), {}, []
    for case in cases:
        for file in known.get(case.id, []):
            if is_current(case, file, recorded):
                files[case.id] = file
                break
        else:
            pending.append(case)
    return files, pending


def _remove_superseded(cases: Sequence[Case], folder: Path, used: Collection[Path]) -> None:
    known = entries(folder)
    old = [
        file
        for case in cases
        for file in known.get(case.id, [])
        if file not in used and is_superseded(case, file)
    ]
    if not old:
        return
    with alone(folder) as nobody_reads:
        for file in old if nobody_reads else []:
            with suppress(OSError):  # a folder of others, or gone meanwhile
                file.unlink()


def _check_cases(cases: Sequence[Case]) -> None:
    if len({case.id for case in cases}) < len(cases):
        raise ValueError("Expected every case once, but some identifiers occur several times.")
    for case in cases:
        if case.label is None:
            raise ValueError(f"Expected labelled cases, but {case.id} has no label map.")


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_drafts(folder)
    except OSError as error:
        what = f"Expected a folder for the cache, but {folder} gives: {error.strerror}."
        raise UserError(what, "Choose another cache folder.") from error


def _explain(pending: Sequence[Case], folder: Path) -> None:
    known = entries(folder)
    keys = [[key_of(file) for file in known.get(case.id, [])] for case in pending]
    older = sum(any(key and key.get("format") != FORMAT for key in of_case) for of_case in keys)
    if older:
        cases = "1 case was" if older == 1 else f"{older} cases were"
        logger.warning("%s: %s cached by another version and will be cached again.", folder, cases)


def _attempt(
    case: Case, folder: Path, recorded: Mapping[Path, str], strict: bool
) -> tuple[str, Path | DataError]:
    try:
        return case.id, refresh(case, folder, recorded)
    except DataError as error:
        if strict:
            raise
        return case.id, error
