"""dlcalc-launch, 3dtrn --from and --better, dlcalc-search --from: through their doors, on real studies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dlcalc.dlcalc_launch import main as launch
from dlcalc.dlcalc_search import main as search
from dlcalc.results.reader import open_result
from dlcalc.specs.target import TARGETS
from dlcalc.training_3d import main as three_d

SPACE = {
    "study": "t",
    "model": "llama3-8b",
    "hardware": "h100",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 4096, "global_batch": 64},
    "space": {"tp": [1, 2, 4], "micro_batch": [1, 2]},
}


def ran(command, *words):
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    done = ran(search, space, "--quiet", "-o", folder / "results")
    assert done.exit_code == 0, done.output
    return folder / "results"


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes", "torchrun"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_and_scheduler_writes_a_bundle(results, tmp_path, target, scheduler):
    out = tmp_path / "out"
    done = ran(launch, results, "--target", target, "--scheduler", scheduler, "--nearest", "-o", out, "--json")
    if scheduler == "kubernetes" and done.exit_code == 2:
        assert "--container" in done.output  # pods need an image
        words = ("--container", "ghcr.io/a/b:1")
        done = ran(
            launch, results, "--target", target, "--scheduler", scheduler, "--nearest", "-o", out, "--json", *words
        )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["target"] == target
    assert found["step_time_low_s"] < found["step_time_s"] < found["step_time_high_s"]
    assert sorted(found["files"]) == sorted(path.name for path in out.iterdir())
    for name, text in found["files"].items():
        assert (out / name).read_text(encoding="utf-8") == text
    assert (out / "train.sh").stat().st_mode & 0o111


def test_a_refused_plan_names_the_nearest_and_writes_nothing(tmp_path):
    run = tmp_path / "run.yaml"
    plan = {"tp": 8, "dp": 2, "sequence_parallel": True, "recompute": "full", "recompute_layers": 2}
    recipe = {"seq_len": 8192, "global_batch": 64}
    run.write_text(
        yaml.safe_dump({"model": "qwen3-30b-a3b", "hardware": "h100", "recipe": recipe, "plan": plan}), encoding="utf-8"
    )
    done = ran(launch, run, "--target", "torchtitan", "-o", tmp_path / "out")
    assert done.exit_code == 3, done.output
    assert "torchtitan needs tp to divide the KV heads" in done.stderr  # 4 of them
    assert "the nearest plan it can run takes" in done.stderr
    assert not (tmp_path / "out").exists()

    done = ran(launch, run, "--target", "torchtitan", "-o", tmp_path / "out", "--nearest", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["plan"]["tp"] < 8
    assert any("not the plan that was asked for" in note for note in found["notes"])


def test_a_folder_that_holds_something_is_left_alone(results, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    words = (results, "--target", "megatron-lm", "-o", tmp_path)
    done = ran(launch, *words)
    assert done.exit_code == 2
    assert "notes.txt" in done.stderr
    assert ran(launch, *words, "--overwrite").exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "not a placement"),
        ('{"hosts": ["a", "b; rm -rf ~"]}', "no host name"),
        ('{"hosts": ["a"]}', "1 hosts of 8 devices do not hold the 16"),
        ('{"hosts": ["a", "b"], "job": {"tp": 16, "dp": 1, "pp": 1}}', "placed was another job"),
    ],
)
def test_a_placement_that_is_none_is_refused(results, tmp_path, document, problem):
    placement = tmp_path / "placement.json"
    placement.write_text(document)
    done = ran(launch, results, "--target", "megatron-lm", "--nodes-from", placement, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert problem in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_name_stays_text(results, tmp_path):
    name = '$(rm -rf ~) `id`; "it\'s"'
    done = ran(
        launch, results, "--target", "megatron-lm", "--scheduler", "slurm", "--name", name, "-o", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "launch.json").read_text())["name"] == name


@pytest.mark.parametrize("words", [("--target", "megatron"), ("--target", "megatron-lm", "--host-devices", "3")])
def test_bad_input_is_one_clear_line(results, tmp_path, words):
    done = ran(launch, results, *words, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_what_was_written_reads_back_as_the_same_run(results, tmp_path):
    assert ran(launch, results, "--target", "megatron-lm", "-o", tmp_path / "out").exit_code == 0
    expected = json.loads(ran(three_d, results, "--json").stdout)
    script = tmp_path / "out" / "train.sh"
    done = ran(three_d, "--from", "megatron-lm", script, "--hardware", "h100", "--devices", 16, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["plan"] == expected["plan"]
    assert found["results"]["iteration_s"] == pytest.approx(expected["results"]["iteration_s"], rel=1e-12)
    assert found["better"]["plans"] == [] or found["better"]["plans"][-1]["speedup"] > 1


def test_every_option_that_no_estimate_reads_can_be_seen(tmp_path):
    """Twelve on a terminal, all of them with -v, in the JSON and on the page."""
    ignored = [
        "--lr 1e-4", "--min-lr 1e-5", "--lr-decay-style cosine", "--weight-decay 0.1", "--clip-grad 1.0", "--seed 1",
        "--adam-beta1 0.9", "--adam-beta2 0.95", "--log-interval 10", "--save-interval 100", "--eval-iters 1",
        "--eval-interval 100", "--train-iters 10", "--lr-warmup-iters 2", "--init-method-std 0.01", "--split 99,1,0",
    ]  # fmt: skip
    arguments = tmp_path / "args.txt"
    arguments.write_text(
        "--num-layers 8 --hidden-size 4096 --num-attention-heads 32 --ffn-hidden-size 16384 --seq-length 2048 "
        "--max-position-embeddings 2048 --micro-batch-size 1 --global-batch-size 64 --bf16 --vocab-size 32000 "
        f"--use-distributed-optimizer {' '.join(ignored)}\n"
    )
    names = [text.split()[0] for text in ignored]
    told = ("--from", "megatron-lm", arguments, "--hardware", "h100", "--devices", 8, "--no-better")
    assert set(names) <= set(json.loads(ran(three_d, *told, "--json").stdout)["ignored"])
    page = tmp_path / "page.html"
    short = " ".join(ran(three_d, *told, "--html", page).stdout.split())
    assert re.search(r"no estimate reads (--[\w-]+, ){11}--[\w-]+ and \d+ more, which -v lists\.", short)
    assert all(name in ran(three_d, *told, "-v").stdout for name in names)
    assert all(name in page.read_text(encoding="utf-8") for name in names)


def test_a_search_from_arguments_holds_the_run_itself(results, tmp_path):
    assert ran(launch, results, "--target", "megatron-lm", "-o", tmp_path / "out").exit_code == 0
    told = ("--from", "megatron-lm", tmp_path / "out" / "train.sh", "--hardware", "h100", "--devices", 16)
    done = ran(search, *told, "--json", "-o", tmp_path / "found")
    assert done.exit_code == 0, done.output
    best = json.loads(done.stdout)["scenarios"][0]["best"][0]
    own = json.loads(ran(three_d, results, "--json").stdout)["results"]["iteration_s"]
    assert best["step_time_s"] <= own * (1 + 1e-9)


def test_a_search_from_arguments_knows_a_split_of_its_own(tmp_path):
    """9 layers over 4 stages, 3 2 2 2: no split that a space file names."""
    arguments = tmp_path / "args.txt"
    arguments.write_text(
        "--num-layers 9 --hidden-size 4096 --num-attention-heads 32 --ffn-hidden-size 16384 --seq-length 2048 "
        "--max-position-embeddings 2048 --micro-batch-size 1 --global-batch-size 64 --bf16 --vocab-size 32000 "
        "--pipeline-model-parallel-size 4 --pipeline-model-parallel-layout 'Ettt|tt|tt|ttL' "
        "--use-distributed-optimizer\n"
    )
    told = ("--from", "megatron-lm", arguments, "--hardware", "h100", "--devices", 8)
    own = json.loads(ran(three_d, *told, "--json").stdout)
    assert own["plan"]["split"] == "custom"
    done = ran(search, *told, "--json", "--keep", "all", "-o", tmp_path / "found")
    assert done.exit_code == 0, done.output
    best = json.loads(done.stdout)["scenarios"][0]["best"][0]
    assert best["step_time_s"] <= own["results"]["iteration_s"] * (1 + 1e-9)
    rows = open_result(tmp_path / "found").rows(columns=["split", "pp"])
    assert any(row["split"] == "custom" and row["pp"] == 4 for row in rows)


def test_a_chunk_may_have_no_layer(tmp_path):
    """Megatron's layouts may have empty virtual stages; here the last but one."""
    arguments = tmp_path / "args.txt"
    arguments.write_text(
        "--num-layers 8 --hidden-size 4096 --num-attention-heads 32 --ffn-hidden-size 16384 --seq-length 2048 "
        "--max-position-embeddings 2048 --micro-batch-size 1 --global-batch-size 64 --bf16 --vocab-size 32000 "
        "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Ettt|tttt||tL'\n"
    )
    told = ("--from", "megatron-lm", arguments, "--hardware", "h100", "--devices", 8)
    done = ran(three_d, *told, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["plan"]["vpp"], found["plan"]["split"]) == (2, "custom")
    assert [stage["layers"] for stage in found["memory"]["stages"]] == [3, 5]


