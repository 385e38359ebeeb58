"""Files to specs: what each mistake says, to the letter, and that no file ends in a traceback."""

import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, model_validator

import dlcalc
from dlcalc.errors import DlcalcError, FieldError, Problem, SpecError, UnknownNameError
from dlcalc.specs import marked_yaml
from dlcalc.specs.base import Fraction, PositiveFloat, Spec, TupleFromList
from dlcalc.specs.load import MAX_FILE_BYTES, config_dir, load_spec, load_yaml, parse_spec, spec_error
from dlcalc.specs.model import ModelSpec


class Link(Spec):
    gb_per_s: PositiveFloat
    lanes: PositiveInt = 1


class Range(Spec):
    start: int
    stop: int

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.stop < self.start:
            raise ValueError(f"stop = {self.stop} must not be below start = {self.start}")
        return self


class Machine(Spec):
    """A field of every kind that files have."""

    name: str = "m"
    n_devices: PositiveInt = 8
    stages: int = 0
    shared: bool = False
    load: Fraction = 0.5
    tokens: PositiveFloat = 1.0
    precision: Literal["bf16", "fp8"] = "bf16"
    zero: Literal[0, 1] = 0
    note: Annotated[str, Field(min_length=8)] = "a note of eight"
    tiles: Annotated[tuple[PositiveInt, ...], TupleFromList, Field(min_length=1)] = (1,)
    link: Link | None = None
    links: dict[Literal["node", "fabric"], Link] = {}
    chain: Annotated[tuple[Link, ...], TupleFromList] = ()
    knob: int | Literal["auto"] | list[int] | Range = 1
    base: str | Link = "none"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write a file whose name in messages is just ``m.yaml``."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes, name: str = "m.yaml") -> Path:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return Path(name)

    return write


def says(path: Path, spec_class: type[Spec] = Machine) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path, spec_class)
    return str(caught.value)


