"""Verify BraTS data: every file of every case, once and to its end.

python pipelines/brats_verify.py --data /brats2021
"""

from collections.abc import Sequence

from cggm.runs import parse_options, run
from cggm_seg.verification import VerifyOptions


def main(argv: Sequence[str]) -> int:
    """Parse, assemble, run."""
    options = parse_options(VerifyOptions, __doc__, argv)
    from cggm.runs import prepare_json, write_atomically
    from cggm_seg.data import label_scheme
    from cggm_seg.verification import verify_data

    if options.json is not None:
        prepare_json(options.json)
    verification = verify_data(
        options.data,
        output=options.output,
        workers=options.workers,
        fresh=options.fresh,
        labels=label_scheme(options.labels),
    )
    if options.json is not None:
        write_atomically(options.json, verification.to_json().encode())
    print(verification.table(), end="")
    print(verification.summary())
    return 2 if verification.has_errors else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
