"""What a user reads: complete, within the terminal's width, and free of anything a pipe would choke on."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from dlcalc.report.listings import print_dry_run, print_hardware, print_models
from dlcalc.report.plan_words import plan_words, shared_and_own
from dlcalc.report.search_report import print_search
from dlcalc.report.summary import miss_sentence, nothing_fits
from dlcalc.report.terminal import SearchProgress, make_console
from dlcalc.utils import units

GIB = 2.0**30
KNOBS = {
    "tp": 8, "cp": 1, "pp": 4, "dp": 8, "ep": 1, "etp": 1, "vpp": 5, "schedule": "interleaved", "micro_batch": 1,
    "recompute": "none", "recompute_layers": -1, "zero_stage": 1, "dp_replicate": 1, "sequence_parallel": True,
    "overlap_grad": True, "overlap_param": True, "overlap_tp": False, "overlap_ep": False, "offload_optimizer": False,
    "cp_exchange": "ring", "offload_layers": 0, "split": "even",
}  # fmt: skip


def row(rank, **changes):
    """A plan that fits; a step takes 12.00 s, 12.03 s, ..."""
    estimated = {
        "rank": rank, "step_time_s": 11.97 + 0.03 * rank, "step_time_low_s": 10.8, "step_time_high_s": 13.4,
        "mfu": 0.472, "hfu": 0.48, "tokens_per_s_per_device": 2662.0,
        "memory_bytes": 61.3 * GIB, "headroom_bytes": 17.8 * GIB, "days": None, "cost_usd": None,
    }  # fmt: skip
    return KNOBS | estimated | changes


def scenario(name="llama3-70b on 256 h100, bf16", rows=None, **changes):
    rows = [row(1), row(2, tp=4, dp=16), row(3, micro_batch=2)] if rows is None else rows
    made = {
        "name": name, "model": "llama3-70b", "hardware": "h100", "devices": 256, "precision": "bf16",
        "framework": "megatron", "seq_len": 8192, "global_batch": 1024, "mfu_convention": "full_attention",
        "n_plans": 10_000, "n_fit": 4_000, "refused": {"needs more memory than the device has": 6_000}, "best": rows,
        "breakdown": {
            "time_s": {"matmul_s": 9.0, "tp_comm_s": 2.0, "bubble_s": 1.0},
            "memory_bytes": {"weights_bytes": 30 * GIB, "activations_bytes": 31.3 * GIB},
        },
        "memory_usable_bytes": 79.1 * GIB, "memory_limit_bytes": 75.1 * GIB,
        "n_not_told_apart": len(rows), "worth_measuring": rows[:2],
        "n_within_2_percent": len(rows), "within_2_percent": rows, "nearest_misses": [],
    }  # fmt: skip
    return made | changes


def hopeless(name="llama3-70b on 8 h100, bf16"):
    """A scenario in which nothing fits."""
    miss = KNOBS | {"recompute": "full", "memory_bytes": 83.1 * GIB, "over_bytes": 8.0 * GIB, "reasons": ["memory"]}
    misses = [miss, miss | {"tp": 4, "memory_bytes": 90 * GIB, "over_bytes": 14.9 * GIB}]
    return scenario(
        name, [], n_fit=0, refused={"memory": 10_000, "layers": 400}, breakdown=None, n_within_2_percent=0,
        nearest_misses=misses,
    )  # fmt: skip


def summary(*scenarios, sort="mfu"):
    n_plans = sum(each["n_plans"] for each in scenarios)
    n_fit = sum(each["n_fit"] for each in scenarios)
    return {
        "study": "my-study", "sort": sort, "n_plans": n_plans, "n_fit": n_fit, "seconds": 0.5,
        "n_refused": n_plans - n_fit,
        "plans_per_s": 2 * n_plans, "peak_rss_bytes": 400 * 2**20, "result": "results/my-study",
        "scenarios": list(scenarios),
    }  # fmt: skip


def printed(show, *arguments, width=120):
    stream = io.StringIO()
    console = make_console(stream)
    console.width = width
    show(*arguments[:1], console, *arguments[1:])
    return stream.getvalue()


def shown(*scenarios, top=10, width=120, sort="mfu"):
    return printed(print_search, summary(*scenarios, sort=sort), top, width=width)


def one_line(text):
    return " ".join(text.split())


# --- one scenario -----------------------------------------------------------------------------------------------


def test_the_best_plan_is_said_in_one_sentence():
    text = one_line(shown(scenario()))
    assert (
        "Fastest: tp8 pp4 vpp5 dp8 mb1 interleaved zero1 sp, no recompute, overlap grad+param: 12.00 s per step "
        "(80 % sure: 10.8 s to 13.4 s), 47.2 % MFU (full attention), 2,662 tokens/s per device, 61.3 of 79.1 GiB."
    ) in text
    assert "1,024 sequences of 8,192 tokens" in text


def test_what_only_a_run_decides_is_said():
    rows = [row(1), row(2, tp=4, dp=16)]
    text = one_line(shown(scenario(rows=rows, n_not_told_apart=1234)))
    assert "1,234 plans cannot be told apart from the best by these estimates. Worth measuring on the cluster: " in text
    assert re.search(r"on the cluster: tp8 [^;]*; tp4 [^;]*\.", text)
    assert "told apart" not in shown(scenario(rows=rows[:1], n_not_told_apart=1))
    more = one_line(shown(scenario(rows=rows, n_not_told_apart=1000) | {"more_not_told_apart": True}))
    assert "1,000 or more plans cannot be told apart" in more


def test_days_and_cost_are_said_when_there_is_a_token_budget():
    paid = [row(1, days=42.31, cost_usd=1_234_000.0), row(2, tp=4, days=42.4, cost_usd=1_237_000.0)]
    text = shown(scenario(rows=paid))
    assert "42.3 days for the token budget, $1.23 M." in one_line(text)
    assert re.search(r"step s +MFU %.* days +cost", text)
    assert "days" not in shown(scenario())
    assert "cost" not in shown(scenario())


def test_knobs_that_all_plans_share_are_said_once():
    text = shown(scenario())
    heading = one_line(text[text.index("Best 3 plans") : text.index("step s")])
    assert "all with pp4 vpp5 interleaved zero1 sp, no recompute, overlap grad+param" in heading
    table = text[text.index("MFU %") : text.index("Where the step goes")]
    assert [line.split()[:4] for line in table.splitlines()[2:5]] == [
        ["1", "tp8", "dp8", "mb1"],
        ["2", "tp4", "dp16", "mb1"],
        ["3", "tp8", "dp8", "mb2"],
    ]


def test_no_more_plans_are_printed_than_were_asked_for():
    rows = [row(rank, dp=rank) for rank in range(1, 9)]
    assert "Best 4 plans" in shown(scenario(rows=rows), top=4)
    assert "dp5 " not in shown(scenario(rows=rows, within_2_percent=[]), top=4)
    assert "Best 8 plans" in shown(scenario(rows=rows), top=20)


def test_bars_are_shares_of_the_step_and_of_the_memory():
    text = shown(scenario(), width=80)
    assert re.search(r"matmul +9\.000 s 75\.0 % █{24}\n", text)
    assert re.search(r"tp comm +2\.000 s 16\.7 % █+", text)
    assert re.search(r"bubble +1\.000 s +8\.3 % █+", text)
    assert re.search(r"activations 31\.30 GiB 51\.1 %", text)
    assert "17.8 free" in text


def test_terms_too_small_to_see_are_added_up():
    terms = {"matmul_s": 10.0, "a_s": 0.01, "b_s": 0.02, "unused_s": 0.0}
    text = shown(scenario(breakdown={"time_s": terms, "memory_bytes": {"weights_bytes": 1.0}}))
    assert re.search(r"2 smaller +0\.030 s +0\.3 %", text)
    assert "unused" not in text


def test_fast_steps_are_in_milliseconds():
    text = shown(scenario(rows=[row(1, step_time_s=0.0123), row(2, step_time_s=0.0124, tp=2)]))
    assert "step ms" in text
    assert "12.30" in text
    assert "12.30 ms per step" in text


def test_refusals_are_counted_by_reason():
    text = shown(scenario())
    assert "Refused: 6,000 of 10,000 plans\n" in text
    assert re.search(r"6,000 +60\.0 +needs more memory than the device has", text)


def test_free_is_what_is_usable_less_what_a_plan_needs_and_the_limit_is_named():
    """17.8 GiB free of 79.1 beside 61.3 needed, whatever the study keeps free."""
    text = one_line(shown(scenario()))
    assert "61.3 of 79.1 GiB" in text
    assert "Where the memory goes (61.3 GiB, 17.8 free)" in text
    assert "Memory: limit 75.1 GiB, as 5.1 % of the memory is kept free." in text
    assert "of 75.1" not in text
    everything = one_line(shown(scenario(memory_limit_bytes=79.1 * GIB)))
    assert "Memory: limit 79.1 GiB, which is all that is usable." in everything


@pytest.mark.parametrize(
    ("sort", "first", "by"),
    [
        ("mfu", "Fastest: tp8", "by MFU"),
        ("step_time", "Fastest: tp8", "by step time"),
        ("cost", "Cheapest, as it is the fastest: tp8", "by cost"),
        ("memory", "Least memory: tp8", "by memory"),
    ],
)
def test_headings_say_what_plans_are_sorted_by(sort, first, by):
    text = one_line(shown(scenario(), scenario("another"), sort=sort))
    assert f"my-study: the best plan of each scenario {by}, all with" in text
    assert f"{first} pp4" in text
    assert f"Best 3 plans {by}, all with" in text


def test_beside_the_plan_that_needs_least_memory_stands_the_fastest():
    """Which is none of the best by memory; what is within 2 % is so of the fastest."""
    rows = [row(1, memory_bytes=20 * GIB, headroom_bytes=59.1 * GIB, step_time_s=30.0)]
    text = one_line(shown(scenario(rows=rows, within_2_percent=[row(1, tp=4)], n_within_2_percent=7), sort="memory"))
    assert "Least memory: tp8" in text
    assert "The fastest: tp4 pp4 vpp5 dp8 mb1" in text
    assert "12.00 s per step, 61.3 of 79.1 GiB; 6 more within 2 % of it." in text
    assert "of the best" not in text.replace("the best plan of", "")


def test_plans_refused_twice_are_explained():
    text = shown(scenario(refused={"memory": 5_000, "heads": 2_000}))
    assert "a plan may be refused for several reasons" in text
    assert text.index("5,000") < text.index("2,000")


def test_plans_as_good_as_the_best_are_counted_with_what_they_vary():
    rows = [row(1), row(2, recompute="full"), row(3, tp=16, headroom_bytes=30 * GIB)]
    text = one_line(shown(scenario(rows=rows, n_within_2_percent=3)))
    assert "2 more plans are within 2 % of the best, with tp8/16, recompute=full/none." in text
    assert "The roomiest of them: tp16 pp4 vpp5 dp8" in text
    assert "30.0 GiB free instead of 17.8, 0.5 % slower." in text
    assert "1 more plan is within" in one_line(shown(scenario(rows=rows[:2])))
    assert "within 2 % of the best, the first 3 of these plans with tp8/16" in one_line(
        shown(scenario(rows=rows, n_within_2_percent=4000))
    )
    assert "within 2 %" not in shown(scenario(rows=rows[:1]))


# --- nothing fits -----------------------------------------------------------------------------------------------


def test_nothing_fits_says_what_nearly_did():
    text = shown(hopeless())
    assert "No plan fits: all 10,000 were refused." in text
    assert re.search(r"\n10,000 +100\.0 +memory\n", re.sub(" +\n", "\n", text))
    assert "Nearest misses, all with pp4 vpp5 dp8 mb1 interleaved zero1 sp, full recompute" in one_line(text)
    assert re.search(r"tp8 +83\.1 +75\.1 +8\.0 +memory", text)
    assert re.search(r"tp4 +90\.0 +75\.1 +14\.9 +memory", text)


def test_a_study_in_which_nothing_fits_is_an_error_of_its_own():
    error = nothing_fits(summary(hopeless()))
    assert error.exit_code == 3
    assert str(error) == (
        "none of 10,000 plans fits: 10,000 memory; 400 layers\n"
        "nearest in llama3-70b on 8 h100, bf16: tp=8 pp=4, micro_batch=1, full recompute needs 83.1 GiB, "
        "limit 75.1 GiB"
    )
    assert nothing_fits(summary(hopeless(), scenario())) is None


def test_a_miss_that_memory_does_not_explain_gives_its_reasons():
    miss = KNOBS | {"memory_bytes": GIB, "over_bytes": -GIB, "reasons": ["layers", "heads"], "tp": 1, "pp": 1}
    assert miss_sentence(hopeless() | {"nearest_misses": [miss]}).endswith(
        "dp only, micro_batch=1 is refused: layers; heads"
    )
    assert miss_sentence(scenario()) is None


# --- several scenarios ------------------------------------------------------------------------------------------


def test_several_scenarios_begin_with_an_overview():
    scenarios = [scenario(f"s-{devices}", [row(1, dp=devices // 32)]) for devices in (64, 128, 256)]
    text = shown(*scenarios, hopeless("s-8"))
    overview = text[: text.index("Fastest")]
    assert "my-study: the best plan of each scenario by MFU, all with tp8 pp4 vpp5 mb1" in one_line(overview)
    assert re.search(r"s-64 +dp2 +12\.00 +47\.2 +2,662 +61\.3", overview)
    assert re.search(r"s-256 +dp8 +12\.00", overview)
    assert re.search(r"s-8 +no plan fits +- +- +- +-", overview)
    assert text.count("Fastest: ") == 3
    assert "No plan fits" in text


def test_scenarios_after_the_first_few_are_short():
    text = shown(*(scenario(f"s-{number}", [row(1)]) for number in range(6)))
    assert text.count("Where the step goes") == 3
    assert text.count("time: matmul 75.0 %, tp comm 16.7 %, bubble 8.3 %") == 3
    assert "--json has all of them" in text


def test_what_it_took_is_said_last():
    last = shown(scenario()).splitlines()[-1]
    assert last == ("10,000 plans in 500 ms (20.0 k plans/s), 4,000 fit; peak memory 400 MiB; rows in results/my-study")


# --- plans as words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pp": 1, "vpp": 1, "dp": 32}, "tp8 dp32 mb1 zero1 sp, no recompute, overlap grad+param"),
        ({"ep": 8, "etp": 2}, "tp8 pp4 vpp5 dp8 ep8 etp2 mb1 interleaved zero1 sp, no recompute, overlap grad+param"),
        (
            {
                "recompute": "full",
                "recompute_layers": 4,
                "zero_stage": 3,
                "dp_replicate": 2,
                "sequence_parallel": False,
            },
            "tp8 pp4 vpp5 dp8 mb1 interleaved zero3 replicas2 no-sp, full recompute of 4 layers, overlap grad+param",
        ),
        (
            {"overlap_grad": False, "overlap_param": False, "offload_optimizer": True, "offload_layers": 2},
            "tp8 pp4 vpp5 dp8 mb1 interleaved zero1 sp, no recompute, overlap of nothing, offload optimizer+2-layers",
        ),
        (
            {"split": "custom"},
            "tp8 pp4 vpp5 dp8 mb1 interleaved zero1 sp, no recompute, overlap grad+param, custom split",
        ),
    ],
)
def test_a_plan_in_words(changes, words):
    assert plan_words(KNOBS | changes) == words


OTHER_VALUES = {
    knob: (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else "another"
    for knob, value in KNOBS.items()
}


@pytest.mark.parametrize("knob", list(KNOBS))
def test_every_knob_tells_plans_apart(knob):
    base = KNOBS | {"cp": 4, "recompute": "full", "recompute_layers": 2}
    shared, own = shared_and_own([base, base | {knob: OTHER_VALUES[knob]}])
    assert own[0] != own[1]
    assert own[0] not in shared


# --- where it is printed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 50, 64, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width):
    paid = [row(1, days=4.0, cost_usd=1e6), row(2, days=4.0, cost_usd=1e6, recompute="selective", recompute_layers=4)]
    text = shown(scenario(rows=paid), hopeless(), *(scenario(f"s{n}") for n in range(3)), width=width)
    assert max(map(len, text.splitlines())) <= width
    for needed in ("12.00", "47.2", "Refused", "matmul", "75.0 %", "83.1"):
        assert needed in text
    assert "…" not in text


def test_a_pipe_gets_neither_colour_nor_cursor_movements():
    assert "\x1b" not in shown(scenario(), hopeless())


def test_colours_obey_no_color(monkeypatch):
    def terminal():
        stream = io.StringIO()
        print_search(
            summary(scenario()), Console(file=stream, force_terminal=True, color_system="standard", width=100), 3
        )
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert re.search(r"\x1b\[[0-9;]*3[2-6]m", terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[([0-9;]*;)?3[0-9]m", terminal())


def test_an_ascii_terminal_gets_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_search(summary(scenario(), hopeless()), make_console(stream), 10)
    stream.flush()
    assert re.search(r"matmul +9\.000 s 75\.0 % #{24}", raw.getvalue().decode("ascii"))


def test_names_are_text_whatever_they_contain():
    assert "a [red]b[/] :smile: on 8 h100" in shown(scenario("a [red]b[/] :smile: on 8 h100"))


def test_the_width_of_a_pipe_is_comfortable_and_columns_is_obeyed(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console(io.StringIO()).width == 120
    monkeypatch.setenv("COLUMNS", "90")
    assert make_console(io.StringIO()).width == 90
    monkeypatch.setenv("COLUMNS", "3")
    assert make_console(io.StringIO()).width == 40


# --- other answers ----------------------------------------------------------------------------------------------


def test_a_dry_run_counts_without_promising():
    counts = {
        "study": "my-study", "n_plans": 1_843_200, "seconds": 0.09, "result_bytes": 40.0 * 1_843_200,
        "result": "results/my-study",
        "scenarios": [
            {
                "name": "a", "model": "m", "hardware": "h", "devices": 8, "precision": "bf16", "n_plans": 1_843_200,
                "axes": {"mesh": 400, "micro_batch": 4, "pipeline": 1, "data": 1152},
            }
        ],
    }  # fmt: skip
    text = printed(print_dry_run, counts)
    assert re.search(r"a +1,843,200 +400 mesh x 4 micro batch x 1152 data", text)
    assert "1,843,200 plans, about 90.0 ms, at most about 70.3 MiB in results/my-study; nothing was written" in text


def test_hardware_and_models_are_tables():
    machine = {
        "name": "h100", "aliases": ["h100_sxm"], "description": "", "devices_per_node": 8, "hbm_gib": 80.0,
        "hbm_tb_per_s": 3.35, "bf16_tflops": 989.4, "fp8_tflops": None, "link_gb_per_s": 450.0, "nic_gbit_per_s": 400.0,
        "usd_per_device_hour": 2.5, "measured": True,
    }  # fmt: skip
    assert re.search(
        r"h100 +8 +80\.0 +3\.35 +989 +- +450 +400 +2\.50 +measured", printed(print_hardware, [machine], width=160)
    )
    model = {
        "name": "llama3-8b", "parameters_total": 8.03e9, "parameters_active": 8.03e9, "n_layers": 32,
        "hidden_size": 4096, "n_heads": 32, "n_experts": 0, "vocab_size": 128_256,
    }  # fmt: skip
    assert re.search(r"llama3-8b +8\.03 G +8\.03 G +32 +4096 +32 +- +128,256", printed(print_models, [model]))


# --- progress ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_silent_where_nobody_watches():
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        with SearchProgress(file=stream, quiet=quiet) as progress:
            progress(5, 10)
        assert stream.getvalue() == ""


def test_progress_shows_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("dlcalc.report.terminal._REFRESH_S", 0.0)
    stream = Terminal()
    with SearchProgress(file=stream) as progress:
        for done in range(1, 8):
            progress(done * 1_000_000, 10_000_000)
            time.sleep(0.002)
    assert re.search(r"\d+ %", stream.getvalue())
    assert re.search(r"[\d.]+ [kMG] plans/s, [\d.]+ [mu]?s left", stream.getvalue())


# --- units ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.significant(1234.6), "1,235"),
        (units.significant(999.6), "1,000"),
        (units.significant(9.996), "10.0"),
        (units.significant(0.012345), "0.0123"),
        (units.significant(0.0), "0"),
        (units.significant(float("inf")), "inf"),
        (units.gib(61.25 * GIB), "61.2"),
        (units.size(512 * 1024), "512 KiB"),
        (units.size(17), "17 B"),
        (units.size(1.5 * 2**40), "1.50 TiB"),
        (units.duration(0.0), "0 s"),
        (units.duration(0.045), "45.0 ms"),
        (units.duration(12.344, 4), "12.34 s"),
        (units.duration(119.9996), "2 min 0 s"),
        (units.duration(725), "12 min 5 s"),
        (units.duration(3 * 3600 + 12 * 60), "3 h 12 min"),
        (units.duration(4.2 * 86400), "4.20 days"),
        (units.short_count(1_843_200), "1.84 M"),
        (units.short_count(999_600), "1.00 M"),
        (units.short_count(950), "950"),
        (units.money(412_345), "$412 k"),
        (units.money(949.6), "$950"),
        (units.percent(0.4716), "47.2 %"),
        (units.count(1_843_200), "1,843,200"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected
