"""Drawn models, plans and jobs for Megatron, and everything that speaks against a plan; no estimate is made."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import strategies as st

from dlcalc.api import search
from dlcalc.calculators.context_parallel import CP_EXCHANGES
from dlcalc.calculators.stages import stage_layers_count
from dlcalc.costmodel import constraints
from dlcalc.costmodel.plans import KNOBS, Plans
from dlcalc.costmodel.targets.refusals import refused_by_target
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import load_hardware
from dlcalc.launch.chunks import chunk_layers
from dlcalc.launch.job import Beside, Emitted, Job, PlanValues, Prediction, Variable
from dlcalc.search.study import resolved_recipes
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_details import Rotary, RotaryScaling, Router
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.space import RecipeSpec

NO_PREDICTION = Prediction(1.0, 1.0, 1.0, 0.5, 1.0, 1.0)
FEW = st.sampled_from([1, 1, 2, 4])
USUAL = st.sampled_from([False, False, True])


@cache
def recipe_of(target, seq_len=4096, global_batch=64, precision="bf16", framework=None, cuda_graphs=False):
    spec = RecipeSpec(
        seq_len=seq_len,
        global_batch=global_batch,
        precision=(precision,),
        framework=framework,
        target=target,
        cuda_graphs=cuda_graphs,
    )
    (recipe,) = resolved_recipes(spec)
    return recipe


@cache
def hardware(name):
    return load_hardware(name)


def job_from(target, model, recipe, knobs, *, custom_split=None, machine="h100") -> Job:
    """A job that nobody estimated."""
    plan = PlanValues.of({knob: float(getattr(Plans.point(**knobs), knob)) for knob in KNOBS})
    return Job(
        name="drawn",
        target=target,
        model=model,
        hardware=hardware(machine),
        recipe=recipe,
        plan=plan,
        chunk_layers=chunk_layers(model, plan, custom_split),
        prediction=NO_PREDICTION,
        host_devices=min(8, plan.devices),
    )


def reasons_against(model, recipe, knobs, custom_split=None) -> list[str]:
    """Everything that speaks against a plan, memory aside."""
    plan = Plans.point(**knobs)
    stages = stage_layers_count(
        model, pp=plan.pp, vpp=plan.vpp, schedule=plan.schedule, split=plan.split, custom=custom_split
    )
    found = {
        **constraints.refused_by_mesh(model, recipe, plan),
        **constraints.refused_by_batch(recipe, plan),
        **constraints.refused_by_pipeline(model, recipe, plan, stages),
        **constraints.refused_by_recompute(model, plan, stages),
        **constraints.refused_by_tensor(model, recipe, plan),
        **constraints.refused_by_data(recipe, plan),
        **constraints.refused_by_custom_split(plan, custom_split),
        **refused_by_target(recipe.target, model, recipe, plan),
    }
    return [reason for reason, mask in found.items() if np.any(mask)]


@st.composite
def models(draw) -> ModelSpec:
    """Networks that Megatron's options can describe."""
    heads = draw(st.sampled_from([8, 16, 24]))
    n_layers = draw(st.sampled_from([4, 8, 12, 13, 24]))
    kind = draw(st.sampled_from(["dense", "dense", "moe", "latent"]))
    fields = {
        "name": "drawn",
        "n_layers": n_layers,
        "hidden_size": 1024,
        "n_heads": heads,
        "n_kv_heads": heads if kind == "latent" else draw(st.sampled_from([heads, heads // 4, 2])),
        "head_dim": draw(st.sampled_from([64, 128])),
        "ffn_hidden_size": 4096,
        "vocab_size": draw(st.sampled_from([32000, 50257, 128256])),
        "max_seq": draw(st.sampled_from([4096, 131072])),
        "gated_mlp": draw(st.booleans()),
        "tied_embeddings": draw(st.booleans()),
        "norm": draw(st.sampled_from(["rmsnorm", "layernorm"])),
    }
    if draw(USUAL):
        fields["sliding_window"] = draw(st.sampled_from([128, 1024]))
        fields["window_pattern"] = draw(st.sampled_from([(True,), (True, False), (True, True, False)]))
    if kind == "dense":
        fields["qk_norm"] = draw(st.booleans())
        fields["learned_positions"] = draw(USUAL)
        bias = draw(st.sampled_from(["none", "none", "linear_bias", "qkv_bias"]))
        fields |= {bias: True} if bias != "none" else {}
        fields["mtp_layers"] = 0 if fields["learned_positions"] else draw(st.sampled_from([0, 0, 1, 2]))
    else:
        fields |= draw(_mixtures(n_layers, biased=kind == "moe"))
    if kind == "latent":
        fields |= {
            "q_lora_rank": draw(st.sampled_from([0, 256])),
            "kv_lora_rank": 128,
            "mtp_layers": draw(st.sampled_from([0, 1])),
        }
        fields |= {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    return ModelSpec(**fields | draw(_details(fields)))


@st.composite
def _details(draw, fields):
    """What no estimate reads, as far as options of either Megatron say it."""
    details = {"norm_epsilon": draw(st.sampled_from([None, 1e-6, 1e-5]))}
    if not fields.get("learned_positions"):
        base = draw(st.sampled_from([None, 10_000.0, 500_000.0]))
        kinds = ["yarn"] if fields.get("kv_lora_rank") else ["llama3", "linear"]
        kinds += ["yarn"] if not fields.get("mtp_layers") else []
        scaling = draw(st.sampled_from([None, *kinds]).map(SCALINGS.get))
        fraction = draw(st.sampled_from([1.0, 1.0, 0.5])) if not fields.get("kv_lora_rank") else 1.0
        details["rotary"] = Rotary(base=base, fraction=fraction, scaling=scaling)
    details["activation"] = draw(st.sampled_from([None, "silu"] if fields["gated_mlp"] else [None, "gelu", "relu2"]))
    if fields["gated_mlp"] and draw(USUAL):
        details |= {"activation": "quick_gelu", "activation_limit": 7.0, "activation_offset": 1.0}
    if fields.get("n_experts"):
        details["router"] = draw(st.sampled_from(ROUTERS if fields["top_k"] > 1 else [Router()]))
    return details


SCALINGS = {
    "yarn": RotaryScaling(kind="yarn", factor=40.0, mscale_all_dim=1.0),
    "llama3": RotaryScaling(kind="llama3", factor=8.0, original_max_seq=8192),
    "linear": RotaryScaling(kind="linear", factor=4.0),
}
ROUTERS = [
    Router(),
    Router(balance_loss=0.01),
    Router(normalizes=False, scale=16.0, balance_loss=0.001, balances="sequence"),
    Router(scores="sigmoid", scale=2.5, bias_update=0.001),
    Router(scores="sigmoid", bias_update=0.002, balance_loss=1e-4, balances="sequence"),
]


@st.composite
def _mixtures(draw, n_layers, *, biased):
    fields = {
        "n_experts": draw(st.sampled_from([8, 16])),
        "top_k": draw(st.sampled_from([1, 2, 4])),
        "expert_ffn_hidden_size": 512,
    }
    match draw(st.sampled_from(["all", "all", "first", "often", "pattern"])):
        case "first":
            fields["first_dense_layers"] = draw(st.integers(1, 2))
        case "often":
            fields["moe_layer_freq"] = 2
        case "pattern":
            fields["moe_pattern"] = draw(st.lists(st.booleans(), min_size=2, max_size=4).filter(any).map(tuple))
        case _ if biased and draw(USUAL):
            return fields | {"attention_bias": True, "expert_bias": True, "router_bias": True, "attention_sinks": True}
    if draw(st.booleans()):
        fields |= {"n_shared_experts": 1, "shared_ffn_hidden_size": 512, "shared_expert_gate": draw(st.booleans())}
    if fields["top_k"] >= 2 and draw(USUAL):
        fields["expert_groups_per_token"] = 2
    return fields


@st.composite
def plans(draw, model, recipe):
    """Knobs of a plan, most of them legal, and a split where it is given outright."""
    tp, cp = draw(FEW), draw(st.sampled_from([1, 1, 2]))
    pp, dp = draw(FEW), draw(st.sampled_from([1, 2, 4, 8]))
    vpp = draw(st.sampled_from([1, 1, 2, 3])) if pp > 1 else 1
    zero = draw(st.sampled_from([0, 1, 1, 1, 2, 3]))
    recompute = draw(st.sampled_from(["none", "none", "selective", "full", "norm_act", "mla_up_proj", "mlp", "moe"]))
    knobs = {
        "tp": tp,
        "cp": cp,
        "pp": pp,
        "dp": dp,
        "vpp": vpp,
        "schedule": "interleaved" if vpp > 1 else "1f1b",
        "micro_batch": draw(st.sampled_from([1, 1, 2])),
        "recompute": recompute,
        "recompute_layers": draw(st.sampled_from([-1, -1, 0, 1, 2])) if recompute == "full" else -1,
        "zero_stage": zero,
        "sequence_parallel": tp > 1 and (model.is_moe or draw(st.booleans())),
        "overlap_grad": draw(st.booleans()),
        "overlap_tp": draw(USUAL),
        "offload_optimizer": draw(USUAL),
        "offload_layers": draw(st.sampled_from([0, 0, 0, 1, 2])),
    }
    knobs["overlap_param"] = knobs["overlap_grad"] and zero > 0 and draw(st.booleans())
    knobs["overlap_tp"] = knobs["overlap_tp"] and knobs["sequence_parallel"]
    knobs["dp_replicate"] = draw(st.sampled_from([1, 1, 2])) if zero else 1
    if knobs["cp"] > 1:
        knobs["cp_exchange"] = draw(st.sampled_from(CP_EXCHANGES))
    if model.is_moe:
        knobs["ep"] = draw(st.sampled_from([1, 2, 4, 8]))
        knobs["etp"] = draw(st.sampled_from([1, 1, tp]))
        knobs["overlap_ep"] = knobs["ep"] > 1 and draw(USUAL)
    if not draw(USUAL):
        _mend(knobs, model)
    split, custom = draw(_splits(model.n_layers, pp * knobs["vpp"])) if pp > 1 else ("even", None)
    return {**knobs, "split": split}, custom


def _mend(knobs, model) -> None:
    """Take back what hardly any plan can have together; one in three is left as it was drawn."""
    pp, recompute = knobs["pp"], knobs["recompute"]
    if pp > 1:
        knobs["zero_stage"] = min(knobs["zero_stage"], 1)
    if pp > 1 and model.n_layers % 4 == 0:
        knobs |= {"vpp": 1 if knobs["vpp"] == 1 else model.n_layers // 4, "schedule": "1f1b"}
        knobs["schedule"] = "interleaved" if knobs["vpp"] > 1 else "1f1b"
    if recompute in model.not_to_recompute or (recompute == "norm_act" and not model.is_moe):
        knobs["recompute"] = "none"
    if pp > 1 or knobs["recompute"] != "none":
        knobs["offload_layers"] = 0
    if knobs["dp"] * knobs["cp"] <= 2 or model.is_moe:
        knobs["dp_replicate"] = 1
    if knobs["zero_stage"] == 0:
        knobs["offload_optimizer"] = False
    if model.is_moe and knobs["tp"] * knobs["cp"] * knobs["dp"] % (knobs["ep"] * knobs["etp"]):
        knobs |= {"ep": 1, "etp": 1, "overlap_ep": False}


@st.composite
def _splits(draw, n_layers, n_chunks):
    split = draw(st.sampled_from(["even", "even", "embedding_and_loss", "custom"]))
    if split != "custom" or n_layers < n_chunks:
        return ("even" if split == "custom" else split), None
    cuts = sorted(draw(st.lists(st.integers(0, n_layers), min_size=n_chunks - 1, max_size=n_chunks - 1)))
    return split, tuple(int(count) for count in np.diff([0, *cuts, n_layers]))


@st.composite
def drawn_jobs(draw, target):
    """A job of a drawn model and plan, and what speaks against it."""
    model = draw(models())
    precision = draw(st.sampled_from(["bf16", "bf16", "fp16", "fp8", "mxfp8", "nvfp4"]))
    framework = draw(st.sampled_from([None, "megatron_bridge"]))
    recipe = recipe_of(target, precision=precision, framework=framework, cuda_graphs=draw(USUAL))
    knobs, custom = draw(plans(model, recipe))
    machine = draw(st.sampled_from(["b200", "gb200_nvl72"]))
    against = reasons_against(model, recipe, knobs, custom)
    return job_from(target, model, recipe, knobs, custom_split=custom, machine=machine), against


def command_line(emitted: Emitted) -> str:
    """The words of a job as a shell would be given them, options on lines of their own."""
    words = [" ".join(_quoted(word) for word in option) for option in (emitted.program, *emitted.options)]
    return " \\\n  ".join(["torchrun", *words]) + "\n"


def _quoted(word) -> str:
    match word:
        case Variable():
            return f'"${{{word.name}:-{word.default}}}{word.suffix}"'
        case Beside():
            return f'"$HERE/{word.file}"'
        case _:
            return shlex.quote(word)


def plain_words(emitted: Emitted) -> list[str]:
    """The options of a job with the defaults of what the environment decides."""
    return [_plain(word) for option in emitted.options for word in option]


def _plain(word) -> str:
    return f"{word.default}{word.suffix}" if isinstance(word, Variable) else str(word)


def same_network(one: ModelSpec, other: ModelSpec, *, positions: bool = True) -> None:
    """Equal in all that counts: how a pattern of layers is written, and the name, are free."""
    free = {"name", "aliases", "source", "first_dense_layers", "moe_layer_freq", "moe_pattern", "window_pattern"}
    free |= {"n_shared_experts", "norm_bias", "activation", "rotary", "norm_epsilon"}
    free |= set() if positions else {"max_seq"}
    if other.is_mla:
        free |= {"qk_norm"}  # of the latents, always
    if 0 in (one.expert_groups, other.expert_groups):  # where a model does not say, a launch chooses
        free |= {"expert_groups"}
    for field in ModelSpec.model_fields:
        if field not in free:
            assert getattr(one, field) == getattr(other, field), field
    same_details(one, other)
    assert one.layer_is_moe == other.layer_is_moe
    assert one.layer_is_windowed == other.layer_is_windowed


def same_details(one: ModelSpec, other: ModelSpec) -> None:
    """Equal in what no estimate reads; where the model does not say, a trainer's own default may have come back."""
    assert one.activates_by == other.activates_by
    if other.norm_epsilon is not None:
        assert one.norm_epsilon == pytest.approx(other.norm_epsilon, rel=1e-9)
    if not other.learned_positions:
        assert one.rotary.base in (other.rotary.base, *([10_000] if other.rotary.base is None else []))
        assert (one.rotary.fraction, one.rotary.scaling) == (other.rotary.fraction, other.rotary.scaling)


def same_plan(job, found) -> None:
    """Equal in every knob but dp; a split given outright may turn out to be one that has a name."""
    plan = job.plan.as_dict()
    unread = {"dp", "split"}
    assert {knob: value for knob, value in plan.items() if knob not in unread} == {
        knob: value for knob, value in found.knobs.items() if knob not in unread
    }
    again = PlanValues(**{**plan, "split": found.knobs["split"]})
    assert chunk_layers(job.model, again, found.custom_split) == job.chunk_layers
    assert (found.seq_len, found.global_batch) == (job.recipe.seq_len, job.recipe.global_batch)
    assert (found.precision, found.scaling) == (job.recipe.precision, job.recipe.scaling)
    assert found.cuda_graphs == job.recipe.cuda_graphs


FOLDER = Path(__file__).parent.parent / "search_spaces"
SPACES = sorted(FOLDER.glob("*.yaml"))


def best_jobs(file: Path, target, *, most=3) -> list[Job]:
    """The best plans of a shipped space in every scenario of its smallest number of devices, for a target."""
    space = yaml.safe_load(file.read_text())
    devices = space["cluster"]["devices"]
    space["cluster"]["devices"] = devices if isinstance(devices, int) else devices[0]
    space.pop("topology", None)
    if "/" in str(space["model"]):
        space["model"] = str(FOLDER / space["model"])
    found = search({**space, "target": target})
    jobs = [_job_of_row(scenario, row, target) for scenario in found["scenarios"] for row in scenario["best"][:most]]
    assert jobs
    return jobs


def _job_of_row(scenario, row, target) -> Job:
    recipe = recipe_of(
        target, scenario["seq_len"], scenario["global_batch"], scenario["precision"], scenario["framework"]
    )
    knobs = {knob: row[knob] for knob in KNOBS}
    job = job_from(target, _model_of(scenario["model"]), recipe, knobs, machine=scenario["hardware"])
    return replace(job, name=f"{scenario['name']}-{row['rank']}")


def _model_of(name):
    try:
        return load_model(name)
    except DlcalcError:
        return load_model(FOLDER / "models" / name)
