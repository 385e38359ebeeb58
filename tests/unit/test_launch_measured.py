"""``measured.csv``, read by what reads it: the same model, machine, recipe and plan, whatever they are."""

import csv
import dataclasses
import io
import json

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dlcalc.calculators.context_parallel import CP_EXCHANGES
from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import KNOBS, Plans
from dlcalc.dlcalc_calibrate import main as calibrate
from dlcalc.hardware_registry import HardwareRegistry, known_hardware, load_hardware
from dlcalc.launch.measured_row import measured_table
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.load import config_dir
from dlcalc.specs.model_registry import load_model, model_names
from dlcalc.specs.recompute import RECOMPUTE_MODES
from dlcalc.validation.models import models_of_users
from dlcalc.validation.rows import COLUMNS, HONOURED
from dlcalc.validation.runs import RunReader, read_runs
from tests.launch_jobs import job
from tests.launch_parts import NAMES, written

FRAMEWORKS = sorted(file.stem for file in (config_dir() / "frameworks").glob("*.yaml"))
MODELS = models_of_users()


def read_back(one, folder):
    """What dlcalc-calibrate takes the job's row for, in the folder of the bundle."""
    written(measured_table(one).files, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (row,) = read_runs(folder / "measured.csv")
        return row, RunReader(MODELS, HardwareRegistry()).setting(row)


def estimated(setting):
    found = estimate(setting.model, setting.hardware, setting.recipe, setting.plan, custom_split=setting.custom_split)
    return float(found.step_time_s), float(found.memory_bytes)


def must_be_the_same(one, folder):
    row, setting = read_back(one, folder)
    assert setting.remarks == ()
    assert set(row.extras) <= HONOURED
    assert (setting.model, setting.hardware) == (one.model, one.hardware)
    recipe = setting.recipe
    for field in ("seq_len", "global_batch", "precision", "scaling", "cuda_graphs"):
        assert getattr(recipe, field) == getattr(one.recipe, field)
    shown = {"supports_tensor", "supports_context", "supports_pipeline", "shards_gradients_in_pipeline"}
    # what the run shows that the trainer can do
    assert recipe.framework.model_dump(exclude=shown) == one.recipe.framework.model_dump(exclude=shown)
    plan = {knob: float(getattr(setting.plan, knob)) for knob in KNOBS}
    assert type(one.plan).of(plan) == one.plan
    step_time_s, memory_bytes = estimated(setting)
    assert step_time_s == pytest.approx(one.prediction.step_time_s, rel=1e-12)
    assert memory_bytes == pytest.approx(one.prediction.memory_bytes, rel=1e-12)


DEGREES = st.sampled_from([1, 2, 4, 8])
SWITCH = st.booleans()
plans = st.fixed_dictionaries({
    "tp": DEGREES, "cp": st.sampled_from([1, 2]), "pp": st.sampled_from([1, 2, 4]), "dp": DEGREES, "ep": DEGREES,
    "etp": st.sampled_from([1, 2]), "vpp": st.sampled_from([1, 2, 3]), "micro_batch": st.sampled_from([1, 2]),
    "schedule": st.sampled_from(["1f1b", "interleaved", "gpipe", "zb-h1", "zb-v", "dualpipe"]),
    "split": st.sampled_from(["even", "embedding_and_loss", "custom"]),
    "recompute": st.sampled_from(RECOMPUTE_MODES), "recompute_layers": st.sampled_from([-1, 1, 3]),
    "zero_stage": st.integers(0, 3), "dp_replicate": st.sampled_from([1, 2]),
    "sequence_parallel": SWITCH, "overlap_grad": SWITCH, "overlap_param": SWITCH, "overlap_tp": SWITCH,
    "overlap_ep": SWITCH, "cp_exchange": st.sampled_from(CP_EXCHANGES), "offload_optimizer": SWITCH,
    "offload_layers": st.sampled_from([0, 1, 2]),
})  # fmt: skip


def canonical(knobs, model):
    """The knobs where they mean something, so that fewer draws are refused."""
    knobs = dict(knobs)
    if knobs["pp"] == 1:
        knobs |= {"vpp": 1, "schedule": "1f1b", "split": "even"}
    knobs["vpp"] = {"1f1b": 1, "gpipe": 1, "zb-h1": 1, "zb-v": 2, "dualpipe": 2}.get(knobs["schedule"], 2)
    if not model.is_moe:
        knobs |= {"ep": 1, "etp": 1}
    if knobs["tp"] == 1:
        knobs["sequence_parallel"] = False
    if knobs["dp"] * knobs["cp"] * knobs["tp"] % (knobs["ep"] * knobs["etp"]) or knobs["ep"] == 1:
        knobs |= {"ep": 1, "etp": 1}
    if model.is_moe and knobs["tp"] > 1:
        knobs["sequence_parallel"] = True
    if knobs["ep"] > 1 or knobs["dp"] * knobs["cp"] <= knobs["dp_replicate"]:
        knobs["dp_replicate"] = 1
    knobs["overlap_tp"] &= knobs["sequence_parallel"]
    knobs["overlap_ep"] &= knobs["ep"] > 1
    if knobs["cp"] == 1:
        knobs.pop("cp_exchange")
    if knobs["zero_stage"] == 0:
        knobs |= {"overlap_param": False, "dp_replicate": 1}
    knobs["overlap_param"] &= knobs["overlap_grad"]
    if knobs["recompute"] != "full":
        knobs["recompute_layers"] = -1
    return knobs


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    plans,
    st.sampled_from(["llama3-8b", "qwen3-30b-a3b", "deepseek-v2"]),
    st.sampled_from(["megatron", "torchtitan", "megatron_deepspeed", "megatron_bridge"]),
    st.sampled_from(["bf16", "fp8"]),
)
def test_any_plan_comes_back(tmp_path, drawn, model_name, framework, precision):
    model = load_model(model_name)
    knobs = canonical(drawn, model)
    custom = None
    if knobs["split"] == "custom":
        n_chunks = knobs["pp"] * knobs["vpp"]
        share = model.n_layers // n_chunks
        custom = (share - 1, *(share for _ in range(n_chunks - 2)), model.n_layers - share * (n_chunks - 1) + 1)
    assume(knobs["recompute"] in load_framework(framework).recompute_modes)
    given_ = {"seq_len": 4096, "global_batch": 64, "precision": precision, "framework": framework}
    one = job(None, model=model, custom_split=custom, **given_, **knobs)
    found = estimate(one.model, one.hardware, one.recipe, Plans.point(**knobs), custom_split=custom)
    assume(bool(found.runs))
    must_be_the_same(one, tmp_path)


