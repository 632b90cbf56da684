"""Verify BraTS data: every file of every case, once and to its end.

python pipelines/brats_verify.py --data /brats2021
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cggm.runs import parse_options, run


@dataclass(frozen=True)
class VerifyOptions:
    """Verify BraTS data.

    Args:
        data: Folder of cases, labelled or not.
        json: JSON file for the findings.
        output: Folder of the manifest, the hidden folder .verified of the data where not given.
        workers: Processes, each of about 0.3 GB.
        fresh: Whether to read files again that were verified before and look unchanged.
    """

    data: Path = field(metadata={"metavar": "DIR"})
    json: Path | None = field(default=None, metadata={"metavar": "FILE"})
    output: Path | None = field(default=None, metadata={"metavar": "DIR"})
    workers: int = 2
    fresh: bool = False


def main(argv: Sequence[str]) -> int:
    """Parse, assemble, run."""
    options = parse_options(VerifyOptions, __doc__, argv)
    from cggm.runs import write_atomically
    from cggm_seg.verification import verify_data

    verification = verify_data(
        options.data, output=options.output, workers=options.workers, fresh=options.fresh
    )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, verification.to_json().encode())
    print(verification.table(), end="")
    print(verification.summary())
    return 2 if verification.has_errors else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