@pytest.mark.parametrize(
    ("framework", "target", "searched", "own"),
    [
        ("megatron_bridge", "megatron-lm", "megatron_bridge", "megatron"),
        ("megatron", "megatron-bridge", "megatron", "megatron_bridge"),  # in memory alone
        ("megatron", "torchtitan", "torchtitan", "megatron"),
        ("fsdp_composer", "fsdp-accelerate", "fsdp_composer", "fsdp_accelerate"),
        ("megatron", "megatron-lm", "megatron", None),
    ],
)
def test_a_plan_of_another_trainers_costs_has_both_numbers(tmp_path, framework, target, searched, own):
    run = tmp_path / "run.yaml"
    spec = {
        "model": "llama3-8b",
        "hardware": "h100",
        "cluster": {"devices": 16},
        "recipe": {"seq_len": 8192, "global_batch": 64, "framework": framework},
        "plan": {"zero_stage": 1 if target.startswith("megatron") else 3, "recompute": "full"},
    }
    run.write_text(yaml.safe_dump(spec))
    out = tmp_path / "out"
    done = ran(launch, run, "--target", target, "--nearest", "-o", out, "--json")
    assert done.exit_code == 0, done.output
    estimate = json.loads((out / "launch.json").read_text())["estimate"]
    assert estimate["framework"] == searched
    assert [other["framework"] for other in estimate["other_costs"]] == ([own] if own else [])
    if not own:
        return
    (other,) = estimate["other_costs"]
    assert (other["step_time_s"], other["memory_bytes"]) != (estimate["step_time_s"], estimate["memory_bytes"])
    readme = " ".join((out / "README.md").read_text().split())
    assert other["meaning"].replace("_", "\\_") in readme or other["meaning"] in readme
    assert any(other["meaning"] in note for note in json.loads(done.stdout)["notes"])
    if target.startswith("megatron"):  # as written is what the written options, read back, are estimated with
        file = out / ("train.sh" if target == "megatron-lm" else "megatron_bridge.yaml")
        again = json.loads(ran(three_d, "--from", target, file, "--hardware", "h100", "--json").stdout)
        assert again["results"]["iteration_s"] == pytest.approx(other["step_time_s"], rel=1e-12)