# --- scalars: what people write is what they get


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e12", 1e12),
        ("3e8", 3e8),
        ("1.5e6", 1.5e6),
        ("-2E-3", -0.002),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1", 1),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-.inf", float("-inf")),
        ("~", None),
        ("", None),
        ("True", True),
        ("false", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("=", "="),
        ("1e5x", "1e5x"),
        ("'1e5'", "1e5"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("|\n  12\n", "12\n"),
    ],
)
def test_a_scalar_follows_yaml_1_2(file, text, value):
    found = load_yaml(file(f"key: {text}\n"))[0]["key"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read(file):
    found = load_yaml(file(".nan"))[0]
    assert found != found  # noqa: PLR0124 (the mark of a NaN)


# --- anchors, aliases, merge keys


def test_merge_keys_take_what_the_mapping_does_not_give_itself(file):
    text = """
        a: &a {x: 1, y: 1}
        b: &b {y: 2, z: 2}
        one: {<<: *a, y: 9}
        many: {<<: [*a, *b], w: 9}
        quoted: {"<<": 5}
        item: [<<, *a]
        """
    data, marks = load_yaml(file(text))
    assert data["one"] == {"x": 1, "y": 9}
    assert data["many"] == {"x": 1, "y": 1, "z": 2, "w": 9}
    assert data["quoted"] == {"<<": 5}
    assert data["item"] == ["<<", {"x": 1, "y": 1}]
    assert marks.line_of(("one", "x")) == 2
    assert marks.line_of(("one", "y")) == 4


def test_a_mistake_in_an_alias_points_at_the_anchor(file):
    text = "link: &l\n  gb_per_s: -1\nlinks:\n  node: *l\n"
    assert says(file(text)) == (
        "m.yaml:2: link.gb_per_s: must be greater than 0, not -1\n"
        "m.yaml:2: links.node.gb_per_s: must be greater than 0, not -1"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: *b", "m.yaml:1: syntax: no anchor &b stands before the alias *b"),
        ("a: &a [*a]", "m.yaml:1: syntax: the alias *a stands inside what &a names"),
        ("a: 1\n<<: 5", "m.yaml:2: syntax: << takes the alias of a mapping, or a list of such aliases"),
        ("a: &a {x: 1}\nb: {<<: [*a, 5]}", "m.yaml:2: syntax: << takes the alias of a mapping, or a list of such aliases"),
        ("a: &a {}\nb:\n  <<: *a\n  <<: *a", "m.yaml:4: syntax: << is given twice, first on line 3; give it a list"),
        ("? [1]\n: 2", "m.yaml:1: syntax: a key must be text, not a list or a mapping"),
        ("a: 1\n---\nb: 1", "m.yaml:2: syntax: a second document (---) starts here; a file holds one"),
        ("a: !!python/name:os.system ", "m.yaml:1: syntax: the tag !!python/name:os.system is not supported; write the plain value"),
        ("a: !!set {b}", "m.yaml:1: syntax: the tag !!set is not supported; write the plain value"),
        ("a: b: c", "m.yaml:1: syntax: mapping values are not allowed in this context; is a key indented wrongly, or a text with a colon not quoted?"),
        ("a:\n\tb: 1", "m.yaml:2: syntax: a tab cannot indent YAML; use spaces"),
        ("a: 'b\nc: 1\n", "m.yaml:2: syntax: found unexpected end of stream; is a closing quote missing? (while scanning a quoted scalar that starts on line 1)"),
        ("a: [1,\nb: 2", "m.yaml:2: syntax: did not find expected ',' or ']' (while parsing a flow sequence that starts on line 1)"),
        ("a: \x01", "m.yaml:1: syntax: the control character U+0001 is not allowed"),
        ("x: 1\nx: 2\ny:\n  z: 1\n  z: 2", "m.yaml:2: x: this key is given twice, first on line 1; remove one\nm.yaml:5: z: this key is given twice, first on line 4; remove one"),
        ("a: " + "1" * 5000, "m.yaml:1: syntax: a number of 5,000 characters; at most 400 are read"),
        ("", "m.yaml: the file is empty"),
        (" \n# a comment\n", "m.yaml: the file is empty"),
        (b"a: 1\nb: \xff\n", "m.yaml:2: encoding: the byte 0xff is not UTF-8; save the file as UTF-8"),
        ("- 1", "m.yaml:1: Machine: must be a mapping (key: value), not a list"),
        ("just text", "m.yaml:1: Machine: must be a mapping (key: value), not 'just text'"),
    ],
)  # fmt: skip
def test_unreadable_text_says_where_and_why(file, text, problem):
    assert says(file(text)) == problem


def test_a_byte_order_mark_is_no_mistake(file):
    assert load_spec(file(b"\xef\xbb\xbfn_devices: 4"), Machine).n_devices == 4


def test_without_libyaml_the_answers_are_the_same(file, monkeypatch):
    monkeypatch.setattr(marked_yaml, "_LOADER", yaml.SafeLoader)
    assert load_spec(file("tiles: [1, 2]\nload: 5e-1\n"), Machine).load == 0.5
    assert says(file("a: 1\nn_devices: 0")) == (
        "m.yaml:1: a: no such key; known: base, chain, knob, link, links, load, n_devices, name, note, precision, shared, "
        "stages, tiles, tokens, zero\n"
        "m.yaml:2: n_devices: must be greater than 0, not 0"
    )
    assert says(file("a:\n\tb: 1")) == "m.yaml:2: syntax: a tab cannot indent YAML; use spaces"


# --- bounded time and memory


def billion_laughs() -> str:
    lines = ["l0: &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (billion_laughs(), "m.yaml:7: syntax: more than 1,000,000 values, aliases counted with all they stand for"),
        ("[" * 200_000, "m.yaml:1: syntax: lists and mappings are nested more than 64 deep"),
        ("{a: " * 200_000, "m.yaml:1: syntax: lists and mappings are nested more than 64 deep"),
        ("- " * 500, "m.yaml:1: syntax: lists and mappings are nested more than 64 deep"),
        ("#" * (MAX_FILE_BYTES + 1), "m.yaml: is larger than 20 MB"),
    ],
    ids=["billion laughs", "deep list", "deep mapping", "deep block", "large"],
)  # fmt: skip
def test_a_bomb_is_refused_soon(file, text, problem):
    path = file(text)
    began = time.process_time()
    with pytest.raises(SpecError) as caught:
        load_yaml(path)
    assert str(caught.value) == problem
    assert time.process_time() - began < 10.0  # a second or two on one busy core


