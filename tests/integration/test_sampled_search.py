"""Sampled and measured searches through the command, on real storages, alone and side by side."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlcalc.dlcalc_search import main
from dlcalc.report.plan_words import plan_words

optuna = pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]
STUDY = {
    "study": "s",
    "model": "llama3-8b",
    "hardware": "h100",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 4096, "global_batch": 64, "token_budget": 1e12},
    "space": {},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def space(search, **changes):
    """A space file in the present folder."""
    file = Path("space.yaml")
    file.write_text(json.dumps({**STUDY, **changes, "search": search}))
    return str(file)


def searched(search, *options, code=0, **changes):
    """The JSON answer of a search."""
    result = CliRunner().invoke(main, [space(search, **changes), "--json", *options])
    assert result.exit_code == code, result.output[-2000:]
    return json.loads(result.stdout)


def best(answer, scenario=0):
    return answer["scenarios"][scenario]["best"][0]


@pytest.fixture(scope="module")
def exhaustive(tmp_path_factory):
    file = tmp_path_factory.mktemp("all") / "space.yaml"
    file.write_text(json.dumps(STUDY))
    result = CliRunner().invoke(main, [str(file), "--json", "-o", str(file.parent / "result")])
    return json.loads(result.stdout)


# ---- what is found


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cmaes", "gp", "random"])
def test_every_sampler_finds_a_good_plan(sampler, exhaustive):
    answer = searched({"sampler": sampler, "n_trials": 40 if sampler == "gp" else 150})
    said = answer["scenarios"][0]["sampled"]
    assert (said["method"], said["sampler"], said["seed"]) == ("optuna", sampler, 0)
    assert said["n_plans"] == answer["n_plans"] < 0.04 * said["n_plans_of_space"]
    assert best(answer)["step_time_s"] <= 1.1 * best(exhaustive)["step_time_s"]


def test_a_fiftieth_of_the_plans_is_enough():
    """Within 1 % of the best of all, the median of five seeds; benchmarks/sampled_search.py does so on every space."""
    from benchmarks.sampled_search import SPACES, optimum_s, plans_until_close
    from dlcalc.hardware_registry import HardwareRegistry
    from dlcalc.search.study import scenarios_of
    from dlcalc.specs.load import load_spec
    from dlcalc.specs.space import SpaceSpec

    file = SPACES / "llama3_8b_fragmented.yaml"
    (scenario,) = scenarios_of(load_spec(file, SpaceSpec), SPACES, HardwareRegistry())
    most, best_s = scenario.n_plans // 50, optimum_s(scenario)
    needed = sorted(plans_until_close(scenario, "nsga2", seed, best_s, most)[0] for seed in range(5))
    assert needed[2] <= most


def test_the_same_seed_gives_the_same_answer():
    answers = [searched({"n_trials": 40, "seed": seed}, "-o", f"r{run}") for run, seed in enumerate((3, 3, 4))]
    plans = [[(row["plan_index"], row["step_time_s"]) for row in one["scenarios"][0]["best"]] for one in answers]
    counts = [one["n_plans"] for one in answers]
    assert plans[0] == plans[1]
    assert counts[0] == counts[1]
    assert (plans[0], counts[0]) != (plans[2], counts[2])


def test_a_known_plan_is_tried_first(exhaustive):
    known = {knob: best(exhaustive)[knob] for knob in ("tp", "pp", "micro_batch", "zero_stage", "schedule", "split")}
    answer = searched({"n_trials": 1, "warm_start": [known], "storage": "sqlite:///t.db"})
    assert best(answer)["step_time_s"] == pytest.approx(best(exhaustive)["step_time_s"])


def test_a_known_plan_must_be_in_the_space():
    result = CliRunner().invoke(main, [space({"warm_start": [{"tp": 3}]})])
    assert result.exit_code == 2
    assert "warm_start: tp = 3 is not in the space, which has 1, 2, 4, 8" in result.output


def test_several_objectives_give_plans_that_nobody_beats():
    answer = searched({"n_trials": 150, "objectives": ["mfu", "memory", "cost"], "sampler": "nsga2"})
    rows = answer["scenarios"][0]["sampled"]["front"]
    assert len(rows) > 3
    losses = [(-row["mfu"], row["memory_bytes"], row["cost_usd"]) for row in rows]
    for one in losses:
        assert not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in losses)
    assert rows[0]["mfu"] == max(row["mfu"] for row in rows)


def test_a_cost_needs_a_price_and_an_amount():
    recipe = {"seq_len": 4096, "global_batch": 64}
    result = CliRunner().invoke(main, [space({"objectives": ["cost"]}, recipe=recipe)])
    assert result.exit_code == 2
    assert "cost needs a token_budget in the recipe" in result.output


def test_nothing_that_fits_is_exit_code_3():
    recipe = {"seq_len": 4096, "global_batch": 64}
    result = CliRunner().invoke(
        main, [space({"n_trials": 5}, model="llama3-70b", cluster={"devices": 1}, recipe=recipe)]
    )
    assert result.exit_code == 3
    assert "needs more memory than the device has" in result.output
    assert "nearest in" in result.output


def test_the_result_is_read_like_any_other():
    from dlcalc.training_3d import main as explain

    answer = searched({"n_trials": 40})
    result = CliRunner().invoke(explain, [answer["result"], "--rank", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["results"]["iteration_s"] == pytest.approx(best(answer)["step_time_s"])


def test_the_report_says_that_not_every_plan_was_estimated():
    result = CliRunner().invoke(main, [space({"n_trials": 40, "seed": 5})])
    assert "Sampled, not searched in full: 40 trials of nsga2 (seed 5) for step time, estimated " in result.output


def test_without_optuna_one_line_says_how_to_get_it():
    code = "import sys; sys.modules['optuna'] = None; from dlcalc.dlcalc_search import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, space({})],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: search: method: optuna is not installed: pip install 'dlcalc[optuna]'\n"


# ---- a dry run


def dry(search, **changes):
    """The JSON and the text of a dry run, which writes nothing."""
    file = space(search, **changes)
    before = sorted(Path().rglob("*"))
    told, text = (CliRunner().invoke(main, [file, "--dry-run", *options]) for options in (["--json"], []))
    assert told.exit_code == text.exit_code == 0, told.output + text.output
    assert sorted(Path().rglob("*")) == before
    return json.loads(told.stdout), " ".join(text.stdout.split())


def test_a_dry_run_says_how_plans_would_be_sampled(exhaustive):
    counts, text = dry({"n_trials": 300, "sampler": "tpe", "storage": "sqlite:///t.db", "batch": 8})
    said = counts["sampling"]
    assert (said["kind"], said["sampler"], said["n_trials"], said["batch"]) == ("plans", "tpe", 300, 8)
    assert counts["n_plans"] == exhaustive["n_plans"]
    ((name, variables),) = said["variables"].items()
    assert name == exhaustive["scenarios"][0]["name"]
    assert {"name": "tp", "values": [1, 2, 4, 8], "low": None, "high": None} in variables
    assert said["n_points"][name] == math.prod(len(one["values"]) for one in variables)
    assert "300 trials of tpe for step time, 8 at a time, kept in sqlite:///t.db; at most 16 plans estimated" in text
    assert "tp 1/2/4/8, pp 1/2/4/8/16" in text
    assert counts["seconds"] > said["seconds_of_all_plans"]
    assert f"All {counts['n_plans']:,} plans take about" in text
    assert counts["result_bytes"] <= 300 * 16 * 48


def test_a_dry_run_says_which_designs_would_be_tried():
    counts, text = dry({"n_trials": 40, "design": {**DESIGN, "model": {"n_layers": {"low": 16, "high": 48}}}})
    assert counts["sampling"]["kind"] == "machines and shapes"
    assert "40 trials of tpe for step time, 8 at a time, kept in memory; every plan of each estimated" in text
    assert "3 variables, some continuous: hbm_gib 40 to 160, nic_gbit_per_s_per_device 200/400/800" in text
    _, stages = dry({"uneven_stages": True, "recompute_per_stage": True})
    assert "Sampled: cuts into stages and recomputations: 2,000 trials" in stages


def test_a_dry_run_runs_no_command():
    search = {"objective": "measured", "command": "./run_trial.sh {plan}", "timeout_s": 600, "n_trials": 12}
    counts, text = dry(search, cluster={"devices": [16, 32]})
    assert counts["sampling"]["kind"] == "runs"
    assert (
        "at most 12 runs of ./run_trial.sh {plan} in each scenario, of at most 10 min 0 s each, kept in journal" in text
    )
    assert "and the runs" in text


# ---- storages


@pytest.fixture(scope="module")
def postgres():
    """The URL of a PostgreSQL of our own."""
    folders = [Path(found).parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    binaries = next((one for one in folders if (one / "initdb").exists() and (one / "pg_ctl").exists()), None)
    if binaries is None:
        pytest.skip("no PostgreSQL here (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL (pip install 'psycopg[binary]')")
    place = Path(
        tempfile.mkdtemp(prefix="pg", dir="/tmp")
    )  # where its own user may go, with a short name for its socket
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to be root
    if user:
        shutil.chown(place, user)

    def run(*words):
        done = subprocess.run(
            words, capture_output=True, text=True, user=user, cwd=place, timeout=120, check=False, env={"LC_ALL": "C"}
        )
        assert done.returncode == 0, done.stdout + done.stderr

    data = place / "data"
    run(binaries / "initdb", "-D", data, "-A", "trust", "-U", "dlcalc", "-E", "UTF8")
    run(binaries / "pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", f"-k {place} -c listen_addresses=''", "start")
    try:
        yield f"postgresql://dlcalc@/postgres?host={place}"
    finally:
        run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(place)


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("postgres")
    return f"{request.param}:///{tmp_path}/trials"


def loaded(storage, name):
    """The study as anyone with Optuna sees it."""
    if storage.startswith("journal"):
        backend = optuna.storages.journal.JournalFileBackend(storage.removeprefix("journal:///"))
        return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))
    from sqlalchemy.pool import NullPool

    url = storage.replace("postgresql:", "postgresql+psycopg:")
    unpooled = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})  # leaves no connection open
    return optuna.load_study(study_name=name, storage=unpooled)


def test_a_study_goes_on_by_its_name(storage, request):
    name = request.node.name
    spec = {"storage": storage, "study_name": name, "n_trials": 8}
    first = searched(spec)
    again = searched({**spec, "n_trials": 24})
    nothing_new = searched({**spec, "n_trials": 24})
    said = [one["scenarios"][0]["sampled"] for one in (first, again, nothing_new)]
    assert [one["n_trials"] for one in said] == [8, 24, 24]
    assert [one["n_trials_before"] for one in said] == [0, 8, 24]
    assert best(again)["step_time_s"] <= best(first)["step_time_s"]
    assert best(nothing_new)["plan_index"] == best(again)["plan_index"]

    study = loaded(storage, name)
    assert study.metric_names == ["step time (s)"]
    found = study.best_trial  # feasible ones only, says Optuna
    assert found.values[0] == pytest.approx(best(again)["step_time_s"])
    assert found.user_attrs["plan"] == plan_words(best(again))
    assert found.user_attrs["plan_index"] == best(again)["plan_index"]
    assert found.user_attrs["memory_gib"] == pytest.approx(best(again)["memory_bytes"] / 2**30, abs=1e-3)
    assert {"tp_position", "schedule", "split"} <= found.params.keys()
    assert found.params["schedule"] in ("1f1b", "interleaved")


def test_two_processes_share_a_study(storage, request):
    name = request.node.name
    file = space({"storage": storage, "study_name": name, "n_trials": 32, "batch": 4})
    command = [sys.executable, "-m", "dlcalc.dlcalc_search", file, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [*command, "-o", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for out in ("a", "b")
    ]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    trials = loaded(storage, name).get_trials()
    done = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert 32 <= len(done) <= 32 + 2 * 4  # a process may finish the batch it has begun
    points = [tuple(sorted(trial.params.items())) for trial in done[:8]]
    assert len(set(points)) > 4  # the two do not draw the same
    answers = [json.loads(output) for output, _ in outputs]
    assert max(one["scenarios"][0]["sampled"]["n_trials"] for one in answers) == len(done)


def test_a_study_of_another_space_is_not_taken_up(tmp_path):
    spec = {"storage": f"sqlite:///{tmp_path}/t.db", "n_trials": 3}
    searched(spec)
    result = CliRunner().invoke(main, [space(spec, cluster={"devices": 32}), "-o", "other"])
    assert result.exit_code == 2
    assert "'s' in sqlite:////" in result.output
    assert "is a study of another space" in result.output


def test_a_storage_that_does_not_answer_is_one_line():
    result = CliRunner().invoke(main, [space({"storage": "postgresql://me:secret@localhost:1/x"})])
    assert result.exit_code == 2
    assert "search: storage: postgresql://me@localhost:1/x: " in result.output
    assert "secret" not in result.output
    assert result.output.count("\n") == 1


# ---- the dashboard


@contextmanager
def dashboard(storage):
    """The real optuna-dashboard on a storage, as ``get(path)``; the command of docs/search.md, on a port of its own."""
    pytest.importorskip("optuna_dashboard", reason="pip install optuna-dashboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "import sys; from optuna_dashboard._cli import main; sys.exit(main())"
    server = subprocess.Popen(
        [sys.executable, "-c", start, storage, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

    def get(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=60) as answer:
            return json.loads(answer.read())

    try:
        for _ in range(600):
            with suppress(urllib.error.URLError):
                get("studies")
                break
            assert server.poll() is None, server.stderr.read().decode()
            time.sleep(0.1)
        yield get
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_the_dashboard_shows_a_study(tmp_path):
    storage = f"sqlite:///{tmp_path}/trials.db"
    spec = {"storage": storage, "n_trials": 48, "objectives": ["mfu", "memory"], "sampler": "nsga2"}
    answer = searched(spec, model="llama3-70b", cluster={"devices": 32}, recipe={"seq_len": 8192, "global_batch": 64})
    with dashboard(storage) as get:
        (listed,) = get("studies")["study_summaries"]
        assert (listed["study_name"], listed["directions"]) == ("s", ["maximize", "minimize"])
        study = get(f"studies/{listed['study_id']}?after=0")
    assert study["objective_names"] == ["MFU", "memory (GiB)"]
    assert study["directions"] == ["maximize", "minimize"]
    trials = study["trials"]
    assert len(trials) == 48
    assert {trial["state"] for trial in trials} == {"Complete"}
    found = {one["key"]: one["value"] for one in trials[0]["user_attrs"]}
    assert {"plan", "plan_index", "memory_gib"} <= found.keys()
    assert {"tp_position", "schedule", "split"} <= {one["name"] for one in trials[0]["params"]}
    fits = [all(value <= 0 for value in trial["constraints"]) for trial in trials]
    assert all(len(trial["constraints"]) == 1 for trial in trials)
    assert 0 < sum(fits) < 48
    capacity = answer["scenarios"][0]["memory_limit_bytes"] / 2**30
    assert fits == [trial["values"][1] <= capacity for trial in trials]
    best_mfu = max(trial["values"][0] for trial, fit in zip(trials, fits, strict=True) if fit)
    assert best_mfu == pytest.approx(answer["scenarios"][0]["sampled"]["front"][0]["mfu"])


def test_the_dashboard_shows_designs(tmp_path):
    storage = f"sqlite:///{tmp_path}/trials.db"
    searched({"storage": storage, "n_trials": 6, "design": {"model": {"n_layers": [24, 32, 48]}}})
    with dashboard(storage) as get:
        study = get(f"studies/{get('studies')['study_summaries'][0]['study_id']}?after=0")
    assert study["objective_names"] == ["step time (s)"]
    for trial in study["trials"]:
        told = {one["key"]: one["value"] for one in trial["user_attrs"]}
        assert float(told["parameters"]) == pytest.approx(8.03e9, rel=0.01)
        assert {"n_layers", "hidden_size", "n_heads", "ffn_hidden_size"} <= told.keys()


# ---- designs


DESIGN = {
    "hbm_gib": {"low": 40, "high": 160},
    "nic_gbit_per_s_per_device": [200, 400, 800],
    "usd_per_device_hour": "1 + 0.02 * hbm_gib + 0.001 * nic_gbit_per_s_per_device",
}


def test_machines_are_designed():
    answer = searched({"n_trials": 40, "objectives": ["step_time", "cost"], "design": DESIGN})
    (said,) = answer["designs"]
    assert (said["kind"], said["n_trials"]) == ("machines", 40)
    assert len(answer["scenarios"]) == 1 + len(said["front"])
    for row, scenario in zip(said["front"], answer["scenarios"][1:], strict=True):
        assert scenario["name"] == row["scenario"]
        plan = scenario["best"][0]
        assert plan["step_time_s"] == pytest.approx(row["values"]["step_time"])  # every plan of it was estimated
        assert plan["cost_usd"] == pytest.approx(row["values"]["cost"])
        price = 1 + 0.02 * row["variables"]["hbm_gib"] + 0.001 * row["variables"]["nic_gbit_per_s_per_device"]
        assert plan["cost_usd"] == pytest.approx(plan["days"] * 24 * 16 * price)
    times = [row["values"]["step_time"] for row in said["front"]]
    costs = [row["values"]["cost"] for row in said["front"]]
    assert times == sorted(times)
    assert costs == sorted(costs, reverse=True)


def test_a_design_is_a_scenario_that_can_be_explained():
    from dlcalc.training_3d import main as explain

    answer = searched({"n_trials": 20, "design": DESIGN})
    name = answer["designs"][0]["front"][0]["scenario"]
    result = CliRunner().invoke(explain, [answer["result"], "--rank", "1", "--scenario", name, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["results"]["iteration_s"] == pytest.approx(
        answer["designs"][0]["front"][0]["values"]["step_time"]
    )


def test_a_shape_is_what_its_own_model_file_is():
    """Every plan of the best shape, written by hand, is found to take as long and as much; so is the base model."""
    shape = {"at_parameters": 8.03e9, "n_layers": [20, 24, 28, 32, 40, 48], "ffn_ratio": {"low": 2.5, "high": 5}}
    answer = searched({"n_trials": 30, "objectives": ["step_time", "memory"], "design": {"model": shape}})
    (said,) = answer["designs"]
    assert said["kind"] == "shapes"
    assert said["variables_unchanged"]["ffn_hidden_size"] == 14336
    row, scenario = said["front"][0], answer["scenarios"][1]
    assert row["values"]["step_time"] <= said["unchanged"]["step_time"]
    assert row["variables"]["parameters"] == pytest.approx(8.03e9, rel=0.01)
    dimensions = {name: int(value) for name, value in row["variables"].items() if name != "parameters"}
    own = {"name": "mine", "vocab_size": 128256, "max_seq": 131072, **dimensions}
    Path("mine.yaml").write_text(json.dumps(own))
    file = Path("by_hand.yaml")
    file.write_text(json.dumps({**STUDY, "study": "by_hand", "model": "mine.yaml"}))
    result = CliRunner().invoke(main, [str(file), "--json"])
    by_hand = json.loads(result.stdout)["scenarios"][0]
    assert by_hand["n_plans"] == scenario["n_plans"]
    assert by_hand["refused"] == scenario["refused"]
    for mine, its in zip(by_hand["best"], scenario["best"], strict=True):
        assert mine["step_time_s"] == pytest.approx(its["step_time_s"], rel=1e-12)
        assert mine["memory_bytes"] == pytest.approx(its["memory_bytes"], rel=1e-12)
        assert mine["plan_index"] == its["plan_index"]
    assert by_hand["best"][0]["step_time_s"] == pytest.approx(row["values"]["step_time"])


def test_the_report_shows_shapes_beside_the_model_as_it_is():
    design = {"model": {"n_layers": [16, 24, 32, 48]}}
    result = CliRunner().invoke(main, [space({"n_trials": 12, "design": design})])
    assert "12 trials of tpe (seed 0) for step time, of each every plan estimated" in result.output
    assert "as it is" in result.output
    assert "14,336" in result.output
    assert "8.03 G" in result.output


def test_a_shape_cannot_have_the_chunks_of_another():
    custom = {"recipe": {**STUDY["recipe"], "custom_split": [16, 16]}, "space": {"split": "custom"}}
    result = CliRunner().invoke(main, [space({"design": {"model": {"n_layers": [16, 24]}}}, **custom)])
    assert result.exit_code == 2
    assert "leave one of them out" in result.output


def test_stages_need_not_be_equal():
    """94 layers on 4 or 8 stages: no equal cut exists, and a cut of whole layers is found that beats both splits."""
    changes = {
        "model": "qwen3-235b-a22b",
        "hardware": "h200",
        "cluster": {"devices": 128},
        "space": {"tp": 4, "cp": 1, "pp": [4, 8], "vpp": 1, "schedule": "1f1b", "ep": [8, 16, 32], "zero_stage": 1},
        "recipe": {"seq_len": 4096, "global_batch": 512, "framework": "megatron_bridge"},
    }
    answer = searched({"n_trials": 60, "uneven_stages": True}, **changes)
    (said,) = answer["designs"]
    cut = [int(layers) for layers in said["front"][0]["variables"]["stages"].split()]
    assert sum(cut) == 94
    assert said["front"][0]["values"]["step_time"] <= said["unchanged"]["step_time"]
    assert best(answer, 1)["split"] == "custom"


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """The result of the shipped space of stages, and its answer."""
    folder = tmp_path_factory.mktemp("stages")
    file = ROOT / "search_spaces" / "designs" / "gpt3_175b_stages.yaml"
    result = CliRunner().invoke(main, [str(file), "--json", "-o", str(folder / "result")])
    assert result.exit_code == 0, result.output[-2000:]
    return json.loads(result.stdout)


def test_early_stages_recompute_more(unequal):
    """GPT-3 175B of 8,192 tokens on 64 A100: at least 7 % faster than equal stages that all recompute as much."""
    (said,) = unequal["designs"]
    assert said["kind"] == "cuts into stages and recomputations"
    row = said["front"][0]
    layers, again = ([int(n) for n in str(row["variables"][name]).split()] for name in ("stages", "recomputed"))
    assert sum(layers) == 96
    assert again[0] > again[-1]
    assert again == sorted(again, reverse=True)
    assert all(redone <= held for redone, held in zip(again, layers, strict=True))
    assert row["values"]["step_time"] < 0.93 * said["unchanged"]["step_time"]
    assert (best(unequal, 1)["recompute"], best(unequal, 1)["recompute_layers"]) == ("full", -2)


def test_a_replay_of_the_pipeline_agrees_that_it_is_faster(unequal):
    """Operation by operation, where estimates use closed forms."""
    from dlcalc.training_3d import main as explain

    seconds = []
    for scenario in (0, 1):
        trace = Path(f"trace{scenario}.json")
        name = unequal["scenarios"][scenario]["name"]
        result = CliRunner().invoke(
            explain, [unequal["result"], "--rank", "1", "--scenario", name, "--json", "--trace", str(trace)]
        )
        assert result.exit_code == 0, result.output
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("ph") == "X"]
        seconds.append(max(event["ts"] + event["dur"] for event in events) / 1e6)
    assert seconds[1] < 0.93 * seconds[0]


def test_no_launch_is_written_for_stages_that_recompute_unequally(unequal):
    from dlcalc.dlcalc_launch import main as launch

    options = [unequal["result"], "--scenario", "design", "--target", "megatron-lm", "-o", "launched"]
    result = CliRunner().invoke(launch, options)
    assert result.exit_code == 3
    assert "megatron-lm recomputes as many layers on one stage as on another" in result.output
    assert "recompute_layers per_stage -> " in result.output
    assert not Path("launched").exists()
    assert CliRunner().invoke(launch, [*options, "--nearest"]).exit_code == 0


def test_the_nearest_plan_and_the_report_know_it(unequal):
    from dlcalc.dlcalc_report import main as report
    from dlcalc.training_3d import main as explain

    result = CliRunner().invoke(report, [unequal["result"], "-o", "report.html"])
    assert result.exit_code == 0, result.output
    assert "recompute=full:per-stage" in Path("report.html").read_text()
    options = [unequal["result"], "--rank", "1", "--scenario", "design"]
    told = json.loads(CliRunner().invoke(explain, [*options, "--json"]).stdout)
    assert told["results"]["iteration_s"] == pytest.approx(best(unequal, 1)["step_time_s"])


def test_runs_of_such_plans_cannot_be_measured():
    search = {"objective": "measured", "command": "true"}
    recipe = {**STUDY["recipe"], "stage_recompute": [4, 0]}
    knobs = {"pp": 2, "vpp": 1, "recompute": ["full"], "recompute_layers": "per_stage"}
    result = CliRunner().invoke(main, [space(search, recipe=recipe, space=knobs)])
    assert result.exit_code == 2
    assert "no trainer recomputes other numbers of layers on other stages" in result.output


def test_stages_need_a_pipeline():
    result = CliRunner().invoke(main, [space({"uneven_stages": True}, space={"pp": 1})])
    assert result.exit_code == 2
    assert "has no pipeline" in result.output


# ---- measured

RUN_TRIAL = """\
#!/usr/bin/env bash
# stands for a launcher: the plan's JSON in, a step time out
exec python3 - "$1" <<'END'
import json, pathlib, sys
told = json.load(open(sys.argv[1]))
plan = told["plan"]
with open("ran.log", "a") as log:
    print(told["plan_index"], file=log)
