"""Options of a verification, and its outcome, listed for people and for programs."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from cggm.display import aligned
from cggm_seg.data import Finding, manifest_file

_COLUMNS = ("", "code", "case", "file")


@dataclass(frozen=True)
class VerifyOptions:
    """Verify BraTS data.

    Args:
        data: Folder of cases, labelled or not.
        json: JSON file for the findings.
        output: Folder of the manifest, the hidden folder .verified of the data where not given.
        workers: Processes, each of about 0.3 GB.
        labels: Label values: brats2021, brats2023, brats-ped, brats2013, brats2024, or pairs such
            as 1=NCR,2=ED,4=ET; told by names and contents where not given.
        fresh: Whether to read files again that were verified before and look unchanged.
    """

    data: Path = field(metadata={"metavar": "DIR"})
    json: Path | None = field(default=None, metadata={"metavar": "FILE"})
    output: Path | None = field(default=None, metadata={"metavar": "DIR"})
    labels: str | None = field(default=None, metadata={"metavar": "SCHEME"})
    workers: int = 2
    fresh: bool = False


@dataclass(frozen=True)
class Verification:
    """What a verification came to.

    Attributes:
        data: The data folder, which files are shown relative to.
        findings: Errors first, then by case.
        cases: Number of cases.
        files: Number of files.
        unchanged: How many of the files were not read, because size, time and version of the
            checks are those of an earlier verification without finding.
        outdated: How many of the files were read because an earlier verification made other checks.
        manifest: Where the records are.
        notes: Sentences on files that were taken for what their names nearly say.
    """

    data: Path
    findings: list[Finding]
    cases: int
    files: int
    unchanged: int
    outdated: int
    manifest: Path
    notes: list[str]

    @property
    def has_errors(self) -> bool:
        """Whether there is more than warnings."""
        return any(finding.is_error for finding in self.findings)

    def table(self) -> str:
        """Four columns, and below each finding what is wrong and what to do; empty without any."""
        if not self.findings:
            return ""
        rows = [(_severity(f), f.code.value, f.case, self._path(f)) for f in self.findings]
        head, *found = aligned([_COLUMNS, *rows], texts=len(_COLUMNS))
        lines = [head]
        for line, finding in zip(found, self.findings, strict=True):
            lines += [line, f"    {finding.what}", f"    {finding.fix}"]
        return "\n".join(lines) + "\n\n"

    def summary(self) -> str:
        """What was read and found, where the manifest is, and what was taken for what."""
        errors = sum(finding.is_error for finding in self.findings)
        warnings = len(self.findings) - errors
        counts = [_count(self.cases, "case"), _count(self.files, "file")]
        if self.unchanged:
            counts.append(f"{self.unchanged} of them verified before")
        found = [_count(errors, "error"), *([_count(warnings, "warning")] if warnings else [])]
        lines = [f"{', '.join(counts)}: {' and '.join(found)}", f"manifest {self.manifest}"]
        if self.manifest != manifest_file(self.data):
            lines.append(f"trainings read it where they are told: --manifest {self.manifest}")
        if self.outdated:
            reason = "read again: the checks have changed since they were verified"
            lines.append(f"{_count(self.outdated, 'file')} {reason}")
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> str:
        """All of it, indented; files relative to the data folder."""
        findings = [
            {
                "code": finding.code.value,
                "severity": _severity(finding),
                "case": finding.case,
                "file": self._path(finding),
                "what": finding.what,
                "fix": finding.fix,
            }
            for finding in self.findings
        ]
        record = {
            "data": str(self.data),
            "manifest": str(self.manifest),
            "cases": self.cases,
            "files": self.files,
            "unchanged": self.unchanged,
            "notes": self.notes,
            "findings": findings,
        }
        return json.dumps(record, indent=2) + "\n"

    def _path(self, finding: Finding) -> str:
        return finding.file.relative_to(self.data).as_posix() if finding.file else ""


def _severity(finding: Finding) -> str:
    return "error" if finding.is_error else "warning"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
