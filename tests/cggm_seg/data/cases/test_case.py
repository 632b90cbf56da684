import pytest

from cggm_seg.data.cases import patient_of

PATIENTS = {
    "BraTS-GLI-02002-000": "BraTS-GLI-02002",
    "BraTS-GLI-02002-101": "BraTS-GLI-02002",
    "Patient-007_week-012-1": "Patient-007",
    "Patient-007_week-000": "Patient-007",
    "PatientID_0003_Timepoint_1": "PatientID_0003",
    "sub-07_ses-02": "sub-07",
    "sub07_session1": "sub07",
    "TCGA-02-0003_1997.06.08": "TCGA-02-0003",
    "TCGA-02-0003_19970608": "TCGA-02-0003",
    "UPENN-GBM-00001_21": "UPENN-GBM-00001",
    "UCSF-PDGM-0429_FU001d": "UCSF-PDGM-0429",
    "RHUH-0001_2": "RHUH-0001",
    "P001_2": "P001",
    "glioma12_baseline": "glioma12",
    "glioma12_followup2": "glioma12",
    "anna_T0": "anna",
    "anna_postop": "anna",
    "pat12_v2": "pat12",
    "P1_d30": "P1",
    "P1-m6": "P1",
    "GBM_07_b": "GBM_07",
    "07B": "07",
    "P07_2019": "P07",
    "P07_20200131_2": "P07",
    "P07_31-01-2020": "P07",
    "Visit1_P001": "P001",
    "ses-01_sub-03": "sub-03",
    "Preop_001": "001",
    "postop_001": "001",
}
ALONE = [
    "BraTS2021_00003",
    "BraTS20_Training_001",
    "BraTS2021_003",
    "DEMO_00001",
    "MSD-BRATS_484",
    "case3",
    "a",
    "scan_0001",
    "site2_2019_14",
    "Timothy_7",
    "hospital-1-001",
    "center_2_15",
    "train_1_1",
    "BraTS19_CBICA_AAB_1",
    "HGG_0014",
    "0-0-x",
]


@pytest.mark.parametrize("case_id", PATIENTS)
def test_patient_is_what_is_left_without_the_time_point(case_id):
    assert patient_of(case_id) == PATIENTS[case_id]


@pytest.mark.parametrize("case_id", ALONE)
def test_other_identifiers_are_patients(case_id):
    assert patient_of(case_id) == case_id