if pathlib.Path("stop").exists():
    import time
    pathlib.Path("started").touch()
    time.sleep(600)
if plan["recompute"] == "none" and plan["pp"] == 1 and plan["micro_batch"] == 1:
    sys.exit("CUDA out of memory")
slower = 1.2 if plan["pp"] == 1 else 1.02
print(f"iteration 10 step_time_s={told['estimated_step_time_s'] * slower:.4f}")
END
"""


@pytest.fixture
def command():
    script = Path("run_trial.sh")
    script.write_text(RUN_TRIAL)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"objective": "measured", "command": "./run_trial.sh {plan}"}


def ran():
    return [int(line) for line in Path("ran.log").read_text().split()]


def test_plans_are_run_until_none_can_win(command):
    answer = searched({**command, "n_trials": 60})
    said = answer["scenarios"][0]["measured"]
    assert said["n_open"] == 0
    assert said["n_trials"] == len(ran()) == len(set(ran())) < 60
    fastest, last = said["rows"][0], said["rows"][-1]
    assert fastest["pp"] > 1  # by its estimate not the best
    assert fastest["measured_step_time_s"] == pytest.approx(1.02 * fastest["step_time_s"], rel=1e-3)
    assert said["n_trials_failed"] >= 1
    assert last["problem"] == "exit code 1: CUDA out of memory"
    assert last["measured_step_time_s"] is None
    assert ran()[0] == best(answer)["plan_index"]  # the estimates' favourite goes first
    beaten = [row for row in answer["scenarios"][0]["best"] if row["plan_index"] not in ran()]
    assert all(row["step_time_low_s"] * 1.5 > fastest["measured_step_time_s"] for row in beaten)


def test_runs_are_kept_and_not_repeated(command):
    first = searched({**command, "n_trials": 3})
    again = searched({**command, "n_trials": 6})
    said = again["scenarios"][0]["measured"]
    assert (first["scenarios"][0]["measured"]["n_trials"], said["n_trials_before"], said["n_trials"]) == (3, 3, 6)
    assert len(ran()) == len(set(ran())) == 6


def test_the_runs_are_read_by_dlcalc_calibrate(command):
    from dlcalc.dlcalc_calibrate import main as calibrate

    answer = searched({**command, "n_trials": 8})
    file = answer["scenarios"][0]["measured"]["csv"]
    with open(file, encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert 5 < len(rows) == len(ran()) <= 8
    assert sum(row["oom"] == "1" for row in rows) == answer["scenarios"][0]["measured"]["n_trials_failed"]
    result = CliRunner().invoke(calibrate, [file, "--hardware", "h100", "--out", "mine.yaml", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["runs"] == len(rows) - answer["scenarios"][0]["measured"]["n_trials_failed"]


def test_a_named_plan_is_run_first(command):
    searched({**command, "n_trials": 1, "warm_start": [{"tp": 2, "pp": 2}]})
    plan = json.loads(next(Path("results/s/_trials").glob("*.json")).read_text())["plan"]
    assert (plan["tp"], plan["pp"]) == (2, 2)


def test_two_processes_share_the_runs(command, tmp_path):
    file = space({**command, "n_trials": 10, "storage": f"sqlite:///{tmp_path}/runs.db"})
    line = [sys.executable, "-m", "dlcalc.dlcalc_search", file, "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([*line, "-o", out], env=environment) for out in ("a", "b")]
    assert [process.wait(240) for process in both] == [0, 0]
    assert len(ran()) == len(set(ran()))
    assert 4 <= len(ran()) <= 11  # fewer where no other plan can win


def test_what_was_killed_is_run_again(command, tmp_path):
    Path("stop").touch()
    file = space({**command, "n_trials": 2, "storage": f"sqlite:///{tmp_path}/runs.db"})
    line = [sys.executable, "-m", "dlcalc.dlcalc_search", file, "--quiet"]
    process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    for _ in range(600):
        if Path("started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    Path("stop").unlink()
    answer = searched({**command, "n_trials": 2, "storage": f"sqlite:///{tmp_path}/runs.db"})
    assert answer["scenarios"][0]["measured"]["n_trials"] == 2
    assert ran()[0] == ran()[1]  # the one that was cut off


def test_the_trials_say_in_words_what_they_are(command, tmp_path):
    searched({**command, "n_trials": 3, "storage": f"journal:///{tmp_path}/runs.log"})
    trials = loaded(f"journal:///{tmp_path}/runs.log", "s").get_trials()
    timed = [trial for trial in trials if trial.values]
    assert timed
    for trial in timed:
        assert trial.params["tp"] in (1, 2, 4, 8)
        assert trial.user_attrs["measured_over_estimated"] == pytest.approx(1.2, rel=0.2)
        assert "zero1" in trial.user_attrs["plan"]
    failed = [trial for trial in trials if not trial.values]
    assert [trial.user_attrs["reason"] for trial in failed] == ["exit code 1: CUDA out of memory"]
