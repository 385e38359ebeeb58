"""The unpickler that runs nothing: what it refuses, what it bounds, and that it reads what pickle reads."""

import argparse
import io
import os
import pickle
import random
import signal
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.checkpoint import callables, flatten, unpickler
from dlcalc.checkpoint.faults import DamagedError, RefusedCallError
from dlcalc.checkpoint.flatten import flatten as flattened
from dlcalc.checkpoint.inert import Blob, Mapping, Record
from dlcalc.checkpoint.source import Source
from dlcalc.checkpoint.unpickler import unpickle
from tests.checkpoint_samples import REFUSED_FIRST, Calls, hostile_calls

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(pickled: bytes, **options):
    return unpickle(Source(io.BytesIO(pickled), 0, len(pickled)), **options)


def plain(found: object) -> object:
    """What was read as Python's own containers; bytes as their number."""
    if isinstance(found, Mapping):
        return {plain(key): plain(value) for key, value in found.pairs()}
    if isinstance(found, (list, tuple)):
        return type(found)(plain(part) for part in found)
    return found.n_bytes if isinstance(found, Blob) else found


# ---- what it refuses


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hostile_calls_are_refused_by_name_and_not_run(tmp_path, protocol):
    victim = tmp_path / "ran"
    for name, call in hostile_calls(victim).items():
        nested = {"model": [OrderedDict(a=1), {"x": (1, call)}]}
        for root in (call, nested):
            with pytest.raises(RefusedCallError) as caught:
                read(pickle.dumps(root, protocol))
            assert f"its pickle calls {REFUSED_FIRST.get(name, name)}," in str(caught.value).replace(
                "_pickle.", "pickle."
            )
    assert not victim.exists()


def test_the_samples_are_hostile_indeed(tmp_path):
    """Python's own unpickler runs them."""
    victim = tmp_path / "ran"
    pickle.loads(pickle.dumps(Calls(os.system, f"touch {victim}")))
    assert victim.exists()


@pytest.mark.parametrize(
    ("pickled", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "posix.system"),
        (b"\x80\x02cposix\nsystem\n.", "posix.system"),  # to name it is enough
        (b"\x80\x02c__builtin__\nexecfile\nX\x01\x00\x00\x00x\x85R.", "builtins.execfile"),
        (b"\x80\x02\x82\x01.", "the copyreg extension 1"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0dgetattr.evil.\x93.", "builtins.getattr.evil."),
        (b"\x80\x04\x8c\x0ccollections.\x8c\x0bOrderedDict\x93.", "collections..OrderedDict"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "collections.OrderedDict.__init__"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R.", "torch.storage._load_from_bytes"),
        (b"\x80\x02ctorch\nload\nC\x01x\x85R.", "torch.load"),
        (b"\x80\x02ctorch\nfloat32\n)R.", "torch.float32"),  # a dtype is no function
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "torch.FloatStorage"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "_codecs.encode"),
        (b"\x80\x02ccopyreg\n_reconstructor\ncbuiltins\nobject\ncbuiltins\nobject\nN\x87R.", "builtins.object"),
        (b"\x80\x02c\x1b[2J\nx\n.", "\\x1b[2J.x"),  # no control character reaches the terminal
    ],
)
def test_hand_made_pickles_are_refused_by_name(pickled, name):
    with pytest.raises(RefusedCallError) as caught:
        read(pickled)
    assert f"its pickle calls {name}," in str(caught.value)


ENUM = b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n"


@pytest.mark.parametrize(
    "arguments",
    [
        b"cargparse\nNamespace\nX\x0b\x00\x00\x00__globals__\x86",  # not an enumeration
        ENUM + b"X\x09\x00\x00\x00__class__\x86",
        ENUM + b"X\x05\x00\x00\x00a.b.c\x86",
        ENUM + b"X\x01\x00\x00\x00aN\x87",  # a default
        b"(NX\x01\x00\x00\x00at",
        b")",
    ],
)
def test_getattr_is_refused_of_all_but_members_of_known_enumerations(arguments):
    with pytest.raises(RefusedCallError, match=r"its pickle calls builtins\.getattr,"):
        read(b"\x80\x02cbuiltins\ngetattr\n" + arguments + b"R.")


