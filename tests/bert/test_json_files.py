"""JSON files are bounded and checked: an error names the file, the field and the value."""

import json

import pytest

from bert import UserError
from bert.json_files import NUMBER, check_type, read_json, read_json_lines

KIND = {"version": int, "seed?": int, "rate": float, "names": list[str], "pair": tuple[int, str],
        "by": dict[int, range(3)], "kind": {"a", "b"}, "free": dict, "nan?": NUMBER,
        "either": dict[str, float] | bool | None}
GOOD = {"version": 2, "rate": 1, "names": ["x"], "pair": [1, "y"], "by": {"7": 2}, "kind": "a",
        "free": {"x": [1]}, "either": None, "more": "is not described"}


def test_a_file_as_described_is_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(GOOD | {"nan": float("nan")}))
    assert read_json(path, KIND)["pair"] == [1, "y"]


@pytest.mark.parametrize(("change", "says"), [
    ({"version": "2"}, "version is '2'; it must be a whole number"),
    ({"version": True}, "version is True; it must be a whole number"),
    ({"version": 2 ** 63}, "version is 9223372036854775808; it must be a whole number"),
    ({"rate": float("inf")}, "rate is inf; it must be a finite number"),
    ({"names": ["x", None]}, r"names\[1\] is None; it must be a text"),
    ({"names": ["\ud800"]}, "must be a text"),
    ({"pair": [1]}, r"pair is \[1\]; it must be a list of 2"),
    ({"by": {"7": 3}}, "by.7 is 3; it must be a whole number from 0 to 2"),
    ({"by": {"x": 1}}, "by has the key 'x'; it must be a whole number"),
    ({"kind": "c"}, "kind is 'c'; it must be one of a, b"),
    ({"either": {"x": "y"}}, "either.x is 'y'; it must be a finite number"),
    ({"either": 3}, "either is 3; it must be an object {…} or true or false or null")])
def test_a_field_of_another_type_is_named_with_its_value(change, says):
    with pytest.raises(UserError, match=f"^f.json: .*{says}"):
        check_type(GOOD | change, KIND, "f.json")


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match="f.json lacks rate"):
        check_type({name: value for name, value in GOOD.items() if name != "rate"}, KIND, "f.json")


@pytest.mark.parametrize("text", ["[" * 100000, '{"a": ' * 60 + "1" + "}" * 60])
def test_deep_nesting_is_named(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match="file.json nests objects and lists more than 50 deep"):
        read_json(tmp_path / "file.json")


def test_a_file_that_is_too_large_is_refused_before_it_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("bert.json_files.MAX_BYTES", 10)
    (tmp_path / "file.json").write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match="has more than 10 bytes"):
        read_json(tmp_path / "file.json")


def test_a_line_that_was_cut_short_is_left_out_and_another_damaged_one_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in read_json_lines(path, {"step": int})] == [1, 2]
    path.write_text('{"step": 1}\n{"step": 2}')
    assert len(read_json_lines(path, {"step": int})) == 2
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match="log.jsonl line 2 is not a JSON file"):
        read_json_lines(path, {"step": int})


def test_a_message_is_one_short_line():
    message = str(UserError(f"{'x' * 70000} holds\n\x1b[2J{'word ' * 20000}; mend it"))
    assert len(message) < 2000 and message.isprintable()
    assert message.startswith("xxx") and message.endswith("mend it") and "\\x1b" in message
