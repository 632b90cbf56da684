"""Format number of the checks: raised when they find, or their records say, something else."""

import hashlib
import json
from dataclasses import asdict

from cggm_seg.data.manifest import manifest_file, read_manifest
from cggm_seg.verification.case import FORMAT
from tests.cggm_seg.nifti import case_file, write_volume
from tests.cggm_seg.verifying import stored, verify, write_data

OUTCOMES = {7: "3e85551e345d"}


def outcome(data):
    """Digest of all findings and records of a cohort, without what a file system says of it."""
    verification = verify(data, fresh=True)
    records = [asdict(record) for record in read_manifest(verification.manifest).values()]
    for record in records:
        del record["format"], record["mtime_ns"]
        del record["size"], record["sha256"]  # of a gzip of any version
        record["statistics"] = [x and round(x, 1) + 0.0 for x in record["statistics"]]
    found = [(f.code, f.case, f.file.name, f.what, f.fix) for f in verification.findings]
    text = json.dumps([records, found], sort_keys=True).replace(str(data), "")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_other_outcome_of_a_fixed_cohort_needs_another_format_number(tmp_path):
    data = write_data(tmp_path)
    file = case_file(data, "b", "seg")
    write_volume(file, stored(file)[:, ::-1])  # mirrored, so that alignment has something to find
    assert outcome(data) == OUTCOMES[FORMAT], (
        "The checks of verification find, or record, something else than before: raise FORMAT in "
        "cggm_seg/verification/case.py and note the outcome here."
    )


def test_manifest_of_before_format_numbers_is_read_again_and_keeps_what_is_expected(tmp_path):
    data = write_data(tmp_path)
    verify(data)
    file = manifest_file(data)
    lines = []
    for line in file.read_text().splitlines():
        values = json.loads(line)
        values["looks"], values["suspect"] = values.pop("statistics"), values.pop("has_error")
        values["checks"] = f"{values.pop('format')}abcdef012345"
        lines.append(json.dumps(values))
    file.write_text("\n".join(lines) + "\n")
    image = case_file(data, "c", "t2")
    write_volume(image, stored(image) + (stored(image) > 0))

    verification = verify(data)
    assert (verification.unchanged, verification.outdated) == (0, 15)
    assert verification.summary().endswith(
        "15 files read again: the checks have changed since they were verified"
    )
    assert [(f.code, f.file) for f in verification.findings] == [("changed-file", image)]
    assert (verify(data).unchanged, verify(data).outdated) == (10, 0)
