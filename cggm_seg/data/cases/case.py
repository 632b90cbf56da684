"""Case: the files of one examination, and the patient who was examined."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help needs the names of modalities, and no NumPy
    from cggm_seg.data.labels import LabelScheme

MODALITIES = ("flair", "t1ce", "t1", "t2")
"""The modalities of BraTS, in the order of the network's channels."""

PARTS = (*MODALITIES, "seg")
"""The modalities, and the label map."""

# How identifiers end where a patient was examined several times: _week-012-1, ses-01, _Timepoint_2,
# _FU001d; what follows such a word belongs to the time point. Or a date, _1997.06.08.
_WORDS = (
    "ses|session|time|timepoint|tp|visit|week|month|day|scan|exam|baseline|followup|fu|"
    "pre|post|preop|postop"
)
_DATE = r"(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d(?:[-_]\d{1,2})?|[0-3]\d[-.][01]\d[-.](?:19|20)\d\d"
_WHEN = rf"(?:{_WORDS})(?![a-z])[-_ ]?\w*(?:[-_.]\d+)*|{_DATE}"
# Before a number these say where somebody was examined, or to what a case belongs, and not who.
_NOBODY = (
    "(?:site|cent(?:er|re)|hospital|institution|scanner|cohort|fold|batch|group|set|train|val|test)"
)
_TIME_POINTS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?P<patient>.+?)[-_. ](?:{_WHEN})",
        # Visit1_P001, postop_12
        rf"(?:(?:{_WORDS})[-_]?\d{{1,3}}|{_DATE})[-_](?P<patient>(?=.*[a-z]).*\d.*)",
        r"(?:baseline|followup|pre|post|preop|postop)[-_](?P<patient>.*\d.*)",
        r"(?P<patient>.+)[-_]t\d{1,2}",  # _T0, before or after treatment
        r"(?P<patient>.*\d)[-_](?:[vdmwys]\d{1,4}|(?:19|20)\d\d)",  # P1_v2, P1_d30, P1_2019
        r"(?P<patient>.*\d{2})[-_]?[a-e]",  # GBM_07_a, 07B
        # 02002-000, 0003_1, P07-2: a number after that of the patient, which is no year
        rf"(?P<patient>(?!(?:.*[-_. ])?{_NOBODY}[-_. ]?\d+[-_]\d+$)(?:.*[-_. ])?"
        r"(?:p|pt|pat|patient|sub|subj|subject|case)?(?!(?:19|20)\d\d[-_])\d+)[-_]\d{1,3}",
    )
)


@dataclass(frozen=True)
class Case:
    """The files of one examination.

    Attributes:
        id: Identifier, the part that the file names share.
        images: Modality to file, in the order of ``MODALITIES``.
        label: The segmentation, or ``None``.
        labels: What the values of label maps mean, of this one and of those that are written.
        patient: Who was examined.
    """

    id: str
    images: Mapping[str, Path]
    label: Path | None
    labels: "LabelScheme"
    patient: str = ""

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", patient_of(self.id))


def patient_of(case_id: str) -> str:
    """The patient of a case, by its identifier: what is left without the time point.

    ``BraTS-GLI-02002-001`` is one of ``BraTS-GLI-02002``, ``sub-07_ses-02`` of ``sub-07``,
    ``Patient-007_week-012-1`` of ``Patient-007``, ``TCGA-02-0003_1997.06.08`` of ``TCGA-02-0003``,
    ``RHUH-0001_2`` of ``RHUH-0001``. Other identifiers, such as ``BraTS2021_00003``, are patients.
    A short number counts as a time point only after another number, so that ``Training_001``
    remains; where numbers are otherwise meant, a table has to say who is who.
    """
    for form in _TIME_POINTS:
        if match := form.fullmatch(case_id):
            return match["patient"]
    return case_id


def is_time_point(name: str) -> bool:
    """Whether a name says when somebody was examined, but not who."""
    return bool(re.fullmatch(_WHEN, name, re.IGNORECASE))
