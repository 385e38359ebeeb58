"""dlcalc-results on real studies: in order, damaged, foreign, interrupted, merged."""

from __future__ import annotations

import json
import os
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dlcalc import dlcalc_compare, dlcalc_report, training_3d
from dlcalc.dlcalc_results import main
from dlcalc.results.files import INPUTS_NAME, MANIFEST_NAME, SUMMARY_NAME
from dlcalc.results.reader import open_result
from dlcalc.results.schema import COLUMN_NAMES
from tests.studies import FEW, searched

FIRST = "s000-000000.parquet"
SIXTEEN, EIGHT = "llama3-8b on 16 h100, bf16", "llama3-8b on 8 h100, bf16"


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Two studies that share the scenario of 16 devices by name and content, and one that shares the name alone."""
    folder = tmp_path_factory.mktemp("studies")
    searched(folder, "small", devices="[8, 16]")
    searched(folder, "sixteen")
    searched(folder, "other", space=FEW.replace("[1, 2]", "[1, 4]"))
    return folder


@pytest.fixture
def folder(studies, tmp_path, monkeypatch):
    """Copies to work on."""
    shutil.copytree(studies, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(*arguments, code=0, door=main):
    done = CliRunner().invoke(door, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def answer(*arguments, code=0):
    return json.loads(ran(*arguments, "--json", code=code).stdout)


# --- verify -----------------------------------------------------------------------------------------------------


def test_results_in_order_are_said_to_be(folder):
    done = ran("verify", "small", "other")
    assert done.stdout.startswith("small: in order, complete: 2 shards, ")
    assert done.stderr == ""
    assert [one["faults"] for one in answer("verify", "small", "other")] == [[], []]


def truncate(folder):
    os.truncate(folder / FIRST, 1000)


def flip(folder):
    content = bytearray((folder / FIRST).read_bytes())
    content[len(content) // 3] ^= 1
    (folder / FIRST).write_bytes(content)


def lose(folder):
    (folder / FIRST).unlink()


def swap(folder):
    shutil.copy(folder.parent / "other" / FIRST, folder / FIRST)


def text(folder):
    (folder / FIRST).write_text("not Parquet at all" * 10**5)


def stranger(folder):
    pq.write_table(pa.table({"x": [1]}), folder / FIRST)


def extra(folder):
    shutil.copy(folder.parent / "other" / FIRST, folder / "s001-000007.parquet")


def notes(folder):
    (folder / "notes.txt").write_text("mine")


def elsewhere(folder):
    (folder / "old").mkdir()


def summary(folder):
    (folder / SUMMARY_NAME).write_text("{")


def inputs(folder):
    (folder / INPUTS_NAME).write_text((folder / INPUTS_NAME).read_text().replace("h100", "h200"))


def fewer(folder):
    document = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / document["shards"].pop()["file"]).unlink()
    (folder / MANIFEST_NAME).write_text(json.dumps(document))


def cut_manifest(folder):
    os.truncate(folder / MANIFEST_NAME, 500)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (truncate, f"small/{FIRST}: truncated: 1,000 of "),
        (flip, f"small/{FIRST}: damaged: not the bytes that were written"),
        (lose, f"small/{FIRST}: missing, but the manifest names it"),
        (swap, f"small/{FIRST}: another shard than the manifest names"),
        (text, f"small/{FIRST}: foreign: not a Parquet file"),
        (stranger, f"small/{FIRST}: foreign: not written by dlcalc"),
        (extra, "small/s001-000007.parquet: not in the manifest; Parquet readers count its rows as well"),
        (notes, "small/notes.txt: foreign: not a Parquet file"),
        (elsewhere, "small/old: foreign: a folder"),
        (summary, f"small/{SUMMARY_NAME}: damaged: not JSON"),
        (inputs, f"small/{INPUTS_NAME}: damaged: 1 of "),
        (fewer, f"small: complete, but nothing of {SIXTEEN} is there"),
        (cut_manifest, f"small: small/{MANIFEST_NAME}: damaged: not JSON"),
    ],
)
def test_what_is_wrong_is_named(folder, harm, problem):
    harm(folder / "small")
    done = ran("verify", "small", "other", code=2)
    assert problem in " ".join(done.stdout.split())
    assert "other: in order" in done.stdout
    assert done.stderr.startswith("error: 1 fault in small; dlcalc-search --resume")
    small, other = answer("verify", "small", "other", code=2)
    assert len(small["faults"]) == 1
    assert not other["faults"]


def test_every_fault_is_named_not_only_the_first(folder):
    lose(folder / "small")
    notes(folder / "small")
    assert len(answer("verify", "small", code=2)[0]["faults"]) == 2


def test_what_is_no_result_is_said_so(folder):
    (folder / "empty").mkdir()
    assert "not a result of dlcalc-search" in ran("verify", "empty", code=2).stdout
    assert "no such result directory" in ran("verify", "nowhere", code=2).stderr
    assert "a file; a result is the directory" in ran("show", "small.yaml", code=2).stderr


# --- show -------------------------------------------------------------------------------------------------------


def test_a_result_says_what_it_holds(folder):
    (held,) = answer("show", "small")
    best = {row["name"]: row["best"][0] for row in open_result("small").summary()["scenarios"]}
    assert held["complete"]
    assert held["settings"]["keep"] == "auto"
    assert held["space_text"].startswith("\nstudy: small")
    assert [one["name"] for one in held["scenarios"]] == [EIGHT, SIXTEEN]
    for one in held["scenarios"]:
        assert one["best"]["step_time_s"] == best[one["name"]]["step_time_s"]
        assert one["n_rows"] == one["n_fit"]
    assert held["n_rows"] == len(pd.read_parquet("small"))

    shown = ran("show", "small").stdout
    assert "complete" in shown
    assert "study: small" in shown


def test_an_unfinished_result_says_so(folder):
    document = json.loads((folder / "small" / MANIFEST_NAME).read_text())
    lost = document["shards"].pop()
    (folder / "small" / lost["file"]).unlink()
    (folder / "small" / MANIFEST_NAME).write_text(json.dumps(document | {"status": "running"}))

    assert "not finished; dlcalc-search goes on with it (--resume)" in ran("show", "small").stdout
    assert "not searched yet" in " ".join(ran("show", "small").stdout.split())
    assert "small: in order, not finished: 1 shards" in ran("verify", "small").stdout
    assert [row["scenario"] for row in answer("query", "FROM scenarios", "small")] == [EIGHT]
    assert "finish it with dlcalc-search --resume" in ran("merge", "small", "other", "-o", "m", code=2).stderr
    assert not (folder / "m").exists()


# --- query ------------------------------------------------------------------------------------------------------


def test_sql_gives_what_pandas_gives(folder):
    rows = answer(
        "query",
        "SELECT study, scenario, count(*) AS n, sum(pp) AS s, min(step_time_s) AS best FROM plans GROUP BY ALL",
        *("small", "other"),
    )
    frames = [pd.read_parquet(name).assign(study=name) for name in ("small", "other")]
    expected = pd.concat(frames).astype({"scenario": str}).groupby(["study", "scenario"])
    assert len(rows) == 3
    for row in rows:
        frame = expected.get_group((row["study"], row["scenario"]))
        assert (row["n"], row["s"], row["best"]) == (len(frame), frame.pp.sum(), frame.step_time_s.min())


def test_rows_go_to_files_and_a_terminal_shows_the_first(folder):
    n_rows = len(pd.read_parquet("small"))
    assert f"{n_rows:,} rows in all.csv" in ran("query", "FROM plans", "small", "--csv", "all.csv").stderr
    ran("query", "FROM plans", "small", "--parquet", "all.parquet")
    assert list(pd.read_csv("all.csv").columns) == ["study", *COLUMN_NAMES]
    assert len(pd.read_parquet("all.parquet")) == n_rows
    assert f"{n_rows - 40:,} more rows" in ran("query", "SELECT tp FROM plans", "small").stdout
    assert sorted(os.listdir()) == sorted([*("all.csv", "all.parquet"), *STUDIES])


STUDIES = ("small", "small.yaml", "sixteen", "sixteen.yaml", "other", "other.yaml")


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT nothing FROM plans", "columns of plans: study, scenario, model"),
        ("SELEC 1", "syntax error"),
        ("", "no rows to show"),
        ("SELECT * FROM nowhere", "columns of scenarios: study, scenario"),
        ("SELECT 1/0::INT + 'x'", "DuckDB: "),
        ("COPY plans TO 'leak.csv'", "disabled by configuration"),
        ("SELECT * FROM read_csv('small.yaml')", "disabled by configuration"),
        ("SELECT * FROM 'small/*.parquet'", "disabled by configuration"),
        ("ATTACH 'new.db'", "disabled by configuration"),
        ("SET enable_external_access = true", "DuckDB: "),
        ("SET threads = 1", "locked"),
    ],
)
def test_sql_that_cannot_be_answered_is_said_in_words_and_touches_no_file(folder, sql, said):
    done = ran("query", sql, "small", code=2)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert sorted(os.listdir()) == sorted(STUDIES)


@pytest.mark.parametrize(
    "options",
    [("--csv", "x.txt"), ("--parquet", "x.csv"), ("--json", "--csv", "x.csv"), ("--csv", "nowhere/x.csv")],
)
def test_a_file_that_cannot_be_written_is_refused(folder, options):
    ran("query", "FROM plans", "small", *options, code=2)
    assert sorted(os.listdir()) == sorted(STUDIES)


def test_a_damaged_page_is_said_while_querying(folder):
    flip(folder / "small")
    done = ran("query", f"SELECT {' + '.join(f'count({name})' for name in COLUMN_NAMES)} FROM plans", "small", code=2)
    assert done.stderr.startswith("error: small: ")
    assert "CRC" in done.stderr
    assert "dlcalc-results verify names the file" in done.stderr


# --- merge ------------------------------------------------------------------------------------------------------


def test_a_merged_result_holds_all_and_every_command_reads_it(folder):
    held = answer("merge", "small", "sixteen", "other", "-o", "all")
    names = [EIGHT, SIXTEEN, f"{SIXTEEN} [other]"]  # alike: once; alike in name: told apart
    assert [one["name"] for one in held["scenarios"]] == names
    assert held["settings"]["merged"] == "small, sixteen, other"

    frame = pd.read_parquet("all").astype({"scenario": str})
    for name, study in zip(names, ("small", "small", "other"), strict=True):
        source = pd.read_parquet(study).astype({"scenario": str})
        source = source[source.scenario == name.removesuffix(" [other]")].assign(scenario=name)
        merged = frame[frame.scenario == name]
        pd.testing.assert_frame_equal(
            source.sort_values("plan_index", ignore_index=True), merged.sort_values("plan_index", ignore_index=True)
        )
        assert open_result("all").origin(name).name == name

    assert "all: in order, complete: 3 shards" in ran("verify", "all").stdout
    best = answer("query", f"SELECT min(step_time_s) AS s FROM plans WHERE scenario = '{names[2]}'", "all")[0]["s"]
    run = json.loads(ran("all", "--rank", "1", "--scenario", "[other]", "--json", door=training_3d.main).stdout)
    assert best == pytest.approx(open_result("other").best(SIXTEEN, 1)[0]["step_time_s"])
    assert f"{best:.4g}"[:4] in json.dumps(run)
    assert "Best plan" in ran("all", "--scenario", "[other]", door=dlcalc_report.main).stdout
    ran("all", "--by", "devices", door=dlcalc_compare.main)


def test_merging_again_changes_nothing_and_another_merge_is_refused(folder):
    ran("merge", "small", "other", "-o", "all")
    before = {path.name: path.read_bytes() for path in (folder / "all").iterdir()}
    ran("merge", "small", "other", "-o", "all")
    assert {path.name: path.read_bytes() for path in (folder / "all").iterdir()} == before

    refused = ran("merge", "sixteen", "other", "-o", "all", code=2).stderr
    assert "holds the result of another study" in refused
    assert "merged: small, other there, sixteen, other now" in refused
    ran("merge", "sixteen", "other", "-o", "all", "--overwrite")
    assert "2 shards" in ran("verify", "all").stdout


def test_what_cannot_be_merged_is_said(folder):
    assert "two results or more" in ran("merge", "small", "-o", "all", code=2).stderr
    assert "into itself" in ran("merge", "small", "other", "-o", "other", code=2).stderr
    flip(folder / "small")
    assert "damaged" in ran("merge", "small", "other", "-o", "all", code=2).stderr
    assert "truncated" not in ran("verify", "other").stdout