def test_a_file_of_too_many_values_is_refused_where_they_end(file, monkeypatch):
    monkeypatch.setattr(marked_yaml, "MAX_VALUES", 50_000)
    problem = "m.yaml:50000: syntax: more than 50,000 values, aliases counted with all they stand for"
    assert says(file("- 1\n" * 60_000)) == problem  # the list itself is a value, too


def test_many_mistakes_are_told_in_part_and_counted(file):
    text = "\n".join(f"{'k' * 200}{n}: 1" for n in range(20_000))
    path = file(text)
    began = time.process_time()
    lines = says(path).splitlines()
    assert len(lines) == 101
    assert lines[-1] == "m.yaml: and 19,900 more"
    assert time.process_time() - began < 10.0


# --- files


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").touch()
    assert says(Path("spcae.yaml")) == "spcae.yaml: no such file; did you mean space.yaml?"
    assert says(Path("elsewhere/q.yaml")) == "elsewhere/q.yaml: no such file"
    assert says(Path(".")) == ".: is a directory, not a file"
    assert says(Path("space.yaml")) == "space.yaml: the file is empty"
    assert says(Path("x" * 5000)).endswith("x: cannot be read: file name too long")
    assert says(Path("a\0b")).endswith("cannot be read: embedded null byte")


def test_permission_denied_is_one_line(file, monkeypatch):
    path = file("a: 1")

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert says(path) == "m.yaml: cannot be read: permission denied"


# --- schema mistakes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n_devces: 1", "n_devces: no such key; did you mean n_devices?"),
        ("Precision: bf16", "Precision: no such key; did you mean precision?"),
        ("link: {lane: 2, gb_per_s: 1}", "link.lane: no such key; did you mean lanes?"),
        ("link: {zzz: 2, gb_per_s: 1}", "link.zzz: no such key; known: gb_per_s, lanes"),
        ("links: {nod: {gb_per_s: 1}}", "links.nod: no such key; did you mean node?"),
        ("chain: [{gb_per_s: 1, lame: 1}]", "chain[0].lame: no such key; did you mean lanes?"),
        ("base: {gb_per_s: 1, lame: 1}", "base.lame: no such key; did you mean lanes?"),
        ("1: 2", "[1]: a key must be text; put it in quotes"),
        ("? \"a\\nb\"\n: 1", "'a\\nb': no such key; known: base, chain, knob, link, links, load, n_devices, name, note, precision, shared, stages, tiles, tokens, zero"),
        ("link: {lanes: 1}", "link.gb_per_s: required key is missing"),
        ("n_devices: many", "n_devices: must be a whole number, not 'many'"),
        ("n_devices: 1.5", "n_devices: must be a whole number, not 1.5"),
        ("n_devices: 1_000", "n_devices: must be a whole number, not '1_000'; write 1000"),
        ("n_devices: '8'", "n_devices: must be a whole number, not '8'; write 8 without quotes"),
        ("n_devices: true", "n_devices: must be a whole number, not true"),
        ("n_devices:", "n_devices: must be a whole number, not null"),
        ("n_devices: [8]", "n_devices: must be a whole number, not a list"),
        ("n_devices: -3", "n_devices: must be greater than 0, not -3"),
        ("tokens: 1,500,000.5", "tokens: must be a number, not '1,500,000.5'; write 1500000.5"),
        ("tokens: 1,5e9", "tokens: must be a number, not '1,5e9'"),
        ("tokens: 1 T", "tokens: must be a number, not '1 T'"),
        ("tokens: .inf", "tokens: must be a finite number, not inf"),
        ("tokens: .nan", "tokens: must be a finite number, not nan"),
        ("load: 1.25", "load: must be at most 1, not 1.25"),
        ("shared: yes", "shared: must be true or false, not 'yes'; write true"),
        ("shared: Off", "shared: must be true or false, not 'Off'; write false"),
        ("shared: 1", "shared: must be true or false, not 1"),
        ("name: 12", "name: must be text, not 12; put it in quotes"),
        ("name: {a: 1}", "name: must be text, not a mapping"),
        ("precision: bf61", "precision: must be one of bf16 or fp8, not 'bf61'; did you mean bf16?"),
        ("precision: int4", "precision: must be one of bf16 or fp8, not 'int4'"),
        ("zero: 2", "zero: must be one of 0 or 1, not 2"),
        ("note: short", "note: must have at least 8 characters, not 5"),
        ("tiles: []", "tiles: must have at least 1 item, not 0"),
        ("tiles: 4", "tiles: must be a list, not 4"),
        ("tiles: [4, x, 0]", "tiles[1]: must be a whole number, not 'x'\nm.yaml:1: tiles[2]: must be greater than 0, not 0"),
        ("link: 4", "link: must be a mapping (key: value), not 4"),
        ("links: [4]", "links: must be a mapping (key: value), not a list"),
        ("knob: atuo", "knob: must be a whole number, auto, a list or a mapping (key: value), not 'atuo'; did you mean auto?"),
        ("knob: 1.5", "knob: must be a whole number, auto, a list or a mapping (key: value), not 1.5"),
        ("knob: [1, x]", "knob[1]: must be a whole number, not 'x'"),
        ("knob: {start: 1}", "knob.stop: required key is missing"),
        ("knob: {start: 3, stop: 2}", "knob: stop = 2 must not be below start = 3"),
        ("base: 3", "base: must be text or a mapping (key: value), not 3; put it in quotes"),
        ("name: " + "[" * 20 + "]" * 20, "name: must be text, not a list"),
        ("n_devices: " + "x" * 100, f"n_devices: must be a whole number, not '{'x' * 60}...'"),
        ("load: 1" + "0" * 90, "load: must be at most 1, not a number of 91 digits"),
    ],
)  # fmt: skip
def test_a_schema_mistake_says_what_would_be_right(file, text, problem):
    assert says(file(text)) == f"m.yaml:1: {problem}"


