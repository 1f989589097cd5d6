"""The sanitiser and the units."""

import sys
import unicodedata

import pytest

from kvtrace import units
from kvtrace.text import safe, said_by, token

UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_no_code_point_passes_unsafe():
    for code in range(sys.maxunicode + 1):
        shown = safe(chr(code))
        assert shown
        assert not any(unicodedata.category(char) in UNSAFE for char in shown), hex(code)


def test_plain_text_passes_unchanged():
    assert safe("hello wörld 日本") == "hello wörld 日本"


def test_escape_sequences_and_bidi_become_visible():
    assert safe("\x1b[2J") == "␛[2J"
    assert safe("a\u202eb") == "a⟨202E⟩b"
    assert safe("a\nb\tc") == "a⏎b⇥c"


def test_an_exception_of_many_lines_is_said_on_one():
    error = RuntimeError("no weights:\n\tMissing: a.\n\n\tUnexpected: \x1b[2J")
    assert said_by(error) == "RuntimeError: no weights: Missing: a. Unexpected: ␛[2J"
    assert said_by(KeyError()) == "KeyError"
    assert said_by(ValueError("x" * 50), 20) == "ValueError: " + "x" * 8 + "…"


def test_zalgo_keeps_four_marks_and_a_leading_mark_gets_a_base():
    assert safe("e" + "\u0301" * 40) == "e" + "\u0301" * 4
    assert safe("\u0301") == "◌\u0301"


def test_length_is_capped_and_says_so():
    assert safe("x" * 300, limit=10) == "x" * 10 + "…"


def test_a_tokens_leading_space_is_seen():
    assert token(" the") == "·the"
    assert token("") == "∅"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.weight(0.45214), "0.4521"),
        (units.weight(0.000031), "3.1e-05"),
        (units.weight(0.0), "0"),
        (units.weight(float("nan")), "nan"),
        (units.counted(0, "step"), "0 steps"),
        (units.counted(1, "step"), "1 step"),
        (units.flops(999), "999 FLOP"),
        (units.flops(250_000_000), "250 MFLOP"),
        (units.flops(13_900_000_000), "13.9 GFLOP"),
        (units.flops(999_999), "1.00 MFLOP"),
        (units.byte_size(144 * 1024), "144 KiB"),
        (units.byte_size(1023), "1023 B"),
        (units.duration(900_000), "0.90 ms"),
        (units.duration(12_300_000_000), "12.3 s"),
        (units.ratio(556, 10), "55.6×"),
        (units.ratio(1, 0), "–"),
    ],
)
def test_numbers_read_as_people_write_them(shown, expected):
    assert shown == expected
