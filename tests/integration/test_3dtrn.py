"""3dtrn as people run it: every option, every example, both kinds of input, and what bad input gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.report.run_facts import RunFacts
from dlcalc.results.reader import open_result
from dlcalc.training_3d import main
from dlcalc.workflows.search import run_search
from tests.golden_runs import EXAMPLES, golden_file, stable_report

HOME = Path(__file__).resolve().parents[2]
EXAMPLE = HOME / "examples" / "llama3_70b.yaml"
CROSS_DC = HOME / "examples" / "llama3_70b_cross_dc.yaml"
HEADINGS = (
    "CONFIGURATION", "Hardware", "Data", "Model Architecture", "MEMORY", "COMPUTE", "COMMUNICATION",
    "PIPELINE BUBBLE", "TRANSFORMER BLOCK", "ITERATION TIME COMPONENTS", "FINAL RESULTS",
)  # fmt: skip

SMALL: dict[str, Any] = {
    "model": {
        "n_layers": 32, "hidden_sz": 4096, "inter_sz": 11008, "n_q_heads": 32, "n_kv_heads": 8, "head_dim": 128,
        "vocab_sz": 32000, "glu": True, "rotary_embeds": True, "dropout": False, "tie_embeddings": True,
    },
    "parallelism": {"tp": 8, "pp": 2, "dp": 16, "vpp": 1, "sp": True, "zero_level": 1, "n_param_buckets": 5},
    "performance": {"activation_checkpointing_type": "selective"},
    "data": {"gbs": 256, "seqlen": 2048, "microbatch_sz": 1},
    "hardware": {"node_type": "p5.48xlarge"},
}  # fmt: skip
CROSS = {"n_dcs": 3, "interconnect_bandwidth_gbps": 800, "interconnect_latency_s": 0.0035}


def invoke(*arguments: object, **env: str | None) -> Result:
    plain = {"COLUMNS": None, "NO_COLOR": None, "FORCE_COLOR": None}
    return CliRunner(env=plain | env).invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def report(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*arguments: object) -> Any:
    return json.loads(report(*arguments, "--json"))


def written(folder: Path, base: dict[str, Any], /, **sections: Any) -> Path:
    """A run file with keys of some sections changed."""
    changed = {
        name: {**keys, **(sections.get(name) or {})} if isinstance(keys, dict) else keys for name, keys in base.items()
    }
    changed |= {name: keys for name, keys in sections.items() if name not in base}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(changed, sort_keys=False))
    return file


# --- the report ------------------------------------------------------------------------------------------------------


def test_free_memory_is_that_of_the_device_and_what_is_kept_free_lowers_the_limit(tmp_path):
    """60 % kept free refuses a plan that leaves a third; what it leaves is the same."""
    run = {
        "model": "llama3-8b", "hardware": "h100", "cluster": {"devices": 8},
        "recipe": {"seq_len": 8192, "global_batch": 64}, "plan": {"tp": 2, "dp": 4, "sequence_parallel": True},
    }  # fmt: skip
    plain = report(written(tmp_path, run))
    free = re.search(r"Usable memory of a device: ([\d.]+) GiB, ([\d.]+) GiB free \(([\d.]+) % used\)\n", plain)
    assert free is not None
    assert "limit" not in plain.split("MEMORY")[1].split("COMPUTE")[0]

    strict = written(tmp_path, run, memory_headroom=0.6)
    text, facts = report(strict), document(strict)
    memory = facts["memory"]
    assert free[0].rstrip() in text
    assert float(free[2]) == pytest.approx((memory["usable_bytes"] - memory["total_bytes"]) / 2**30, abs=6e-4)
    assert memory["limit_bytes"] == pytest.approx(0.4 * memory["usable_bytes"])
    over_gib = (memory["total_bytes"] - memory["limit_bytes"]) / 2**30
    limit = f"limit {memory['limit_bytes'] / 2**30:.1f} GiB, as 60.0 % of the memory is kept free: {over_gib:.3f} GiB"
    assert f"{limit} beyond" in " ".join(text.split())
    assert facts["refused"] == ["needs more memory than the device has"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_say_what_they_said(example):
    """After a change on purpose: python -m tests.golden_runs."""
    assert stable_report(example) == golden_file(example).read_text(encoding="utf-8")


def test_all_promised_examples_are_there():
    promised = {"llama3_70b", "llama3_70b_cross_dc", "gpt_oss_120b", "deepseek_v3", "mixtral_8x7b", "llama3_8b_fsdp"}
    assert {path.stem for path in EXAMPLES} == promised


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example):
    """A shipped example is a plan that can be run."""
    assert document(example)["refused"] == []


def test_sections_stand_in_order():
    lines = report(EXAMPLE).splitlines()
    places = [lines.index(heading) for heading in HEADINGS]
    assert places == sorted(places)


def test_lines_that_scripts_look_for():
    text = report(EXAMPLE)
    found = document(EXAMPLE)
    memory = re.findall(r"^Total Memory Required: (\d+\.\d{3}) GiB per device$", text, re.MULTILINE)
    mfu = re.findall(r"^Theoretical MFU: (\d+\.\d{2})%$", text, re.MULTILINE)
    assert memory == [f"{found['memory']['total_bytes'] / 2**30:.3f}"]
    assert mfu == [f"{100 * found['results']['mfu']:.2f}"]
    assert re.search(r"^Interval: .* to .*80 % of runs", text, re.MULTILINE)


def test_the_report_adds_up():
    """Terms printed are those that the totals are the sum of."""
    found = document(EXAMPLE)
    assert sum(found["step"].values()) == pytest.approx(found["results"]["iteration_s"], rel=1e-9)
    assert sum(found["memory"]["terms"].values()) == pytest.approx(found["memory"]["total_bytes"], rel=1e-9)
    stages = found["memory"]["stages"]
    assert max(stage["total_bytes"] for stage in stages) == pytest.approx(found["memory"]["total_bytes"], rel=1e-12)
    assert sum(stage["layers"] for stage in stages) == found["model"]["n_layers"]


def test_json_has_all_there_is():
    found = document(EXAMPLE)
    assert set(found) == set(RunFacts.__dataclass_fields__)
    assert found["plan"]["tp"] == 8
    assert {row["name"] for row in found["matmuls"]} == {"qkv", "out", "up", "down", "head"}
    assert [axis["axis"] for axis in found["communication"]] == ["TP", "PP", "DP"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("tp", [1, 8])
@pytest.mark.parametrize("sp", [False, True])
def test_every_zero_level_with_and_without_sequence_parallelism(tmp_path, stage, tp, sp):
    file = written(tmp_path, SMALL, parallelism={"zero_level": stage, "sp": sp, "tp": tp, "pp": 1})
    found = document(file)
    assert found["plan"]["zero_stage"] == stage
    assert found["plan"]["sequence_parallel"] == (sp and tp > 1)
    assert 0 < found["results"]["mfu"] < 1
    # the default framework is Megatron, whose profile shards the optimizer or nothing
    beyond = [] if stage in (0, 1) else ["the framework has no such ZeRO stage"]
    assert [reason for reason in found["refused"] if not (tp == 1 and "memory" in reason)] == beyond


def test_sharding_more_takes_less_memory(tmp_path):
    totals = [
        document(written(tmp_path, SMALL, parallelism={"zero_level": stage, "pp": 1}))["memory"]["total_bytes"]
        for stage in range(4)
    ]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "super-selective", "full"])
def test_every_kind_of_recomputation(tmp_path, checkpointing):
    assert "Theoretical MFU" in report(
        written(tmp_path, SMALL, performance={"activation_checkpointing_type": checkpointing})
    )


def test_layers_need_not_divide(tmp_path):
    found = document(written(tmp_path, SMALL, model={"n_layers": 30}, parallelism={"pp": 4, "vpp": 1}))
    assert sorted(stage["layers"] for stage in found["pipeline"]["stages"]) == [7, 7, 8, 8]
    assert found["refused"] == []


def test_a_plan_that_cannot_run_is_reported_with_a_warning(tmp_path):
    """Interleaving 16 micro-batches over 3 stages; the issue's older examples do this."""
    file = written(
        tmp_path, SMALL, model={"n_layers": 36}, parallelism={"pp": 3, "vpp": 6, "dp": 16}, data={"gbs": 256}
    )
    text = report(file)
    assert "WARNING: this plan is refused: interleaving needs micro-batches in multiples of pp" in text
    assert "Theoretical MFU:" in text
    result = invoke(file, "--trace", tmp_path / "trace.json")
    assert result.exit_code == 2
    assert "no schedule to draw: interleaving needs" in result.stderr