class Dense(Spec):
    kind: Literal["dense"]
    width: PositiveInt


class Sparse(Spec):
    kind: Literal["sparse"]
    experts: PositiveInt


class Block(Spec):
    mlp: Annotated[Dense | Sparse, Field(discriminator="kind")]
    built: date | None = None
    table: dict[str, tuple[int, Dense]] = {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mlp: {kind: spars}", "mlp: kind must be one of dense or sparse, not 'spars'"),
        ("mlp: {kind: dense, widht: 4}", "mlp.width: required key is missing\nm.yaml:1: mlp.widht: no such key; did you mean width?"),
        ("mlp: {kind: sparse, width: 4, experts: 1}", "mlp.width: no such key; known: experts, kind"),
        ("mlp: {kind: dense, width: 4}\nbuilt: soon", "built: must be a valid date, not 'soon'"),
    ],
)  # fmt: skip
def test_other_complaints_are_made_readable(file, text, problem):
    line = text.count("\n") + 1
    assert says(file(text), Block) == f"m.yaml:{line}: {problem}"


def test_all_mistakes_are_listed_by_line_with_missing_keys_at_their_parent(file):
    text = """\
# a comment
precision: fp9
links:
  node:
    gb_per_s: 900
    lanes: 0
  fabric:
    lanes: 2
chain:
  - gb_per_s: 1
  - lanes: 1

  - gb_per_s: fast
nmae: x
"""
    assert says(file(text)) == (
        "m.yaml:2: precision: must be one of bf16 or fp8, not 'fp9'; did you mean fp8?\n"
        "m.yaml:6: links.node.lanes: must be greater than 0, not 0\n"
        "m.yaml:7: links.fabric.gb_per_s: required key is missing\n"
        "m.yaml:11: chain[1].gb_per_s: required key is missing\n"
        "m.yaml:13: chain[2].gb_per_s: must be a number, not 'fast'\n"
        "m.yaml:14: nmae: no such key; did you mean name?"
    )


