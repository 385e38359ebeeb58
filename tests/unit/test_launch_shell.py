"""Text in scripts stays text: bash itself says what arrives."""

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlcalc.errors import DlcalcError
from dlcalc.launch.job import Beside, Variable
from dlcalc.launch.shell import checked_name, comment, default, literal, word
from tests.launch_jobs import job
from tests.launch_parts import HOSTILE, texts


def arrived(script, *arguments, **environment):
    """What a script prints, split at zero bytes."""
    ran = subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    assert ran.stderr == b""
    return [part.decode() for part in ran.stdout.split(b"\0")[:-1]]


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, min_size=1, max_size=30))
@example(list(HOSTILE))
def test_literals_arrive_byte_for_byte(words):
    assert arrived(f"printf '%s\\0' {' '.join(map(literal, words))}") == words


@settings(max_examples=60, deadline=None)
@given(texts)
def test_a_literal_is_one_line_and_starts_no_expansion_elsewhere(text):
    assert len(literal(text).splitlines()) == 1
    assert arrived(f"x={literal(text)}; printf '%s\\0' \"$x\"") == [text]


@settings(max_examples=60, deadline=None)
@given(texts, texts.filter(bool))
@example("a } $(id) ' \" \\", "}")
def test_a_default_gives_way_to_the_caller(value, callers):
    script = "set -eu\n" + "\n".join(default("NAME", value)) + "\nprintf '%s\\0' \"$NAME\""
    assert arrived(script) == [value]
    assert arrived(script, NAME=callers) == [callers]


@settings(max_examples=40, deadline=None)
@given(texts)
def test_a_comment_does_nothing(text):
    lines = [*comment(f"it is {text}"), "printf 'ran\\0'"]
    assert arrived("\n".join(lines)) == ["ran"]


def test_words():
    script = f"HERE='/a b'; X='c d'; printf '%s\\0' {word(Beside('e f'))} {word(Variable('X', 'x', suffix='/$g'))}"
    assert arrived(script) == ["/a b/e f", "c d/$g"]


def test_what_no_argument_can_hold():
    with pytest.raises(DlcalcError, match=r"no argument of a program can hold a zero byte"):
        literal("a\0b")
    with pytest.raises(DlcalcError, match=r"is not text \(UTF-8\)"):
        literal("a\udc80")


@pytest.mark.parametrize("text", ["$(rm -rf ~)", "--help", "café 模型 🚀", "a # b", "'"])
def test_names_of_one_line_are_kept(text):
    assert checked_name(job("megatron-lm", dp=8, name=text)) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "--name: a job needs a name"),
        (" ", "--name: a job needs a name"),
        ("a\nb", r"--name 'a\\\\nb': a job's name is one line, without '\\n'"),
        ("a\x1b[2J", r"a job's name is one line, without '\\x1b'"),
        ("a\u2028b", r"a job's name is one line, without '\\u2028'"),
        ("a\udc80", r"a job's name is one line, without '\\udc80'"),
        ("a" * 201, "201 characters; a job's name has at most 200"),
    ],
)
def test_names_that_no_queue_can_show(text, problem):
    with pytest.raises(DlcalcError, match=problem):
        checked_name(job("megatron-lm", dp=8, name=text))