def test_members_of_enumerations_are_read_as_every_python_pickles_them():
    by_name = read(b"\x80\x02cbuiltins\ngetattr\n" + ENUM + b"X\x05\x00\x00\x00PLAIN\x86R.")
    assert (by_name.symbol.name, by_name.args) == ("_MEM_FORMAT_ENCODING", ("PLAIN",))
    by_value = read(pickle.dumps(signal.SIGTERM, 2))
    assert by_value.symbol.full_name == "signal.Signals"


def test_nothing_on_the_list_can_run_code():
    """The list is names; nothing of it is imported, whatever module it is of."""
    names = {*callables.CONSTRUCTORS, *callables._RECORDS}
    assert {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2"} <= names
    assert not [name for name in names if name.split(".")[0] in {"os", "posix", "nt", "subprocess", "sys", "importlib"}]
    allowed_builtins = {name for name in names if name.startswith("builtins.")}
    assert not {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__")} & allowed_builtins


# ---- what it bounds


def bomb(pickled: bytes, match: str, monkeypatch=None, **limits):
    for name, value in limits.items():
        monkeypatch.setattr(unpickler, name, value)
    with pytest.raises(DamagedError, match=match):
        read(pickled)


def test_operations_are_bounded(monkeypatch):
    bomb(b"\x80\x02N" + b"2" * 10_000 + b".", "more than 5,000 operations", monkeypatch, MAX_OPERATIONS=5_000)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02(" + b"}" * 30_000 + b"t.",
        b"\x80\x02" + b"(" * 30_000,
        b"\x80\x02N" + b"\x85" * 30_000 + b".",
        b"\x80\x02(" + b"\x8c\x02ab" * 30_000 + b"t.",
        b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", 2**31 + i) for i in range(30_000)) + b".",
        b"\x80\x02]" + b"q\x00ccollections\nOrderedDict\n}K\x01Ns\x85R" * 30_000 + b".",
    ],
    ids=["dicts", "marks", "tuples", "texts", "memo", "calls"],
)
def test_memory_is_bounded(monkeypatch, pickled):
    bomb(pickled, "unfolds to more than 1 MiB", monkeypatch, MAX_MEMORY_BYTES=1 << 20)


def test_a_mapping_that_doubles_itself_is_bounded():
    doubled = b"q\x00ccollections\nOrderedDict\n(h\x00h\x00tR" * 60
    bomb(b"\x80\x02ccollections\nOrderedDict\n}K\x01Ns\x85R" + doubled + b".", "copies over 1,000,000 items at once")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"L" + b"9" * 5000 + b"L\n.",
    ],
)
def test_integers_are_bounded(pickled):
    bomb(pickled, "its pickle has an integer of")


@pytest.mark.parametrize("code", [b"\x8d", b"\x8e", b"\x96"])
def test_lengths_beyond_the_file_are_not_believed(code):
    bomb(b"\x80\x05" + code + struct.pack("<Q", 2**60) + b"abc.", "truncated")


