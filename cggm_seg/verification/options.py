"""Options of ``brats_verify.py``."""

from dataclasses import dataclass, field
from pathlib import Path


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