@pytest.mark.parametrize("target", ["megatron-lm", "megatron-bridge", "torchtitan", "deepspeed"])
def test_a_bundle_read_back_needs_no_further_word(tmp_path, target):
    run = tmp_path / "run.yaml"
    spec = {
        "model": "llama3-8b",
        "hardware": "h100",
        "cluster": {"devices": 16},
        "recipe": {"seq_len": 8192, "global_batch": 64, "target": target},
        "plan": {"recompute": "full", "overlap_tp": False},
    }
    run.write_text(yaml.safe_dump(spec))
    out = tmp_path / "out"
    done = ran(launch, run, "--target", target, "--nearest", "-o", out, "--json")
    assert done.exit_code == 0, done.output
    file = {"megatron-bridge": "megatron_bridge.yaml", "deepspeed": "ds_config.json"}.get(target, "train.sh")
    again = ran(three_d, "--from", target, out / file, "--hardware", "h100", "--json")
    assert again.exit_code == 0, again.output
    found, written = json.loads(again.stdout), json.loads(done.stdout)
    assert found["plan"] == written["plan"]
    assert found["results"]["iteration_s"] == pytest.approx(written["step_time_s"], rel=1e-12)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--hardware", "h100"), "goes with --from"),
        (("--from", "megatron-lm"), "give --hardware"),
        (("--from", "megatron-lm", "--hardware", "h100"), "--devices"),
        (
            ("--from", "megatron-lm", "--hardware", "h10", "--devices", "8"),
            "--hardware: unknown hardware 'h10'; did you mean",
        ),
        (("--from", "deepspeed", "--hardware", "h100", "--devices", "8"), "args.txt"),
    ],
)
def test_what_a_configuration_leaves_out_is_asked_for(tmp_path, words, problem):
    arguments = tmp_path / "args.txt"
    arguments.write_text(
        "--num-layers 4 --hidden-size 512 --num-attention-heads 8 --seq-length 1024 --max-position-embeddings 1024 "
        "--micro-batch-size 1 --global-batch-size 8 --bf16 --vocab-size 32000\n"
    )
    done = ran(three_d, arguments, *words)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert "Traceback" not in done.output


def test_better_plans_of_a_run_that_does_not_fit(tmp_path):
    run = tmp_path / "run.yaml"
    spec = {
        "model": "llama3-8b",
        "hardware": "h100",
        "recipe": {"seq_len": 8192, "global_batch": 64},
        "plan": {"dp": 8},
    }
    run.write_text(yaml.safe_dump(spec))
    done = ran(three_d, run, "--better")
    assert done.exit_code == 0, done.output
    assert "cannot run or does not fit; these can" in done.output
    found = json.loads(ran(three_d, run, "--better", "--json").stdout)["better"]
    times = [plan["step_time_s"] for plan in found["plans"]]
    assert times == sorted(times, reverse=True)
    assert all(plan["n_changes"] > 0 for plan in found["plans"])
    assert Path(run).exists()