def test_a_missing_key_of_the_whole_file_points_at_its_first_line(file):
    text = "# the model\n\nname: tiny\n"
    fields = ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "ffn_hidden_size", "vocab_size")
    assert says(file(text), ModelSpec) == "\n".join(f"m.yaml:3: {name}: required key is missing" for name in fields)


def test_a_rule_between_fields_keeps_its_own_words(file):
    text = (
        "name: m\nn_layers: 2\nhidden_size: 512\nn_heads: 64\nn_kv_heads: 12\nhead_dim: 8\n"
        "ffn_hidden_size: 64\nvocab_size: 100\n"
    )
    assert says(file(text), ModelSpec) == (
        "m.yaml:1: ModelSpec: n_kv_heads = 12 must divide n_heads = 64, "
        "so that every KV head serves the same number of query heads"
    )


def test_whole_floats_are_integers_and_integers_are_floats(file):
    text = "n_devices: 4096.0\nstages: 1e12\ntiles: [1e3, 2]\nknob: [2.0, 3]\ntokens: 15\nload: 1\n"
    machine = load_spec(file(text), Machine)
    assert (machine.n_devices, machine.stages, machine.tiles, machine.knob) == (4096, 10**12, (1000, 2), [2, 3])
    assert all(type(value) is int for value in (machine.n_devices, machine.stages, *machine.tiles))
    assert type(machine.tokens) is float


def test_a_whole_float_in_an_alias_stays_as_it_was_elsewhere(file):
    text = "link: &l {gb_per_s: 1e3, lanes: 2.0}\nlinks: {node: *l}\n"
    machine = load_spec(file(text), Machine)
    assert machine.link == machine.links["node"] == Link(gb_per_s=1000.0, lanes=2)


# --- parts of a file, JSON


def test_a_part_of_a_file_is_checked_in_its_place(file):
    path = file("study: s\nmodels:\n  - gb_per_s: 1\n  - lanes: 2\n    gbps: 1\n")
    data, marks = load_yaml(path)
    assert parse_spec(data["models"][0], Link, file=path, marks=marks, prefix=("models", 0)) == Link(gb_per_s=1.0)
    with pytest.raises(SpecError) as caught:
        parse_spec(data["models"][1], Link, file=path, marks=marks, prefix=("models", 1))
    assert str(caught.value) == (
        "m.yaml:4: models[1].gb_per_s: required key is missing\n"
        "m.yaml:5: models[1].gbps: no such key; did you mean gb_per_s?"
    )
    with pytest.raises(SpecError) as caught:
        parse_spec(data["study"], Link, file=path, marks=marks, prefix=("study",))
    assert str(caught.value) == "m.yaml:1: study: must be a mapping (key: value), not 's'"


def test_marks_of_a_part_are_its_own(file):
    _, marks = load_yaml(file("a:\n  b:\n    c: 1\n"))
    inner = marks.within(("a", "b"))
    assert (inner.line, inner.line_of(("c",)), inner.line_of(("d",))) == (2, 3, 2)


def test_a_transform_sees_the_data_first(file):
    machine = load_spec(file("size: 4\n"), Machine, lambda data: {"n_devices": data["size"]})
    assert machine.n_devices == 4


def test_a_mistake_outside_the_schema_has_a_line_too(file):
    path = file("a: 1\nb:\n  c: 2\n")
    _, marks = load_yaml(path)
    assert str(spec_error(path, marks, ("b", "c"), "is odd")) == "m.yaml:3: b.c: is odd"
    assert str(spec_error(path, marks, (), "is odd")) == "m.yaml:1: m.yaml: is odd"


