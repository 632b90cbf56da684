"""Verification of a cohort: every file of every case, and the cases against each other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from cggm.errors import UserError
from cggm.runs import map_processes
from cggm_seg.data import (
    Case,
    Code,
    FileRecord,
    Finding,
    LabelScheme,
    append_records,
    manifest_file,
    read_manifest,
    survey_cases,
    write_manifest,
)
from cggm_seg.verification.between_cases import cohort_findings
from cggm_seg.verification.case import FORMAT, CaseReport, case_files, verify_case
from cggm_seg.verification.listing import Verification

Records = Mapping[str, FileRecord]
"""Path of a file, relative to the data folder, to what the manifest says of it."""


def verify_data(
    data: Path,
    *,
    output: Path | None = None,
    workers: int = 2,
    fresh: bool = False,
    progress: bool = True,
    labels: LabelScheme | None = None,
) -> Verification:
    """Verifies every case of a data folder and writes its manifest.

    An interrupted verification goes on where it stopped. What was verified before without a finding
    is read again only if its size or modification time or the checks changed. Files are compared
    with the content that the manifest records; those of another content, and those that are gone,
    are findings until their lines are deleted from the manifest.

    Args:
        data: Folder of cases, labelled or not.
        output: Folder of the manifest; ``.verified`` in the data folder where not given.
        workers: Processes, each of about 0.3 GB. They import the main module: a script that
            calls this needs ``if __name__ == "__main__"``.
        fresh: Whether to read every file, which finds damage that left size and time as they were.
        progress: Whether to show a bar with the time left, if there is a terminal.
        labels: What label values mean; told by names and contents where not given.

    Raises:
        DataError: If the folder holds no case.
        UserError: If the manifest is damaged or cannot be written.
    """
    survey = survey_cases(data, labels)
    cases, findings = survey.cases, list(survey.findings)
    file = manifest_file(data, output)
    with _writing_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        known = read_manifest(file)
        pending: list[Case] = []
        unchanged: list[Case] = []
        for case in cases:
            (pending if fresh or not _is_unchanged(case, data, known) else unchanged).append(case)
        records = {path: known[path] for case in unchanged for path in _paths(case, data)}
        for report in _reports(pending, data, known, workers, progress):
            records |= {record.path: record for record in report.records}
            findings += report.findings
            append_records(file, _sound(report.records))
        findings += _gone(cases, data, known, findings)
        findings += cohort_findings(list(records.values()), data)
        _update_manifest(file, known, records)
    read = [known[path] for case in pending for path in _paths(case, data) if path in known]
    return Verification(
        data,
        sorted(findings, key=lambda f: (not f.is_error, f.case, str(f.file))),
        cases=len(cases),
        files=sum(len(case_files(case)) for case in cases),
        unchanged=sum(len(case_files(case)) for case in unchanged),
        outdated=sum(not record.has_error and record.format != FORMAT for record in read),
        manifest=file,
        notes=survey.notes,
    )


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"Expected to keep the manifest in {folder}, but got: {error.strerror or error}."
        fix = "Choose a folder that you may write to with --output, or free space."
        raise UserError(what, fix) from error


def _update_manifest(file: Path, known: Records, records: Records) -> None:
    """Replaces the records of sound files and keeps the others, to be read again next time.

    A file that is faulty or gone keeps its old record: the content that was expected of it must not
    be forgotten, nor replaced by that of the damaged file.
    """
    earlier = {path: replace(record, has_error=True) for path, record in known.items()}
    now = {record.path: record for record in _sound(records.values())}
    write_manifest(file, (earlier | now).values())


def _sound(records: Iterable[FileRecord]) -> list[FileRecord]:
    """Without those of files with errors, whose content must not become what is expected."""
    return [record for record in records if not record.has_error]


def _paths(case: Case, data: Path) -> list[str]:
    return [file.relative_to(data).as_posix() for file in case_files(case).values()]


def _is_unchanged(case: Case, data: Path, known: Records) -> bool:
    # A case is read as a whole or not at all, because its files are compared with each other.
    return all(_is_current(known.get(path), data / path) for path in _paths(case, data))


def _is_current(record: FileRecord | None, file: Path) -> bool:
    if record is None or record.has_error or record.format != FORMAT:
        return False
    try:
        stat = file.stat()
    except OSError:
        return False
    return stat.st_size == record.size and stat.st_mtime_ns == record.mtime_ns


def _reports(
    cases: Sequence[Case], data: Path, known: Records, workers: int, progress: bool
) -> Iterator[CaseReport]:
    recorded = {data / path: record.sha256 for path, record in known.items()}
    verify = partial(verify_case, data=data, recorded=recorded)
    shown = None if progress else True
    with tqdm(total=len(cases), desc="Verifying", unit="case", disable=shown) as bar:
        for report in map_processes(verify, cases, workers):
            yield report
            bar.update()


def _gone(
    cases: Iterable[Case], data: Path, known: Records, findings: Sequence[Finding]
) -> Iterator[Finding]:
    """Files that the manifest records and that are not there, unless they are listed already."""
    listed = {data / path for case in cases for path in _paths(case, data)}
    listed |= {finding.file for finding in findings if finding.file}
    for path, record in known.items():
        if data / path not in listed:
            what = "Expected this file, which the manifest records, but it is gone."
            fix = "Copy it again, or delete its line from the manifest if it is not wanted."
            yield Finding(Code.MISSING, record.case, data / path, what, fix)