@pytest.mark.parametrize(
    "knobs",
    [
        {"tp": 8, "dp": 2, "sequence_parallel": True, "overlap_tp": False},  # where the profile overlaps
        {"tp": 4, "pp": 4, "dp": 2, "vpp": 2, "schedule": "interleaved", "recompute": "full", "recompute_layers": 3},
        {"tp": 2, "cp": 2, "pp": 2, "dp": 4, "zero_stage": 2, "dp_replicate": 2},
        {"tp": 2, "dp": 8, "offload_optimizer": True, "offload_layers": 2},
        {"tp": 2, "pp": 4, "dp": 2, "split": "embedding_and_loss"},
    ],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_plans_that_other_words_would_lose(tmp_path, framework, knobs):
    must_be_the_same(job(None, framework=framework, **knobs), tmp_path)


@pytest.mark.parametrize(
    ("precision", "hardware", "scaling", "cuda_graphs"),
    [
        ("mxfp8", "b200", "block", True),
        ("nvfp4", "b200", "tensor", False),
        ("fp8", "h100", "block", False),
        ("fp8", "h100", "delayed", False),
    ],
)
def test_low_precision(tmp_path, precision, hardware, scaling, cuda_graphs):
    one = job("megatron-lm", hardware=hardware, precision=precision, tp=2, dp=8)
    told = {"scaling": scaling, "cuda_graphs": cuda_graphs}
    changed = dataclasses.replace(one, recipe=one.recipe.model_copy(update=told))
    _, setting = read_back(changed, tmp_path)
    assert (setting.recipe.precision, setting.recipe.scaling, setting.recipe.cuda_graphs) == (
        precision,
        scaling,
        cuda_graphs,
    )


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_one_row(tmp_path, name):
    row, _ = read_back(job("megatron-lm", dp=8, name=name), tmp_path)
    assert row.fields["case"] == name


def test_columns_are_those_of_measured_runs():
    text = measured_table(job("megatron-lm", dp=8)).files["measured.csv"]
    (row,) = csv.DictReader(io.StringIO(text))
    assert set(row) <= set(COLUMNS)
    assert (row["step_time_s"], row["memory_gib"]) == ("", "")


# ---- what is not built in


def renamed(one, **changes):
    """The job with a model, machine or profile under a name that nobody knows."""
    return dataclasses.replace(one, **{
        what: getattr(one, what).model_copy(update={"name": name}) for what, name in changes.items()
    })  # fmt: skip


@pytest.mark.parametrize("name", model_names())
def test_an_own_model_lies_beside(tmp_path, name):
    one = renamed(job("megatron-lm", model=name, dp=8), model="our own: model")
    assert set(measured_table(one).files) == {"measured.csv", "model.yaml"}
    assert read_back(one, tmp_path)[1].model == one.model


@pytest.mark.parametrize("name", known_hardware())
def test_an_own_machine_lies_beside(tmp_path, name):
    hardware = load_hardware(name)
    precision = "bf16" if "bf16" in hardware.precisions else "fp16"
    one = renamed(job("megatron-lm", hardware=name, precision=precision, dp=8, host_devices=1), hardware="ours")
    table = measured_table(one)
    assert (table.hardware, set(table.files)) == ("hardware.yaml", {"measured.csv", "hardware.yaml"})
    assert read_back(one, tmp_path)[1].hardware == one.hardware


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_own_profile_lies_beside(tmp_path, name):
    one = job("megatron-lm", framework=name, dp=8)
    profile = one.recipe.framework.model_copy(update={"bucket_elements": 7.7e7})
    one = dataclasses.replace(one, recipe=one.recipe.model_copy(update={"framework": profile}))
    assert set(measured_table(one).files) == {"measured.csv", "framework.yaml"}
    assert read_back(one, tmp_path)[1].recipe.framework == profile


def test_a_machine_of_another_network_is_not_the_built_in_one(tmp_path):
    one = job("megatron-lm", dp=16)
    fabric = one.hardware.fabric.model_copy(update={"latency_us": one.hardware.device.tdp_w})
    one = dataclasses.replace(one, hardware=one.hardware.model_copy(update={"fabric": fabric}))
    assert measured_table(one).hardware == "hardware.yaml"
    assert read_back(one, tmp_path)[1].hardware.fabric == fabric


@pytest.mark.parametrize("own", [False, True])
def test_a_step_time_filled_in_is_fed_back(tmp_path, monkeypatch, own):
    """As the README says: fill in, one command, and the machine is there for the next search."""
    one = job("megatron-lm", tp=2, dp=8)
    if own:
        one = renamed(one, hardware="ours", model="theirs")
    written(measured_table(one).files, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "measured.csv").read_text())))
    rows[0]["step_time_s"] = str(1.2 * one.prediction.step_time_s)
    with (tmp_path / "measured.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    monkeypatch.chdir(tmp_path)
    hardware = measured_table(one).hardware
    ran = CliRunner().invoke(calibrate, ["measured.csv", "--hardware", hardware, "--out", "my.yaml", "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["runs"] == 1
    assert told["fitted_runs"][0]["before_s"] == pytest.approx(one.prediction.step_time_s, rel=1e-12)
    assert load_hardware("./my.yaml").device == one.hardware.device