def test_json_is_read_as_json(file):
    text = '{\n\t"note": "a slash \\/ and more",\n\t"n_devices": 8e0,\n\t"tile": [1]\n}'
    assert says(file(text, "m.json")) == "m.json:4: tile: no such key; did you mean tiles?"
    assert load_yaml(file(text, "m.json"))[0]["note"] == "a slash / and more"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1,\n "b": tru}', "m.json:2: syntax: not JSON: expecting value"),
        ("a: 1", "m.json:1: syntax: not JSON: expecting value"),
        ('{"a": 1,\n "a": 2}', "m.json:2: a: this key is given twice, first on line 1; remove one"),
        ("[" * 100_000, "m.json:1: syntax: lists and mappings are nested more than 64 deep"),
        (f"[{'1' * 5000}]", "m.json:1: syntax: a number of 5,000 characters; at most 400 are read"),
        ('{"n_devces": "\\ud83d\\ude00"}', "m.json:1: n_devces: no such key; did you mean n_devices?"),
        ('{"n_devices": "\\ud800"}', "m.json:1: n_devices: must be a whole number, not '\\ud800'"),
    ],
)
def test_a_mistake_in_json_says_where(file, text, problem):
    assert says(file(text, "m.json")) == problem


# --- whatever the bytes, one of our errors or a spec

PIECES = st.sampled_from(
    [
        *("name", "n_devices", "links", "node", "knob", "tiles", "chain", "<<", "&a", "*a", ": ", "- ", "\n", "\n  "),
        *("[", "]", "{", "}", ", ", "1", "-1", "1e3", "1e400", "0x" + "f" * 500, ".nan", "'", '"', "!!int", "!x"),
        *(
            "|",
            ">",
            "? ",
            "#",
            "\t",
            "---",
            "null",
            "true",
            "%YAML 1.2",
            "\x00",
            "\ufeff",
            "\u2028",
            "é",
            "\\ud800",
            "~",
        ),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(Machine.model_fields)) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def only_our_errors(path: Path) -> None:
    for spec_class in (Machine, ModelSpec):
        try:
            load_spec(path, spec_class)
        except DlcalcError as error:
            lines = str(error).splitlines()
            assert lines
            assert all(line.startswith(f"{path}:") for line in lines)


@pytest.mark.parametrize("name", ["fuzz.yaml", "fuzz.json"])
@settings(max_examples=150)
@given(content=st.binary(max_size=60) | st.lists(PIECES, max_size=25).map(lambda pieces: "".join(pieces).encode()))
def test_no_bytes_end_in_a_traceback(tmp_path_factory, name, content):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    only_our_errors(path)


@settings(max_examples=150)
@given(data=VALUES, as_json=st.booleans())
def test_no_value_ends_in_a_traceback(tmp_path_factory, data, as_json):
    path = tmp_path_factory.getbasetemp() / ("value.json" if as_json else "value.yaml")
    path.write_text(json.dumps(data) if as_json else yaml.safe_dump(data))
    only_our_errors(path)


# --- errors, the package


def test_errors_survive_the_way_from_another_process():
    spec = SpecError(Path("m.yaml"), (Problem(3, "a", "is odd"),), n_more=2)
    name = UnknownNameError("model", "lama", ["llama", "gpt"])
    field = FieldError(("recipe", 1, "precision"), "no device has it")
    for error in (spec, name, field):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(spec) == "m.yaml:3: a: is odd\nm.yaml: and 2 more"
    assert str(name) == "unknown model 'lama'; did you mean llama?"
    assert str(field) == "recipe[1].precision: no device has it"
    assert str(UnknownNameError("model", "x" * 100, ["llama", "gpt"])).endswith("; known: gpt, llama")


def test_the_package_offers_what_it_names():
    for name in dlcalc.__all__:
        assert getattr(dlcalc, name) is not None
    assert set(dlcalc.__all__) <= set(dir(dlcalc))
    with pytest.raises(AttributeError, match="has no attribute 'lode_model'"):
        dlcalc.lode_model  # noqa: B018


def test_configs_are_found_in_a_checkout_and_in_a_wheel(tmp_path):
    """The wheel's own copy is used where the checkout is out of reach."""
    checkout = Path(__file__).resolve().parents[2]
    assert config_dir() == checkout / "configs"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = "from dlcalc.specs.load import config_dir; print(config_dir())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    installed = Path(ran.stdout.strip())
    assert installed == tmp_path / "site" / "dlcalc" / "configs"
    names = {path.relative_to(checkout / "configs") for path in config_dir().rglob("*.yaml")}
    assert names
    assert names == {path.relative_to(installed) for path in installed.rglob("*.yaml")}