def test_a_memo_index_allocates_nothing():
    assert read(b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff.") is None


def test_bytes_are_skipped_not_read():
    class Counting(io.BytesIO):
        n_read = 0

        def read(self, size=-1):
            self.n_read += size
            return super().read(size)

    pickled = pickle.dumps({"a": bytes(50_000_000), "b": 7}, 4)
    stream = Counting(pickled)
    found = unpickle(Source(stream, 0, len(pickled)))
    assert plain(found) == {"a": 50_000_000, "b": 7}
    assert stream.n_read < 200_000


def test_keys_that_collide_cost_nothing():
    """Integers of one hash make a dict quadratic; no key out of a file is hashed."""
    keys = b"".join(b"\x8a\x0b" + ((2**61 - 1) * i).to_bytes(11, "little") + b"N" for i in range(50_000))
    assert len(read(b"\x80\x02}(" + keys + b"u.")) == 50_000


def test_deeply_nested_keys_do_not_overflow_the_stack():
    assert len(read(b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.")) == 1


def test_a_container_of_itself_is_refused():
    with pytest.raises(DamagedError, match="contains itself"):
        flattened(read(b"\x80\x02]q\x00h\x00a."))
    with pytest.raises(DamagedError, match="contains itself"):
        flattened(read(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."))


def test_a_million_laughs_are_refused(monkeypatch):
    monkeypatch.setattr(flatten, "MAX_ENTRIES", 20_000)
    laughs = b"\x80\x02]q\x00" + b"".join(b"(h%ch%clq%c" % (i, i, i + 1) for i in range(60))
    with pytest.raises(DamagedError, match="more than 20,000 entries"):
        flattened(read(laughs + b"."))


def test_endless_names_are_refused():
    root: dict = {}
    for _ in range(90):
        root = {"x" * 100: root or 1}
    with pytest.raises(DamagedError, match="a name of more than 4,096 characters"):
        flattened(read(pickle.dumps(root)))


# ---- what it reads

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(root=trees, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_reads_as_pickle_reads_it(root, protocol):
    assert plain(read(pickle.dumps(root, protocol))) == root


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_of_the_standard_library_are_read(protocol):
    state = random.getstate()
    root = {
        "ordered": OrderedDict(a=1, b=2),
        "default": defaultdict(list, a=[1]),
        "counter": Counter("aab"),
        "set": {1},
        "frozen": frozenset({2}),
        "deque": deque([1, 2]),
        "namespace": argparse.Namespace(lr=0.1, betas=(0.9, 0.95)),
        "path": PurePosixPath("a/b"),
        "bytes": b"\xff\x00",
        "random": state,
    }
    found = read(pickle.dumps(root, protocol))
    assert plain(found.get("ordered")) == {"a": 1, "b": 2}
    assert plain(found.get("default")) == {"a": [1]}
    assert plain(found.get("counter")) == {"a": 2, "b": 1}
    assert found.get("namespace").attribute("lr") == 0.1
    assert isinstance(found.get("deque"), Record)
    assert found.get("bytes") == Blob(2)
    assert found.get("random") == state
    names = {value.name for value in flattened(found).values}
    assert {"ordered.a", "namespace.lr", "namespace.betas", "path"} <= names


def test_shared_parts_are_one():
    shared = [1]
    first, second = read(pickle.dumps([shared, shared]))
    assert first is second


@pytest.mark.parametrize(
    "pickled", [b"\x80\x02.", b"\x80\x02h\x07.", b"\x80\x02R.", b"\x80\x02NNs.", b"\x80\x02NNa.", b"\x80\x02)Nb."]
)
def test_pickles_that_make_no_sense_are_damaged(pickled):
    with pytest.raises(DamagedError):
        read(pickled)


def test_out_of_band_buffers_are_no_operation():
    with pytest.raises(DamagedError, match="an operation 0x97"):
        read(b"\x80\x05\x97.")


SAMPLE = pickle.dumps(
    {"model": OrderedDict(w=[1.5, 2, "x"], b=argparse.Namespace(a=(1, 2**70))), "state": {0: {b"k": None}}}, 2
)


def outcome(pickled: bytes) -> str:
    """What is said of a pickle; anything but the two errors is a failure."""
    try:
        flattened(read(pickled))
    except (DamagedError, RefusedCallError) as error:
        return str(error)
    return "it was read"


@given(st.data())
def test_any_damage_is_one_of_two_errors(data):
    """Bytes changed, cut out and doubled: it reads, or it says what is wrong; it never fails otherwise."""
    damaged = bytearray(SAMPLE if data.draw(st.booleans()) else pickle.dumps(pickle.loads(SAMPLE), 4))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    assert outcome(bytes(damaged)).isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_one_of_two_errors(pickled):
    assert outcome(pickled).isprintable()
