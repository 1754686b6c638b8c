"""Tables as text: quoting, lines inside of values, rows that do not fit, and limits."""

import pytest

from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.errors import DataError


def rows(path, text, limits=DEFAULT_LIMITS):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (given,) = find_inputs([path], limits=limits).readable
    return [raw for block in given.blocks() for raw in block.records(limits)]


def test_values_are_texts_and_what_is_empty_is_absent(tmp_path):
    table = '\ufefftext,file_name,n\r\n"a, ""b""\r\n\r\nc",x.png,007\r\n\r\nplain,,\r\n'
    first, second = rows(tmp_path / "a.csv", table)
    assert first.value == {"text": 'a, "b"\r\n\r\nc', "file_name": "x.png", "n": "007"}
    assert second.value == {"text": "plain"} and second.place == f"{tmp_path / 'a.csv'}: row 2"
    assert rows(tmp_path / "b.tsv", "text\tn\na, b\t1\n")[0].value == {"text": "a, b", "n": "1"}


def test_rows_that_do_not_fit_are_bad_records(tmp_path):
    first, second, third = rows(tmp_path / "a.csv", "text,n\na,1\nb\nc,3\n")
    assert (first.value["text"], third.value["text"]) == ("a", "c")
    assert second.problem == "the row has 1 value, and the table 2 columns"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,text\na,b\n", "does not name the columns, each once"),
        (",\na,b\n", "does not name the columns"),
        ("", "does not name the columns"),
        ('text\n"never closed', "unexpected end of data"),
        (b"text\n\xff\n", "not valid UTF-8"),
    ],
)
def test_broken_tables_are_errors_of_the_file(text, message, tmp_path):
    with pytest.raises(DataError, match=f"cannot be read to its end: .*{message}"):
        rows(tmp_path / "a.csv", text)


@pytest.mark.parametrize("text", ["text\n" + "x" * 3000, 'text\n"' + "x\n" * 1500])
def test_endless_rows_are_not_held(text, tmp_path):
    with pytest.raises(DataError, match=r"more than 1,000 (bytes|characters)(?s:.*)--max-record"):
        rows(tmp_path / "a.csv", text, ReadLimits(record_bytes=1000))
