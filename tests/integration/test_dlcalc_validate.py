"""dlcalc-validate as its users meet it: measured runs in; tables, a JSON object, estimates and a page out."""

from __future__ import annotations

import builtins
import csv
import io
import json
import re
import string
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcalc.dlcalc_validate import main
from dlcalc.specs.load import config_dir
from dlcalc.validation import compare
from dlcalc.validation.compare import PREDICTION_COLUMNS
from dlcalc.validation.rows import COLUMNS, HONOURED, WITHOUT_EFFECT

MEASURED = config_dir() / "measured"
HEADER = (
    "source,case,model,hardware,gpus,gpus_per_node,internode_gbps_per_gpu,precision,framework,seq_len,global_batch,"
    "micro_batch,tp,pp,dp,recompute,attention,extras,step_time_s,memory_gib,oom,citation"
)
EFFECTLESS = min(WITHOUT_EFFECT)
# three plans of one sweep that ran, one that ran out of memory, and rows of other sweeps
ROWS = """\
lab,a,small,h100,16,8,400,bf16,megatron,4096,128,1,1,1,16,none,,colour=blue,{a},40,0,x
lab,b,small,h100,16,8,400,bf16,megatron,4096,128,1,2,1,8,none,,,{b},,0,x
lab,c,small,h100,16,8,400,bf16,megatron,4096,128,1,4,1,4,none,,,{c},,0,x
lab,d,small,h100,16,8,400,bf16,megatron,4096,128,128,1,1,16,none,,,,,1,x
other,e,small,abacus,16,8,400,bf16,megatron,4096,128,1,1,1,16,none,,,1.0,,0,x
other,f,small,h100,16,8,400,bf16,home made,4096,128,1,1,1,16,none,,{effectless}=1,1.0,,0,x
"""
SMALL = {
    "n_layers": 24, "hidden_size": 2048, "n_heads": 16, "ffn_hidden_size": 8192, "vocab_size": 50304,
    "gated_mlp": False, "favourite_colour": "blue",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLCALC_HARDWARE_PATH", raising=False)
    Path("models.yaml").write_text(yaml.safe_dump({"small": SMALL}))
    write_runs(a=1.0, b=1.1, c=1.3)


def write_runs(**times):
    Path("runs.csv").write_text(f"{HEADER}\n{ROWS.format(**times, effectless=EFFECTLESS)}")


def validate(*arguments, exit_code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return done


def answer(*arguments):
    """The --json object, which is all that is on stdout."""
    return json.loads(validate(*arguments, "--json").stdout, parse_constant=pytest.fail)


def predictions(file="pred.csv"):
    with Path(file).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# --- estimates as a file ----------------------------------------------------------------------------------------


def test_every_row_has_its_estimate_in_order():
    validate("runs.csv", "--models", "models.yaml", "--out", "pred.csv")
    rows = predictions()
    assert list(rows[0]) == list(PREDICTION_COLUMNS)
    assert [row["case"] for row in rows] == list("abcdef")
    for row in rows[:4]:
        low, middle, high = (float(row[f"predicted_step_time{which}_s"]) for which in ("_low", "", "_high"))
        assert 0 < low < middle < high
        assert float(row["predicted_memory_gib"]) > 1
    assert [row["predicted_fits"] for row in rows] == ["true", "true", "true", "false", "", "true"]
    assert re.fullmatch(
        r"dp x micro_batch does not divide the global batch; needs [\d.]+ GiB of [\d.]+ GiB", rows[3]["refused_reason"]
    )
    assert rows[4] == dict.fromkeys(PREDICTION_COLUMNS, "") | {
        "case": "e",
        "refused_reason": "unknown hardware 'abacus'",
    }
    assert rows[0]["refused_reason"] == rows[5]["refused_reason"] == ""


def test_several_files_are_one_list():
    Path("more.csv").write_text(f"{HEADER}\n{ROWS.splitlines()[1].format(b=1)}\n")
    validate("more.csv", "runs.csv", "--models", "models.yaml", "--out", "pred.csv")
    assert [row["case"] for row in predictions()] == list("babcdef")


def test_estimates_do_not_depend_on_what_stands_beside_them():
    """Rows that share all but their plan are estimated together."""
    validate("runs.csv", "--models", "models.yaml", "--out", "together.csv")
    together = predictions("together.csv")
    lines = Path("runs.csv").read_text().splitlines()
    for line, expected in zip(lines[1:], together, strict=True):
        Path("one.csv").write_text(f"{lines[0]}\n{line}\n")
        validate("one.csv", "--models", "models.yaml", "--out", "one_pred.csv")
        assert predictions("one_pred.csv") == [expected]


def test_allocated_memory_is_less_than_reserved():
    """The same run, with its measured peak said to be of tensors, of the allocator, and of the whole device."""
    line = ROWS.splitlines()[0].format(a=1)
    kinds = ("max_allocated", "max_reserved", "nvidia-smi")
    lines = [line.replace("colour=blue", f"memory_kind={kind}") for kind in kinds]
    Path("runs.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    validate("runs.csv", "--models", "models.yaml", "--out", "pred.csv")
    allocated, reserved, device = (float(row["predicted_memory_gib"]) for row in predictions())
    assert allocated < reserved < device


# --- the summary ------------------------------------------------------------------------------------------------


def test_the_summary_is_right_where_the_measured_times_are_the_estimates():
    validate("runs.csv", "--models", "models.yaml", "--out", "pred.csv")
    times = {row["case"]: row["predicted_step_time_s"] for row in predictions()}
    write_runs(**{case: times[case] for case in "abc"})
    summary = answer("runs.csv", "--models", "models.yaml")

    assert (summary["runs"], summary["estimated"], summary["timed"]) == (6, 5, 4)
    lab, other = summary["sources"]
    assert (lab["source"], lab["runs"], other["source"], other["runs"]) == ("lab", 4, "other", 2)
    assert lab["step_time"]["worst"] == pytest.approx(0, abs=1e-5)
    assert lab["interval_coverage"] == 1.0
    assert lab["out_of_memory"] == {
        "runs": 4, "accuracy": 1.0, "ran_and_fits": 3, "ran_but_refused": 0, "out_and_refused": 1, "out_but_fits": 0,
    }  # fmt: skip
    assert lab["memory"]["runs"] == 1
    (sweep,) = summary["sweeps"]
    assert (sweep["model"], sweep["timed"], sweep["out_of_memory"]) == ("small", 3, 1)
    assert (sweep["spearman"], sweep["regret_at_1"], sweep["regret_at_3"]) == (1.0, 0.0, 0.0)
    assert lab["ranking"]["sweeps"] == 1


def test_the_summary_is_right_where_the_measured_times_are_off():
    validate("runs.csv", "--models", "models.yaml", "--out", "pred.csv")
    estimated = {row["case"]: float(row["predicted_step_time_s"]) for row in predictions() if row["case"] in "abc"}
    order = sorted(estimated, key=estimated.__getitem__)
    # the plan ranked first took 1.2 of the best one's time, which is ranked second; the third 1.5
    measured = dict(zip(order, (1.2, 1.0, 1.5), strict=True))
    write_runs(**measured)
    summary = answer("runs.csv", "--models", "models.yaml")

    errors = sorted(abs(estimated[case] / measured[case] - 1) for case in "abc")
    lab = summary["sources"][0]
    assert lab["step_time"]["median"] == pytest.approx(errors[1], rel=1e-5)
    assert lab["step_time"]["mean"] == pytest.approx(sum(errors) / 3, rel=1e-5)
    assert lab["step_time"]["worst"] == pytest.approx(errors[2], rel=1e-5)
    (sweep,) = summary["sweeps"]
    assert sweep["spearman"] == pytest.approx(0.5)  # ranks 1 2 3 against 2 1 3: 1 - 6 x 2 / 24
    assert sweep["regret_at_1"] == pytest.approx(0.2)
    assert sweep["regret_at_3"] == 0.0


def test_what_was_not_as_written_is_said_once():
    summary = answer("runs.csv", "--models", "models.yaml")
    assert summary["not_estimated"] == [{"text": "unknown hardware 'abacus'", "runs": 1}]
    assert summary["remarks"] == [{"text": "framework home made taken as megatron", "runs": 1}]
    assert summary["ignored_extras"] == ["colour"]
    assert summary["extras_without_effect"] == [EFFECTLESS]
    assert summary["ignored_model_keys"] == ["favourite_colour"]
    assert summary["refused_though_they_ran"] == []


def test_a_run_that_breaks_a_rule_of_ours_keeps_its_estimate_and_the_rule():
    line = ROWS.splitlines()[0].format(a=1).replace(",4096,128,1,", ",4096,128,3,")  # 3 x 16 does not divide 128
    Path("runs.csv").write_text(f"{HEADER}\n{line}\n")
    summary = answer("runs.csv", "--models", "models.yaml", "--out", "pred.csv")
    (row,) = predictions()
    assert float(row["predicted_step_time_s"]) > 0
    assert row["predicted_fits"] == "true"  # the rule is not one of memory
    assert row["refused_reason"] == "dp x micro_batch does not divide the global batch"
    assert summary["refused_though_they_ran"] == [{"text": row["refused_reason"], "runs": 1}]


def test_the_report_says_it_in_tables():
    text = validate("runs.csv", "--models", "models.yaml").stdout
    assert "\x1b" not in text
    for part in (
        *("6 measured runs of 2 sources, 5 estimated", "Step time", "Memory", "Out of memory: plans", "Sweeps"),
        *("Ranking within sweeps", "in 80 % interval", "not estimated: unknown hardware 'abacus' (1 row)"),
        *("framework home made taken as megatron (1 row)", "keys of models, ignored: favourite_colour"),
    ):
        assert part in text
    assert "no measured run" not in text


def test_a_table_says_nothing_of_sources_that_have_nothing_in_it():
    text = validate("runs.csv", "--models", "models.yaml").stdout
    memory = text[text.index("Memory") : text.index("Out of memory: plans")]
    assert "lab" in memory
    assert "other" not in memory


# --- the shipped runs -------------------------------------------------------------------------------------------


def test_without_files_the_shipped_runs_are_compared():
    summary = answer("--out", "pred.csv")
    assert summary["runs"] == summary["estimated"] == 1251 == len(predictions())
    assert summary["overall"]["source"] == "all"
    assert summary["seconds"] < 10
    assert summary["parts_of_a_step"] == 5
    assert {row["source"] for row in summary["sources"]} >= {"hagemann2023", "vtrain_single", "llmfoundry"}
    assert (
        sum(row["step_time"]["runs"] for row in summary["sources"]) == summary["overall"]["step_time"]["runs"] == 1079
    )
    assert sum(row["source"] == "hagemann2023" for row in summary["sweeps"]) == 3
    assert summary["remarks"] == summary["not_estimated"] == []


def test_shipped_models_are_known_where_runs_name_no_file_of_models():
    Path("runs.csv").write_text(f"{HEADER}\n{ROWS.splitlines()[0].format(a=1).replace('small', 'mpt-7b')}\n")
    assert answer("runs.csv")["estimated"] == 1


def test_models_of_ones_own_do_not_hide_the_built_in_ones():
    Path("runs.csv").write_text(f"{HEADER}\n{ROWS.splitlines()[0].format(a=1).replace('small', 'llama3-8b')}\n")
    assert answer("runs.csv", "--models", "models.yaml")["estimated"] == 1


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else():
    pytest.importorskip("plotly")
    validate("runs.csv", "--models", "models.yaml", "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    for part in (
        "Plotly.newPlot",
        "measured step time (s)",
        "estimated step time (s)",
        "error of step time (%)",
        "Remarks",
    ):
        assert part in page
    assert page.count("Plotly.newPlot(") >= 3  # time, memory, and a plot for tp
    assert 'text":"tp"' in page.replace('"text": "', '"text":"')


def test_names_in_a_page_are_text_and_nothing_more():
    pytest.importorskip("plotly")
    Path("runs.csv").write_text(
        f"{HEADER}\n{ROWS.format(a=1, b=1, c=1, effectless=EFFECTLESS)}".replace(
            "lab,a", "<b>lab</b>,<script>alert(1)</script>"
        )
    )
    validate("runs.csv", "--models", "models.yaml", "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "<b>lab</b>" not in page


def test_without_plotly_only_the_page_is_missing(monkeypatch):
    real = builtins.__import__

    def without_plotly(name, *rest, **more):
        if name.split(".")[0] == "plotly":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    done = validate("runs.csv", "--models", "models.yaml", "--html", "page.html", "--out", "pred.csv", exit_code=2)
    assert done.stderr == "error: --html draws with plotly, which is not installed; run: pip install 'dlcalc[report]'\n"
    assert not Path("page.html").exists()
    assert not Path("pred.csv").exists()
    validate("runs.csv", "--models", "models.yaml")


# --- hardware of one's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["option", "environment", "path"])
def test_rows_may_name_hardware_of_ones_own(how, monkeypatch):
    Path("mine").mkdir()
    Path("mine/abacus.yaml").write_text("name: abacus\nextends: h100\ndescription: ours\n")
    options = ["--hardware-dir", "mine"] if how == "option" else []
    if how == "environment":
        monkeypatch.setenv("DLCALC_HARDWARE_PATH", "mine")
    if how == "path":
        Path("runs.csv").write_text(Path("runs.csv").read_text().replace("abacus", "mine/abacus.yaml"))
    assert answer("runs.csv", "--models", "models.yaml", *options)["estimated"] == 6


# --- wrong input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nowhere.csv",), "nowhere.csv: cannot be read: No such file or directory"),
        (("models.yaml",), "models.yaml:1: not a CSV of measured runs"),
        (("empty.csv",), "empty.csv: no measured run in it"),
        (("runs.csv", "--models", "nowhere.yaml"), "nowhere.yaml: cannot be read: No such file or directory"),
        (("runs.csv", "--models", "runs.csv"), "runs.csv: "),
        (("runs.csv", "--models", "models.yaml", "--out", "no/pred.csv"), "no/pred.csv: cannot be written"),
        (("runs.csv", "--hardware-dir", "nowhere"), "'nowhere' does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, complaint):
    Path("empty.csv").write_text(f"{HEADER}\n")
    done = validate(*arguments, exit_code=2)
    assert complaint in done.stderr
    assert done.stdout == ""


def test_a_page_that_cannot_be_written_is_one_line():
    pytest.importorskip("plotly")
    done = validate("runs.csv", "--models", "models.yaml", "--html", "no/page.html", exit_code=2)
    assert "no/page.html: cannot be written" in done.stderr


def test_a_bug_of_ours_costs_its_row_alone(monkeypatch):
    real = compare.estimate

    def fails_on_many_devices(model, hardware, recipe, plans, **more):
        if (plans.tp == 4).any():
            raise KeyError("boom")
        return real(model, hardware, recipe, plans, **more)

    monkeypatch.setattr(compare, "estimate", fails_on_many_devices)
    validate("runs.csv", "--models", "models.yaml", "--out", "pred.csv")
    rows = predictions()
    assert rows[2]["refused_reason"] == f"{compare.BUG}: KeyError: 'boom'"
    assert rows[2]["predicted_step_time_s"] == ""
    assert all(row["predicted_step_time_s"] for row in (*rows[:2], rows[3]))


# --- whatever is in a file --------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.sampled_from(
        ["", "0", "1", "2", "3", "4", "8", "16", "64", "1024", "-1", "1e30", "nan", "inf", "7.5", "1,024", "x"]
    ),
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(str),
)
WORDS = st.sampled_from([
    "", "none", "full", "selective", "other:", "other:full block num_layers=3", "other:mlp", "true", "false", "maybe",
    "h100", "b200", "a100_40gb", "gb200", "mi300x", "tpu_v5p", "abacus", "../x.yaml", "/",
    "llama3-8b", "qwen3-30b-a3b", "deepseek-v2", "small", "gpt-oss-20b", "bf16", "fp8", "mxfp8", "nvfp4", "fp16",
    "megatron", "torchtitan", "deepspeed", "fsdp_composer", "unfused", "flash3", "te_flash", "\x00", "'\"", "ä\u2028",
])  # fmt: skip
EXTRA_VALUES = st.one_of(NUMBERS, WORDS, st.sampled_from([
    "9,7", "8*4", "Ettt|tt|L", "E(t|)*30L", '[["decoder"]]', "[", "[1]", "(", "a:b+c", "full_iteration", "attn+moe",
]))  # fmt: skip
EXTRAS = st.dictionaries(
    st.one_of(st.sampled_from(sorted(HONOURED | WITHOUT_EFFECT)), st.text(string.ascii_letters, max_size=5)),
    EXTRA_VALUES,
    max_size=6,
).map(lambda pairs: ";".join(f"{key}={value}" for key, value in pairs.items()))
GOOD = {
    "model": st.sampled_from(["llama3-8b", "qwen3-30b-a3b", "deepseek-v2", "gpt-oss-20b", "small"]),
    "hardware": st.sampled_from(["h100", "b200", "a100", "gb200", "mi300x", "tpu_v5p"]),
    "precision": st.sampled_from(["bf16", "fp8", "fp16"]),
    "framework": st.sampled_from(["megatron", "torchtitan", "fsdp_composer", "megatron_bridge", "home made"]),
    **{key: st.sampled_from(["1", "2", "4", "8"]) for key in ("tp", "pp", "cp", "ep", "vpp", "micro_batch")},
    **{key: st.sampled_from(["64", "512", "4096"]) for key in ("gpus", "seq_len", "global_batch")},
}  # fmt: skip
"""Values of which many make a run that can be estimated."""
ROW = st.fixed_dictionaries(
    {
        column: st.one_of(GOOD[column], GOOD[column], GOOD[column], st.one_of(NUMBERS, WORDS)) if column in GOOD
        else EXTRAS if column == "extras" else st.one_of(st.just(""), NUMBERS, WORDS)
        for column in COLUMNS
    }
)  # fmt: skip


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def check_predictions(n_rows):
    rows = predictions()
    assert len(rows) == n_rows
    for row in rows:
        assert compare.BUG not in row["refused_reason"]
        times = [row[f"predicted_step_time{which}_s"] for which in ("_low", "", "_high")]
        assert (times == ["", "", ""]) or (0 < float(times[0]) <= float(times[1]) <= float(times[2]) < float("inf"))
        assert row["predicted_fits"] in ("", "true", "false")
        assert row["refused_reason"] or times[1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(ROW, min_size=1, max_size=6))
def test_every_row_gets_a_prediction_whatever_it_says(rows):
    Path("fuzz.csv").write_text(as_csv(rows), encoding="utf-8", newline="")
    summary = answer("fuzz.csv", "--models", "models.yaml", "--out", "pred.csv")
    assert summary["runs"] == len(rows)
    check_predictions(len(rows))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_file_is_compared_or_refused_in_one_line(data):
    """Bytes of a good file replaced, removed and doubled."""
    content = bytearray((MEASURED / "narayanan2021.csv").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 40))
        content[start : start + length] = data.draw(st.binary(max_size=40))
        if not content:
            break
    Path("fuzz.csv").write_bytes(bytes(content))
    done = CliRunner().invoke(main, ["fuzz.csv", "--out", "pred.csv", "--json"], catch_exceptions=False)
    if done.exit_code == 2:
        assert done.stderr.startswith("error: fuzz.csv:")
        assert done.stderr.count("\n") == 1
    else:
        assert done.exit_code == 0
        check_predictions(json.loads(done.stdout)["runs"])


MODEL_KEYS = sorted([
    *SMALL, "n_kv_heads", "head_dim", "n_experts", "top_k", "expert_ffn_hidden_size", "swa_every", "norm", "mtp_layers",
    "first_dense_layers", "kv_lora_rank", "sliding_window", "n_shared_experts", "max_seq",
])  # fmt: skip
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**25),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(MODEL_KEYS), ODD, max_size=3))
def test_models_may_say_anything(odd):
    Path("models.yaml").write_text(yaml.safe_dump({"small": {**SMALL, **odd}, "odd": odd}))
    assert answer("runs.csv", "--models", "models.yaml", "--out", "pred.csv")["runs"] == 6
    check_predictions(6)
