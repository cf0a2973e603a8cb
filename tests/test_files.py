"""Files in which stages meet: written whole or not at all, and carrying what made them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from semantoks.code_version import PACKAGE, _closure, code_version
from semantoks.errors import UserError, run_command
from semantoks.files import (
    provenance,
    read_json,
    read_metadata,
    read_number_table,
    read_table,
    read_text_table,
    replacing,
    sha256,
    write_json,
    write_table,
)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleaned_up_by_the_next_one(tmp_path):
    path = tmp_path / "a.txt"
    killed = f"""
import os, signal
from semantoks.files import replacing
with replacing({str(path)!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", killed], env=environment).returncode == -signal.SIGKILL
    assert [left.name.startswith(".a.txt.") for left in tmp_path.iterdir()] == [True]
    with replacing(path) as temporary:
        temporary.write_text("whole")
        with replacing(path) as other:  # a process that still writes is left alone
            other.write_text("other")
    assert [left.name for left in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "whole"


def test_tables_come_back_with_their_metadata_and_the_same_bytes(tmp_path):
    source = tmp_path / "input.txt"
    source.write_text("x")
    table = pd.DataFrame({"participant_id": ["007", None], "features": [np.arange(3.0), None]})
    for name in ("a", "b"):
        write_table(tmp_path / name, table, provenance("embed", {"crops": 8}, [source], encoder="small"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_table(tmp_path / "a")["participant_id"].tolist() == ["007", None]
    metadata = read_metadata(tmp_path / "a")
    assert metadata["inputs"] == {str(source): sha256(source)}
    assert metadata["settings"] == {"crops": 8}
    assert metadata["encoder"] == "small"
    assert metadata["versions"]["semantoks"]


def test_ids_stay_text_and_missing_is_null(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text("\ufeffparticipant_id\tage\n001\tn/a\nNA\t7.50\n")
    table = read_text_table(path)
    assert table["participant_id"].tolist() == ["001", "NA"]
    assert table["age"].isna().tolist() == [True, False]
    assert table["age"].iloc[1] == "7.50"


def test_a_separator_at_the_end_of_the_lines_moves_no_column(tmp_path):
    path = tmp_path / "confounds.tsv"
    path.write_text("a\tb\n1\t2\t\n3\t4\t\n")
    assert read_number_table(path).to_dict("list") == {"a": [1, 3], "b": [2, 4]}


def test_a_column_of_text_is_no_number_but_one_with_a_typing_error_is_told(tmp_path):
    path = tmp_path / "confounds.tsv"
    path.write_text("a\tb\n1\tx\n2\ty\n3\t4\n")
    assert list(read_number_table(path)) == ["a"]
    path.write_text("a\tb\n1\t2\n1,5\t3\nn/a\t4\n7\t5\n")
    with pytest.raises(UserError, match=r"column 'a': expected numbers, found '1,5' in row 2 \(1 such rows\)"):
        read_number_table(path)


BAD = {
    "a field too many": (read_text_table, "a\tb\n1\t2\t3\n", "expected as many fields in a row as the header has"),
    "no such table": (read_table, None, "expected a Parquet file, found none"),
    "no parquet": (read_table, "text", "expected a Parquet file, found something else"),
    "no such text table": (read_text_table, None, r"expected a table \(TSV or CSV\), found no file"),
    "empty text table": (read_text_table, "", "expected a TSV table, found"),
    "no such json": (read_json, None, "expected a JSON file, found none"),
    "broken json": (read_json, '{"a": ', "expected JSON, found"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path, case):
    read, content, message = BAD[case]
    path = tmp_path / "given.file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"given.file: {message}"):
        read(path)


def test_missing_columns_are_named(tmp_path):
    write_table(tmp_path / "a.parquet", pd.DataFrame({"x": [1]}), {})
    with pytest.raises(UserError, match=r"expected the columns \['y'\], found \['x'\]"):
        read_table(tmp_path / "a.parquet", ["x", "y"])


def test_a_user_error_is_one_message_and_exit_code_2(capsys):
    def main(argv):
        raise UserError("config.yaml: unknown key 'trr'; did you mean 'tr'?")

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: config.yaml: unknown key 'trr'; did you mean 'tr'?\n"


DISK = {
    "full": (errno.ENOSPC, "no space is left"),
    "quota": (errno.EDQUOT, "your quota"),
    "read-only": (errno.EROFS, "read-only"),
    "permission": (errno.EACCES, "permission is denied"),
}


@pytest.mark.parametrize("case", DISK)
def test_a_disk_that_takes_no_file_is_one_message(capsys, case):
    number, words = DISK[case]

    def main(argv):
        raise OSError(number, os.strerror(number), "results/tables/demo.tsv")

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: results/tables/demo.tsv: ")
    assert words in message


def test_any_other_error_of_the_system_is_a_traceback():
    def main(argv):
        raise OSError(errno.EPIPE, "Broken pipe")

    with pytest.raises(OSError, match="Broken pipe"):
        run_command(main)


def test_json_is_stable(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [2]})
    write_json(tmp_path / "b", {"a": [2], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_code_of_a_stage_is_its_module_and_what_it_imports():
    modules = {path.relative_to(PACKAGE).as_posix() for path in _closure(PACKAGE / "shards.py")}
    assert {"shards.py", "signals.py", "files.py", "errors.py"} <= modules
    assert "pretrain.py" not in modules
    assert "parcellate.py" not in modules
    assert code_version("shards") != code_version("index")
    assert "model/encoder.py" in {path.relative_to(PACKAGE).as_posix() for path in _closure(PACKAGE / "embed.py")}


STAGES = [
    "index",
    "fmriprep",
    "atlas",
    "networks",
    "parcellate",
    "qc",
    "shards",
    "pretrain",
    "embed",
    "probe",
    "splits",
]
STAGES += ["import_timeseries", "tables", "figures", "report"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another(stage):
    imported = {path.stem for path in _closure(PACKAGE / f"{stage}.py") if path.parent == PACKAGE}
    assert imported & set(STAGES) == {stage}