def test_a_plan_that_does_not_fit_is_reported_with_a_warning(tmp_path):
    text = report(written(tmp_path, SMALL, parallelism={"tp": 1, "pp": 1}, hardware={"node_type": "p4d.24xlarge"}))
    assert "WARNING: this plan is refused: needs more memory than the device has" in text
    assert "GiB too much" in text


# --- several data centres --------------------------------------------------------------------------------------------


def test_data_centres_slow_a_step_down(tmp_path):
    file = written(tmp_path, SMALL, cross_dc=CROSS)
    text = report(file)
    for words in ("Cross-DC Configuration", "Cross-DC Impact", "800 Gbit/s", "0.0035 s", "Cross-DC degradation: "):
        assert words in text
    across, alone = document(file), document(written(tmp_path, SMALL))
    cross = across["cross_dc"]
    assert cross["step_without_s"] == alone["results"]["iteration_s"]
    assert across["results"]["iteration_s"] > alone["results"]["iteration_s"]
    assert cross["degradation_fraction"] == pytest.approx(
        across["results"]["iteration_s"] / alone["results"]["iteration_s"] - 1, rel=1e-9
    )
    assert sum(across["step"].values()) == pytest.approx(across["results"]["iteration_s"], rel=1e-9)
    # a ring of three: twice a third of the model's fp32 gradients over 100 GB/s, and five buckets' latency twice
    gradients_s = 2 * (cross["gradient_bytes"] / 3 / 100e9 + 5 * 0.0035)
    assert cross["gradient_sent_s"] == pytest.approx(gradients_s, rel=1e-9)
    assert cross["exposed_s"] + cross["hidden_s"] == pytest.approx(cross["gradient_sent_s"] + cross["weights_sent_s"])


