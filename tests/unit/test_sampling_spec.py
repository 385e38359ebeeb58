"""The ``search`` section: what it takes, and what each mistake is answered with."""

from __future__ import annotations

import pytest

from dlcalc.errors import SpecError
from dlcalc.specs.load import load_spec
from dlcalc.specs.sampling import SearchSpec
from dlcalc.specs.space import SpaceSpec

STUDY = """\
study: s
model: llama3-8b
hardware: h100
cluster: {devices: 16}
recipe: {seq_len: 8192, global_batch: 128}
search:
"""


def read(tmp_path, *lines):
    file = tmp_path / "s.yaml"
    file.write_text(STUDY + "".join(f"  {line}\n" for line in lines))
    return load_spec(file, SpaceSpec).search


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["smapler: tpe"], "7: search.smapler: no such key; did you mean sampler?"),
        (["sampler: tpee"], "did you mean tpe?"),
        (["objectives: [mfu, mem]"], "did you mean memory?"),
        (["objectives: [mfu, mfu]"], "one is given twice"),
        (["n_trials: 0"], "must be greater than 0, not 0"),
        (["sampler: cmaes", "objectives: [mfu, memory]"], "cmaes has one objective"),
        (["storage: postgres://x/y"], "did you mean postgresql?"),
        (["storage: trials.db"], "none of sqlite:///FILE"),
        (["storage: 'sqlite:///'"], "names no file"),
        (["command: ./run.sh"], "command needs objective: measured"),
        (["objective: measured"], "needs command"),
        (["objective: measured", "command: ./run.sh", "sampler: tpe"], "sampler means nothing"),
        (["objective: measured", "command: ./run.sh", "step_time_pattern: '(['"], "no regular expression"),
        (["objective: measured", "command: ./run.sh", "step_time_pattern: 'step'"], "needs a group"),
        (["design: {}"], "give a range for at least one of hbm_gib"),
        (["design: {hbm_gb: [80, 96]}"], "no such key; did you mean hbm_gib?"),
        (["design: {hbm_gib: {low: 96, high: 80}}"], "low = 96 must be less than high = 80"),
        (["design: {hbm_gib: [80]}"], "must have at least 2 items, not 1"),
        (["design: {hbm_gib: [80, 96]}", "uneven_stages: true"], "give one of design and uneven_stages"),
        (["design: {model: {}}"], "give values for at least one of n_layers"),
        (["design: {model: {n_layer: [32, 48]}}"], "no such key; did you mean n_layers?"),
        (["design: {model: {n_layers: [32.5, 48]}}"], "n_layers must be whole numbers"),
        (["design: {model: {n_layers: [16, 32], hidden_size: [4096, 5120], ffn_ratio: [3, 4]}}"], "leave out one of"),
        (
            ["design: {model: {n_layers: [16, 32], at_parameters: 8e9, at_active_parameters: 8e9}}"],
            "give one of at_parameters and at_active_parameters",
        ),
        (["uneven_stages: true", "warm_start: [{tp: 4}]"], "warm_start lists plans"),
        (["warm_start: [{micro_batchs: 4}]"], "no such key; did you mean micro_batch?"),
    ],
)
def test_a_mistake_is_named(tmp_path, lines, said):
    with pytest.raises(SpecError) as caught:
        read(tmp_path, *lines)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}:")


def test_what_is_left_out_has_a_default(tmp_path):
    search = read(tmp_path, "method: optuna")
    assert (search.sampler_name, search.trials, search.goals) == ("nsga2", 2000, ("step_time",))
    assert search.samples_plans
    assert read(tmp_path, "uneven_stages: true").sampler_name == "tpe"
    assert SearchSpec.model_validate({"objective": "measured", "command": "run"}).trials == 20


def test_numbers_may_be_whole(tmp_path):
    design = read(tmp_path, "design: {n_sms: {low: 100, high: 200}, node_devices: [8, 72]}").design
    assert design.variables["node_devices"] == (8, 72)
    assert design.variables["n_sms"].high == 200
