"""Findings of a verification for people and for programs."""

import json
from collections.abc import Sequence
from pathlib import Path

from cggm_seg.data import Finding
from cggm_seg.verification.cohort import Verification

_COLUMNS = ("", "code", "case", "file")


def table(findings: Sequence[Finding], data: Path) -> str:
    """Four columns, and below each finding what is wrong and what to do; empty without findings.

    Args:
        findings: In their order.
        data: Folder that files are shown relative to.
    """
    if not findings:
        return ""
    rows = [(_severity(f), f.code.value, f.case, _path(f, data)) for f in findings]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    lines = [_aligned(_COLUMNS, widths)]
    for row, finding in zip(rows, findings, strict=True):
        lines += [_aligned(row, widths), f"    {finding.what}", f"    {finding.fix}"]
    return "\n".join(lines) + "\n\n"


def summary(verification: Verification) -> str:
    """One or two sentences on what was read and found."""
    errors = sum(finding.is_error for finding in verification.findings)
    warnings = len(verification.findings) - errors
    counts = [_count(verification.cases, "case"), _count(verification.files, "file")]
    if verification.unchanged:
        counts.append(f"{verification.unchanged} of them verified before")
    found = [_count(errors, "error"), *([_count(warnings, "warning")] if warnings else [])]
    return f"{', '.join(counts)}: {' and '.join(found)}\nmanifest {verification.manifest}"


def to_json(verification: Verification, data: Path) -> str:
    """All of it, indented; files relative to the data folder."""
    findings = [
        {
            "code": finding.code.value,
            "severity": _severity(finding),
            "case": finding.case,
            "file": _path(finding, data),
            "what": finding.what,
            "fix": finding.fix,
        }
        for finding in verification.findings
    ]
    record = {
        "data": str(data),
        "manifest": str(verification.manifest),
        "cases": verification.cases,
        "files": verification.files,
        "unchanged": verification.unchanged,
        "findings": findings,
    }
    return json.dumps(record, indent=2) + "\n"


def _severity(finding: Finding) -> str:
    return "error" if finding.is_error else "warning"


def _path(finding: Finding, data: Path) -> str:
    if finding.file is None:
        return ""
    return finding.file.relative_to(data).as_posix()


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
