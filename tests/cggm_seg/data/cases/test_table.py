import pytest

from cggm.errors import DataError
from cggm_seg.data.cases import find_input, read_table
from tests.cggm_seg.nifti import case_file, write_case

TINY = (10, 9, 8)


@pytest.fixture
def data(tmp_path):
    write_case(tmp_path / "data", "a", shape=TINY)
    write_case(tmp_path / "data", "b", shape=TINY, naming="2023")
    return tmp_path / "data"


def table(folder, text, encoding="utf-8"):
    file = folder / "cases.csv"
    file.write_bytes(text.encode(encoding))
    return file


def test_paths_are_relative_to_the_table_or_absolute_and_cells_may_be_empty(data, tmp_path):
    t1ce = case_file(data, "a", "t1ce")
    text = (
        f"t1ce,case,flair,t2\n\n{t1ce},second,data/a/a_flair.nii.gz,\n,first,, data/a/a_t2.nii.gz\n"
    )
    (first, second), errors = read_table(table(tmp_path, text))
    assert errors == []
    assert (first.id, first.images, first.label) == (
        "first",
        {"t2": case_file(data, "a", "t2")},
        None,
    )
    assert (second.id, list(second.images)) == ("second", ["flair", "t1ce"])
    assert second.images["t1ce"] == t1ce
    assert second.images["flair"].samefile(case_file(data, "a", "flair"))


def test_names_of_2023_decide_the_label_values_and_others_are_2021(data, tmp_path):
    (tmp_path / "scan.nii").touch()
    text = "case,t1,t2\na,data/a/a_t1.nii.gz,\nb,scan.nii,data/b/b-t2w.nii.gz\nc,scan.nii,\n"
    cases, _ = read_table(table(tmp_path, text))
    assert [case.labels.name for case in cases] == ["brats2021", "brats2023", "brats2021"]


def test_a_table_of_a_spreadsheet_is_read(data, tmp_path):
    text = '\ufeffcase,flair\r\n"a","data/a/a_flair.nii.gz"\r\n,\r\n'
    [case], errors = find_input(table(tmp_path, text))
    assert (case.id, errors) == ("a", [])


ROWS = {
    "x,nowhere.nii.gz,": "x, {table}: line 2, column flair: expected an image, but there is no "
    "file {folder}/nowhere.nii.gz. Correct the cell.",
    "x,,data/a": "line 2, column t1: expected an image, but there is no file {folder}/data/a.",
    "x,,": "x, {table}: line 2: expected at least one image, but all cells are empty.",
    ",data/a/a_t1.nii.gz,": "line 2, column case: expected an identifier that can name a file, "
    "but got ''.",
    "../x,data/a/a_t1.nii.gz,": "but got '../x'.",
    ".x,data/a/a_t1.nii.gz,": "but got '.x'.",
    "x,data/a/a_t1.nii.gz": "x, {table}: line 2: expected 3 cells, but found 2.",
    "x,data/a/a_t1.nii.gz,,": "x, {table}: line 2: expected 3 cells, but found 4.",
    "x,data/a/a_t1.nii.gz,data/../data/a/a_t1.nii.gz": "line 2, column t1: expected one file for "
    "each image, but {folder}/data/../data/a/a_t1.nii.gz is in column flair as well.",
    "good,data/a/a_t1.nii.gz,": "good, {table}: line 3, column case: expected every case once, but "
    "line 2 has it as well.",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_line_is_named_and_the_others_survive(row, data, tmp_path):
    file = table(tmp_path, f"case,flair,t1\n{row}\ngood,data/a/a_flair.nii.gz,\n")
    cases, [error] = read_table(file)
    assert [case.id for case in cases] == ["good"]
    assert ROWS[row].format(table=file, folder=tmp_path) in str(error)


TABLES = {
    "": "Expected a line of column names and one for each case, but found 0.",
    "case,flair\n": "but found 1.",
    "case,t1gd\na,b\n": "Line 1: expected the columns case, flair, t1ce, t1, t2, but column 't1gd' "
    "is unknown.",
    "case,FLAIR\na,b\n": "column 'FLAIR' is unknown",
    "case;flair\na;b\n": "column 'case;flair' is unknown",
    "case,t1,t1\na,b,c\n": "column 't1' is there twice",
    "\nflair,t1\na,b\n": "Line 2: expected the columns case, flair, t1ce, t1, t2, but found only "
    "flair, t1.",
    "case\na\n": "but found only case.",
    'case,flair\na,"b\n': "Expected a CSV table in UTF-8, but got: unexpected end of data.",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_bad_table_is_an_error(text, tmp_path):
    file = table(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_table(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert TABLES[text] in str(caught.value)


def test_a_table_that_is_no_text_or_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="Expected a CSV table in UTF-8"):
        read_table(table(tmp_path, "case,flair\nä,b\n", "latin-1"))
    with pytest.raises(DataError, match=r"nowhere\.csv: Expected a table .* \(No such file"):
        read_table(tmp_path / "nowhere.csv")


def test_the_folder_of_one_case_and_a_folder_of_cases_are_taken(data):
    assert [case.id for case in find_input(data)[0]] == ["a", "b"]
    case_file(data, "a", "flair").unlink()
    [case], errors = find_input(data / "a")
    assert (case.id, list(case.images), errors) == ("a", ["t1ce", "t1", "t2"], [])
