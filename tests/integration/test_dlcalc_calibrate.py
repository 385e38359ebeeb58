"""dlcalc-calibrate as its users meet it: their runs in, a machine and a profile out that every command takes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dlcalc.dlcalc_calibrate import main
from dlcalc.dlcalc_search import main as search_main
from dlcalc.hardware_registry import load_hardware
from dlcalc.report.calibration import remarks
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.load import config_dir
from dlcalc.workflows.validation import run_validation

MEASURED = config_dir() / "measured"
MODELS = MEASURED / "models.yaml"
UNCALIBRATED = """\
name: plain
description: the machine of the torchtitan runs, as one that nobody has calibrated
extends: h100_96gb_500w
calibration:
  training_factor: {bf16: 1.0, fp8: 1.0, attention: 1.0}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text(UNCALIBRATED)


def rows_of(source, **where):
    with (MEASURED / f"{source}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def write(file, rows, **changes):
    with Path(file).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | changes for row in rows)
    return file


def calibrate(*arguments, exit_code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return done


def answer(*arguments):
    return json.loads(calibrate(*arguments, "--json").stdout, parse_constant=pytest.fail)


def median_error(file, **options):
    return run_validation([Path(file)], models=MODELS, **options)["overall"]["step_time"]["median"]


TITAN = [row for row in rows_of("torchtitan") if "rowwise" not in row["case"] and row["seq_len"] == "8192"]


def five_and_the_rest():
    five = TITAN[::2][:5]
    return five, [row for row in TITAN if row not in five]


COLUMNS = "case,model,hardware,gpus,precision,framework,seq_len,global_batch,micro_batch,tp,pp,recompute,step_time_s"
LAYOUTS = (
    (8192, 128, 2, 1),
    (8192, 128, 4, 1),
    (2048, 128, 2, 1),
    (2048, 256, 1, 2),
    (1024, 256, 2, 1),
    (1024, 256, 4, 2),
)
PLANTED = {"training_factor": 1.5, "micro_batch_overhead_us": 25_000.0}


def planted_runs(file):
    """Runs of eight H100 whose arithmetic takes 1.5 times a cool device's time and whose micro-batches cost 25 ms."""
    shipped = load_hardware("h100").calibration.training_factor
    attention = shipped["attention"] / shipped["bf16"] * PLANTED["training_factor"]
    Path("slow.yaml").write_text(
        "name: slow\ndescription: made up\nextends: h100\n"
        f"calibration: {{training_factor: {{bf16: {PLANTED['training_factor']}, attention: {attention}}}}}\n"
    )
    profile = load_framework("megatron", {"micro_batch_overhead_us": 25_000.0}).model_dump(mode="json")
    Path("slow.megatron.yaml").write_text(yaml.safe_dump(profile))
    rows = [
        dict(zip(COLUMNS.split(","), (str(n), "llama3-8b", "slow.yaml", "8", "bf16", "slow.megatron.yaml", str(seq),
                                      str(batch), "1", str(tp), str(pp), "selective", ""), strict=True))
        for n, (seq, batch, tp, pp) in enumerate(LAYOUTS)
    ]  # fmt: skip
    run_validation([Path(write("slow.csv", rows))], models=MODELS, out=Path("slow_pred.csv"))
    with Path("slow_pred.csv").open(newline="", encoding="utf-8") as stream:
        times = [row["predicted_step_time_s"] for row in csv.DictReader(stream)]
    return write(
        file, [row | {"step_time_s": time} for row, time in zip(rows, times, strict=True)], hardware="", framework=""
    )


# --- what it is for ---------------------------------------------------------------------------------------------


def test_five_runs_help_those_that_were_not_among_them():
    """Published runs of a machine, taken as one that nobody has calibrated; the files work for dlcalc-validate."""
    five, rest = five_and_the_rest()
    found = answer(
        write("five.csv", five, hardware=""), "--hardware", "plain.yaml", "--models", MODELS, "--out", "ours.yaml"
    )
    assert (found["runs"], found["frameworks"], found["not_fitted"]) == (5, ["torchtitan"], [])
    assert found["after"]["median"] < 0.25 * found["before"]["median"]
    assert found["left_out"]["median"] < 0.5 * found["before"]["median"]

    before = median_error(write("before.csv", rest, hardware="plain.yaml"))
    profile = found["framework_files"].get("torchtitan", "torchtitan")
    after = median_error(write("after.csv", rest, hardware="ours.yaml", framework=profile))
    assert before > 0.12
    assert after < 0.5 * before


def test_the_files_say_what_the_summary_says():
    runs = planted_runs("runs.csv")
    found = answer(runs, "--hardware", "h100", "--framework", "megatron", "--out", "ours.yaml")
    assert found["framework_files"] == {"megatron": "ours.megatron.yaml"}
    assert found["after"]["worst"] < 0.025  # of 20 % and more; the priors keep the rest
    assert found["before"]["median"] > 0.1
    machine, base = load_hardware("ours.yaml"), load_hardware("h100")
    assert (machine.name, machine.device, machine.node, machine.price) == ("ours", base.device, base.node, base.price)
    assert machine.calibration.matmul == base.calibration.matmul
    assert "6 measured runs of runs.csv" in machine.calibration.provenance
    assert "Before: " in machine.calibration.provenance
    assert machine.calibration.training_factor["bf16"] == pytest.approx(PLANTED["training_factor"], rel=0.03)
    assert machine.calibration.training_factor["fp8"] == base.calibration.training_factor["fp8"]

    profile, shipped = load_framework("ours.megatron.yaml"), load_framework("megatron")
    assert profile.name == "megatron_ours"
    assert profile.micro_batch_overhead_us == pytest.approx(PLANTED["micro_batch_overhead_us"], rel=0.2)
    after = {row["key"]: row["after"] for row in found["constants"] if row["kind"] == "framework"}
    assert {key: getattr(profile, key) for key in after} == pytest.approx(after, rel=1e-3)
    own = {*after, "name", "description", "source"}
    assert profile.model_dump(exclude=own) == shipped.model_dump(exclude=own)

    # estimates with both files are those that the summary shows as fitted
    with Path(runs).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    again = write("again.csv", rows, hardware="ours.yaml", framework="ours.megatron.yaml")
    run_validation([Path(again)], models=MODELS, out=Path("pred.csv"))
    with Path("pred.csv").open(newline="", encoding="utf-8") as file:
        estimated = [float(row["predicted_step_time_s"]) for row in csv.DictReader(file)]
    assert estimated == pytest.approx([row["after_s"] for row in found["fitted_runs"]], rel=1e-3)

    # and what was fitted once has nothing left to fit
    second = answer(again, "--hardware", "ours.yaml", "--out", "two.yaml")
    assert second["before"]["worst"] == pytest.approx(found["after"]["worst"], abs=1e-3)
    assert load_hardware("two.yaml").calibration.training_factor["bf16"] == pytest.approx(
        PLANTED["training_factor"], rel=0.03
    )


def test_a_study_takes_both_files_by_paths_relative_to_itself(tmp_path):
    (tmp_path / "study").mkdir()
    calibrate(planted_runs("runs.csv"), "--hardware", "h100", "--framework", "megatron", "--out", "study/ours.yaml")
    step_s = []
    for hardware, framework in (("h100", "megatron"), ("ours.yaml", "megatron"), ("ours.yaml", "ours.megatron.yaml")):
        Path("study/space.yaml").write_text(
            f"study: s\nmodel: llama3-8b\nhardware: {hardware}\ncluster: {{devices: 8}}\n"
            f"recipe: {{seq_len: 1024, global_batch: 256, framework: {framework}}}\n"
            "space: {tp: [2], pp: [1], micro_batch: [1]}\n"
        )
        done = CliRunner().invoke(search_main, ["study/space.yaml", "--json", "--out", f"result_{len(step_s)}"])
        assert done.exit_code == 0, done.output
        step_s.append(json.loads(done.stdout)["scenarios"][0]["best"][0]["step_time_s"])
    shipped, machine, both = step_s
    assert machine > 1.1 * shipped
    assert both - machine == pytest.approx(64 * (25e-3 - 1e-3), rel=0.2)  # 64 micro-batches, each 24 ms longer


def test_a_profile_that_an_earlier_fit_left_behind_is_pointed_out():
    Path("ours.torchtitan.yaml").write_text("# Written by dlcalc-calibrate: earlier\n")
    runs = write("one.csv", TITAN[1:2], hardware="")  # one run moves the machine, not the trainer
    found = answer(runs, "--hardware", "plain.yaml", "--models", MODELS, "--out", "ours.yaml")
    assert found["framework_files"] == {}
    assert "ours.torchtitan.yaml is of an earlier calibration and does not belong to this one" in found["remarks"]


def test_a_run_alone_is_enough():
    found = answer(write("one.csv", TITAN[:1], hardware=""), "--hardware", "plain.yaml", "--models", MODELS)
    assert found["left_out"] is None
    assert abs(found["fitted_runs"][0]["error_after"]) < 0.3 * abs(found["fitted_runs"][0]["error_before"])
    assert found["hardware_file"] is None
    assert sorted(path.name for path in Path().iterdir()) == ["one.csv", "plain.yaml"]


def test_the_report_shows_errors_constants_and_runs():
    five, _ = five_and_the_rest()
    text = calibrate(
        write("five.csv", five, hardware=""), "--hardware", "plain.yaml", "--models", MODELS, "--out", "ours.yaml"
    ).stdout
    assert re.search(r"^before +\d+\.\d +\d+\.\d$", text, re.MULTILINE)
    assert re.search(r"^each run left out of the fit +\d+\.\d +\d+\.\d$", text, re.MULTILINE)
    assert re.search(r"training_factor\.bf16 +1\.000 +1\.\d{3} +\d+ %", text)
    assert five[0]["case"] in text
    assert "written: ours.yaml" in text


# --- runs that contradict ---------------------------------------------------------------------------------------


def test_runs_that_contradict_the_hardware_or_each_other_are_named_and_left_out():
    five, _ = five_and_the_rest()
    impossible = TITAN[1] | {"case": "too good", "step_time_s": "0.5"}
    twice = [five[3] | {"case": "twice a"}, five[3] | {"case": "twice b"}]
    twice[1]["step_time_s"] = str(1.3 * float(five[3]["step_time_s"]))
    kept = [row for row in five if row is not five[3]]
    file = write("runs.csv", [*kept, impossible, *twice], hardware="")
    found = answer(file, "--hardware", "plain.yaml", "--models", MODELS)
    assert [row["case"] for row in found["fitted_runs"]] == [row["case"] for row in kept]
    told = {row["case"]: row for row in found["not_fitted"]}
    assert set(told) == {"too good", "twice a", "twice b"}
    assert all(row["contradicts"] for row in told.values())
    assert told["too good"]["where"] == "runs.csv:6"
    assert re.search(r"would be [\d.]+ times the peak of 8 plain in bf16", told["too good"]["reason"])
    assert "runs.csv:8 (twice b)" in told["twice a"]["reason"]

    alone = answer(write("kept.csv", kept, hardware=""), "--hardware", "plain.yaml", "--models", MODELS)
    assert [row["after"] for row in found["constants"]] == [row["after"] for row in alone["constants"]]
    assert any(line.startswith("contradicts: runs.csv:6 (too good): a step of 0.5 s") for line in remarks(found))


def test_repeats_within_noise_are_all_used():
    row = TITAN[0] | {"hardware": ""}
    again = row | {"case": "again", "step_time_s": str(1.1 * float(row["step_time_s"]))}
    found = answer(write("runs.csv", [row, again]), "--hardware", "plain.yaml", "--models", MODELS)
    assert (found["runs"], found["not_fitted"]) == (2, [])


def test_nothing_left_is_an_error_that_names_the_runs():
    rows = [
        TITAN[0] | {"case": "fast", "hardware": "", "step_time_s": "0.01"},
        TITAN[0] | {"case": "elsewhere", "hardware": "a100_80gb"},
        TITAN[0] | {"case": "full", "hardware": "", "step_time_s": "", "tokens_per_s_per_gpu": "", "oom": "1"},
        TITAN[0] | {"case": "odd", "hardware": "", "model": "llama9-8b"},
    ]
    done = calibrate(write("runs.csv", rows), "--hardware", "plain.yaml", "--out", "ours.yaml", exit_code=2)
    assert "none of 4 runs can be fitted" in done.stderr
    for line, text in ((2, "times the peak"), (3, "its hardware is a100_80gb, not plain"), (4, "ran out of memory")):
        assert re.search(rf"runs\.csv:{line} \(\w+\): .*{text}", done.stderr)
    assert "unknown model 'llama9-8b'; did you mean" in done.stderr
    assert not Path("ours.yaml").exists()


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs.csv", "--hardware", "h10"], "unknown hardware 'h10'; did you mean"),
        (["runs.csv", "--hardware", "h100", "--framework", "megatrom"], "did you mean megatron"),
        (["runs.csv", "--hardware", "nowhere.yaml"], "no such file"),
        (["nowhere.csv", "--hardware", "h100"], "nowhere.csv: cannot be read"),
        (["runs.csv", "--hardware", "h100", "--models", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["empty.csv", "--hardware", "h100"], "not a CSV of measured runs"),
        (["heading.csv", "--hardware", "h100"], "no measured run in it"),
        (["runs.csv", "--hardware", "h100", "--out", "ours.json"], "ends in .yaml"),
        (["runs.csv", "--hardware", "plain.yaml", "--out", "plain.yaml"], "would overwrite plain.yaml"),
        (["runs.csv", "--hardware", "h100", "--out", "nowhere/ours.yaml"], "no such folder"),
        (["runs.csv"], "Missing option '--hardware'"),
        (["--hardware", "h100"], "Missing argument"),
        (["runs.csv", "--hardwear", "h100"], "No such option"),
    ],
)
def test_bad_input_is_said_in_a_line(arguments, said):
    write("runs.csv", TITAN[:1], hardware="")
    Path("empty.csv").write_text("")
    Path("heading.csv").write_text("model,hardware,step_time_s\n")
    done = calibrate(*arguments, exit_code=2)
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_what_a_run_leaves_out_is_taken_from_the_options():
    rows = [row | {"hardware": "", "framework": ""} for row in TITAN[:2]]
    found = answer(
        write("runs.csv", rows), "--hardware", "plain.yaml", "--framework", "fsdp_composer", "--models", MODELS
    )
    assert found["frameworks"] == ["fsdp_composer"]


def test_a_machine_from_a_folder_is_extended_by_its_path(tmp_path):
    folder = tmp_path / "machines"
    folder.mkdir()
    (folder / "plain.yaml").write_text(UNCALIBRATED)
    Path("plain.yaml").unlink()
    runs = write("runs.csv", TITAN[:3], hardware="plain")
    calibrate(runs, "--hardware", "plain", "--hardware-dir", folder, "--models", MODELS, "--out", "ours.yaml")
    assert yaml.safe_load(Path("ours.yaml").read_text())["extends"] == "machines/plain.yaml"
    assert load_hardware("ours.yaml").calibration.training_factor["bf16"] > 1.1