def test_a_faster_link_between_data_centres_costs_less():
    slow, fast = (
        document(CROSS_DC, "--what-if", f"interconnect_bandwidth_gbps={gbps}")["after"]["cross_dc"]
        for gbps in (200, 2e6)
    )
    assert slow["degradation_fraction"] > fast["degradation_fraction"] > 0


def test_one_data_centre_is_no_different(tmp_path):
    one = document(written(tmp_path, SMALL, cross_dc=CROSS | {"n_dcs": 1}))
    assert one["cross_dc"] is None
    assert one["results"] == document(written(tmp_path, SMALL))["results"]


# --- options ---------------------------------------------------------------------------------------------------------


def test_what_if_prints_both_and_the_difference():
    text = report(EXAMPLE, "--what-if", "tp=4", "--what-if", "parallelism.dp=64")
    assert "WHAT IF tp = 4, parallelism.dp = 64" in text
    found = document(EXAMPLE, "--what-if", "tp=4", "--what-if", "dp=64")
    before, after = found["before"], found["after"]
    assert before == document(EXAMPLE)
    assert (before["plan"]["tp"], after["plan"]["tp"]) == (8, 4)
    rows = {(row["section"], row["what"]): row for row in found["differences"]}
    assert rows["FINAL RESULTS", "mfu"]["before"] == before["results"]["mfu"]
    assert rows["FINAL RESULTS", "mfu"]["after"] == after["results"]["mfu"]
    assert {what for section, what in rows if section == "iteration"} >= {"matmul", "tp comm", "bubble"}
    for facts in (before, after):
        assert f"{100 * facts['results']['mfu']:.2f}%" in text
        assert f"{facts['memory']['total_bytes'] / 2**30:.3f} GiB" in text


def test_what_if_points_out_that_devices_changed():
    text = report(EXAMPLE, "--what-if", "tp=4")
    assert "1,024 devices became 512; change dp as well" in text


def test_sources_are_those_of_the_equations_used(tmp_path):
    dense = {source["key"] for source in document(written(tmp_path, SMALL), "--cite")["sources"]}
    assert {"korthikanti2022", "thakur2005", "nvidia_gemm_guide"} <= dense
    experts = {source["key"] for source in document(HOME / "examples" / "mixtral_8x7b.yaml", "--cite")["sources"]}
    assert "fedus2021" in experts - dense  # mixture of experts
    text = report(EXAMPLE, "--cite")
    assert "SOURCES" in text
    assert "https://arxiv.org/abs/2205.05198" in text


def test_nothing_is_coloured_in_a_pipe_or_with_no_color():
    assert "\x1b" not in report(EXAMPLE)
    coloured = invoke(EXAMPLE, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", coloured)
    without = invoke(EXAMPLE, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1").stdout
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", without)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_narrow_and_wide_consoles(columns):
    text = invoke(EXAMPLE, COLUMNS=str(columns)).stdout
    assert max(map(len, text.splitlines())) <= max(columns, 60)
    assert re.search(r"Theoretical MFU: \d", text)


@pytest.mark.parametrize(
    "command",
    [["-m", "dlcalc.training_3d"], [str(HOME / "dlcalc" / "training_3d.py")]],
    ids=["module", "file"],
)
def test_it_runs_without_being_installed(command, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(HOME)} if command[0] == "-m" else os.environ
    ran = subprocess.run(
        [sys.executable, *command, str(HOME / "configs" / "example.yaml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path if command[0] != "-m" else HOME,
        env=env,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Theoretical MFU:" in ran.stdout


def test_help_shows_every_option():
    text = invoke("--help").stdout
    for option in ("--rank", "--scenario", "--json", "--html", "--trace", "--cite", "--what-if", "--hardware-dir"):
        assert option in text


# --- rows of a result ------------------------------------------------------------------------------------------------

STUDY = {
    "study": "both",
    "model": ["llama3-8b", "qwen3-30b-a3b"],
    "hardware": "h100",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 4096, "global_batch": 64, "framework": "megatron"},
    "space": {"micro_batch": [1, 2], "recompute": ["none", "selective", "full"]},
}
EXACT = ("step_time_s", "mfu", "hfu", "tokens_per_s_per_device", "memory_bytes")


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "space.yaml").write_text(yaml.safe_dump(STUDY))
    run_search(folder / "space.yaml", out=folder / "both", keep="all", jobs=1)
    return folder / "both"


def in_columns(found: dict[str, Any]) -> dict[str, float]:
    results = found["results"]
    return {
        "step_time_s": results["iteration_s"],
        "mfu": results["mfu"],
        "hfu": results["hfu"],
        "tokens_per_s_per_device": results["tokens_per_s_per_device"],
        "memory_bytes": found["memory"]["total_bytes"],
    }


@pytest.mark.parametrize("rank", [1, 2, 7, 60])
@pytest.mark.parametrize("scenario", ["llama3-8b", "qwen3-30b-a3b"])
def test_a_row_of_a_result_agrees_to_the_last_digit(result, scenario, rank):
    opened = open_result(result)
    name = next(name for name in opened.scenarios if scenario in name)
    capacity = 0.95 * opened.origin(name).hardware.device.hbm_bytes  # a study keeps 5 % free unless it says otherwise
    rows = [row for row in opened.rows(name) if row["memory_bytes"] <= capacity]
    row = sorted(rows, key=lambda row: (row["step_time_s"], row["plan_index"]))[rank - 1]
    found = document(result, "--rank", rank, "--scenario", scenario)
    assert in_columns(found) == {column: row[column] for column in EXACT}
    assert found["plan"] == {knob: row[knob] for knob in found["plan"]}
    assert found["refused"] == []


def test_the_best_row_is_the_one_to_look_at(result):
    found = document(result)
    assert found == document(result, "--rank", 1)
    assert any("choose another with --scenario" in note for note in found["notes"])
    summary = open_result(result).summary()["scenarios"][0]["best"][0]
    assert found["results"]["iteration_s"] == summary["step_time_s"]


def test_a_row_can_be_changed(result):
    found = document(result, "--scenario", "llama3-8b", "--what-if", "tp=2", "--what-if", "pp=1")
    assert found["after"]["hardware"]["devices"] == 16
    assert found["after"]["plan"]["dp"] == 8
    other = document(result, "--scenario", "llama3-8b", "--what-if", "hardware=b200")
    assert other["after"]["hardware"]["name"] == "b200"
    assert other["after"]["results"]["iteration_s"] < other["before"]["results"]["iteration_s"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rank", "999999"], "rows that fit"),
        (["--scenario", "gpt"], "unknown scenario 'gpt'"),
        (["--scenario", "h100"], "is part of 2 names"),
        (["--scenario", "llama3-8b", "--what-if", "tpp=2"], "did you mean tp"),
        (["--scenario", "llama3-8b", "--what-if", "tp=3"], "does not divide the 16 devices"),
        (["--scenario", "llama3-8b", "--what-if", "precision=fp9"], "precision = 'fp9' is not possible"),
    ],
)
def test_a_row_that_is_not_there(result, arguments, told):
    ran = invoke(result, *arguments)
    assert ran.exit_code == 2
    assert told in ran.stderr


def test_a_damaged_result(result, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(result, broken)
    file = next(broken.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    ran = invoke(broken)
    assert ran.exit_code == 2
    assert "damaged" in ran.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not a result of dlcalc-search" in invoke(empty).stderr


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param("{ this is: invalid yaml ][", "syntax", id="invalid YAML"),
        pytest.param("", "the file is empty", id="empty"),
        pytest.param("- a list", "must be a mapping", id="list"),
        pytest.param("model:\n  n_layers: 32\n", "required key is missing", id="incomplete"),
        pytest.param("\x00\x01\x02", "control character", id="binary"),
        pytest.param("model: &a [*a, *a]\n", "alias", id="bomb"),
    ],
)
def test_a_file_that_is_no_run(tmp_path, content, told):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    ran = invoke(file)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert told in ran.stderr
    assert str(file) in ran.stderr
    assert "Traceback" not in ran.stderr


@given(
    degrees=st.fixed_dictionaries(
        {
            "tp": st.sampled_from([1, 2, 3, 16]),
            "cp": st.sampled_from([1, 2, 8]),
            "pp": st.sampled_from([1, 2, 3, 70]),
            "dp": st.sampled_from([1, 8, 100]),
            "ep": st.sampled_from([1, 2, 64]),
            "vpp": st.sampled_from([1, 2, 12]),
            "sp": st.booleans(),
            "zero_level": st.integers(0, 3),
        }
    ),
    data=st.fixed_dictionaries(
        {
            "gbs": st.sampled_from([1, 7, 512]),
            "seqlen": st.sampled_from([1, 1000, 4096]),
            "microbatch_sz": st.sampled_from([1, 3, 64]),
        }
    ),
    model=st.sampled_from(["llama3-8b", "gpt3-175b", "deepseek-v3", "gpt-oss-20b", "mpt-7b"]),
    hardware=st.sampled_from(["h100", "p4d.24xlarge", "gb200_nvl72", "tpu_v5p"]),
    plan=st.sampled_from(
        [None, {"schedule": "dualpipe"}, {"schedule": "zb-v", "offload_layers": 3}, {"overlap_tp": True}]
    ),
)
@settings(max_examples=40)
def test_every_run_that_can_be_written_gets_an_answer(degrees, data, model, hardware, plan, tmp_path_factory):
    """A report, with a warning where the plan cannot run; never a traceback, never a NaN."""
    run = {"model": model, "hardware": hardware, "parallelism": degrees, "data": data} | (
        {"plan": plan} if plan else {}
    )
    file = tmp_path_factory.mktemp("any") / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    text = report(file)
    assert not re.search(r"\b(nan|inf)\b", text.lower())
    assert ("WARNING" in text) == bool(document(file)["refused"])


def test_a_truncated_example(tmp_path):
    text = EXAMPLE.read_text()
    for cut in range(0, len(text), 23):
        file = tmp_path / "cut.yaml"
        file.write_text(text[:cut])
        assert invoke(file).exit_code in (0, 2)


def test_a_missing_file_and_what_was_meant():
    ran = invoke(HOME / "examples" / "lama3_70b.yaml")
    assert ran.exit_code == 2
    assert "does not exist; did you mean" in ran.stderr
    assert "llama3_70b.yaml" in ran.stderr


def test_rank_is_of_a_result():
    ran = invoke(EXAMPLE, "--rank", 2)
    assert ran.exit_code == 2
    assert "--rank picks a row of a result" in ran.stderr


def test_files_that_cannot_be_written(tmp_path):
    for option in ("--html", "--trace"):
        ran = invoke(EXAMPLE, option, tmp_path / "nowhere" / "file")
        assert ran.exit_code == 2
        assert "cannot be written" in ran.stderr


# --- the trace -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Any:
    file = tmp_path_factory.mktemp("trace") / "step.json"
    assert "ui.perfetto.dev" in invoke(EXAMPLE, "--trace", file).stderr
    return json.loads(file.read_text())


def test_the_trace_is_what_viewers_read(trace):
    assert trace["displayTimeUnit"] == "ms"
    for event in trace["traceEvents"]:
        assert event["ph"] in ("M", "X")
        assert isinstance(event["pid"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] >= 0
            assert {"name", "cat", "tid"} <= event.keys()
    titles = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert [title.split(" (")[0] for title in titles] == [f"stage {stage}" for stage in range(4)]


def test_nothing_overlaps_on_a_track(trace):
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["tid"] == 0:
            tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert len(tracks) == 4
    for spans in tracks.values():
        spans.sort()
        assert all(earlier[1] <= later[0] + 1e-3 for earlier, later in pairwise(spans))


def test_every_stage_passes_every_micro_batch_both_ways(trace):
    for category in ("forward", "backward"):
        found = [event for event in trace["traceEvents"] if event.get("cat") == category]
        assert len(found) == 4 * 5 * 32  # stages, chunks, micro-batches
    names = {event["name"] for event in trace["traceEvents"] if event.get("cat") == "communication"}
    assert {"gather parameters", "reduce gradients", "send 0"} <= names


def test_the_trace_ends_with_the_step(trace):
    """The replay of interleaved 1f1b is exact for equal stages; here the last one is a little slower."""
    end_s = max(event["ts"] + event["dur"] for event in trace["traceEvents"] if event["ph"] == "X") / 1e6
    assert end_s == pytest.approx(trace["otherData"]["step_time_s"], rel=0.02)


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    pytest.importorskip("plotly", reason="the page is drawn with plotly")
    file = tmp_path_factory.mktemp("page") / "report.html"
    report(EXAMPLE, "--html", file, "--cite", "--what-if", "tp=4")
    return file


class Tags(HTMLParser):
    """Tags that are open, and text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def test_the_page_says_what_the_terminal_says(page):
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert tags.open == []
    text = " ".join(tags.text)
    for line in report(EXAMPLE).splitlines():
        if line.startswith(("Total Memory", "Theoretical", "Interval", "Pipeline bubble", "Usable memory")):
            assert line in text
    assert all(heading in text for heading in HEADINGS)


def test_the_page_needs_nothing_else(page):
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert all(link.startswith("#") for link in tags.links)
    assert page.read_text(encoding="utf-8").count("plotly.js v") == 1  # embedded once
    assert page.stat().st_size < 10e6


def test_the_page_quotes_what_users_write(tmp_path):
    pytest.importorskip("plotly", reason="the page is drawn with plotly")
    file = tmp_path / "<img src=x onerror=alert(1)>.yaml"
    file.write_text(EXAMPLE.read_text())
    target = tmp_path / "page.html"
    report(file, "--html", target)
    text = target.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_without_plotly_the_page_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    ran = invoke(EXAMPLE, "--html", tmp_path / "page.html")
    assert ran.exit_code == 2
    assert "pip install 'dlcalc[report]'" in ran.stderr
    assert not (tmp_path / "page.html").exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_every_chart_draws_in_a_real_browser_without_a_network(page, tmp_path):
    ran = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=10000",
            f"--user-data-dir={tmp_path}", "--window-size=1280,1000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert not re.findall(r"CONSOLE.*(?:Uncaught|Error|Refused).*", ran.stderr)
    charts = set(re.findall(r'id="chart-(\w+)"', ran.stdout))
    assert charts == {"what_if", "memory_stages", "communication", "pipeline", "block", "iteration"}
    for chart in charts:
        drawn = ran.stdout.split(f'id="chart-{chart}"', 1)[1].split("</section>", 1)[0]
        assert "main-svg" in drawn, chart
        assert drawn.count('class="point"') >= 4, chart
