"""Files of CMU's course, converted, are read as the course's own."""

import pytest

from multitask.course import read_course_file
from multitask.tasks import TASKS
from tools.convert_cmu import main


def test_a_converted_file_reads_as_the_courses(tmp_path):
    source, target = tmp_path / "sst-train.txt", tmp_path / "ids-sst-train.csv"
    source.write_text('3 ||| A "good" film , really .\n0 ||| "a || bad ||| film "\n', "utf-8")
    main([str(source), str(target)])
    assert [(e.id, e.texts, e.label) for e in read_course_file(target, TASKS["sst"])] == [
        ("0", ('A "good" film , really .',), 3.0), ("1", ('"a || bad ||| film "',), 0.0)]


def test_a_line_of_another_form_is_refused_in_a_sentence(tmp_path, capsys):
    source, target = tmp_path / "sst-train.txt", tmp_path / "ids-sst-train.csv"
    source.write_text("3 ||| good\n3 | bad\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main([str(source), str(target)])
    assert stop.value.code == 2 and not target.exists()
    assert "line 2 is not \"label ||| sentence\": '3 | bad'" in capsys.readouterr().err
