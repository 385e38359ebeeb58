"""What there is to say of one run, from its estimate."""

from __future__ import annotations

import numpy as np

from dlcalc.calculators import flops, params
from dlcalc.costmodel.anatomy.kernels import SUBLAYERS, attention_facts, block_terms, common_block, matmul_facts
from dlcalc.costmodel.anatomy.memory import op_activations, stage_memory
from dlcalc.costmodel.anatomy.pipeline import pipeline_facts
from dlcalc.costmodel.anatomy.traffic import axis_facts
from dlcalc.costmodel.cross_dc import CrossDcFacts, across_data_centres
from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.costmodel.prediction import Prediction, budget_days, budget_usd
from dlcalc.costmodel.stage_params import stage_params
from dlcalc.report.run_facts import (
    BlockFacts,
    DataFacts,
    HardwareFacts,
    Interval,
    MemoryFacts,
    ModelFacts,
    Results,
    RunFacts,
)
from dlcalc.search.run import Run
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.utils.units import SECONDS_PER_DAY


def estimate_run(run: Run) -> tuple[Estimate, CrossDcFacts | None]:
    """The estimate of a run, and what it costs to cross data centres where it does."""
    found = run.estimate()
    if run.cross_dc is None or run.cross_dc.n_dcs == 1:
        return found, None
    return across_data_centres(found, run.cross_dc)


def refusals_of(found: Estimate, *, memory: bool = True) -> list[str]:
    """Why a plan cannot run; ``memory``: that it does not fit counts too."""
    reasons = [reason for reason, mask in found.refused.items() if bool(np.any(mask))]
    if memory and float(found.memory_bytes) > found.capacity_bytes:
        reasons.append(OUT_OF_MEMORY)
    return reasons


def facts_of(run: Run, found: Estimate, cross: CrossDcFacts | None) -> RunFacts:
    """Everything there is to say of ``run``, estimated as ``found``."""
    plan = {knob: value_of(knob, float(getattr(run.plan, knob))) for knob in KNOBS}
    attention, mlp = common_block(found)
    return RunFacts(
        name=run.name,
        configuration=run.written,
        plan=plan,
        notes=run.notes,
        ignored=run.ignored,
        refused=tuple(refusals_of(found)),
        hardware=_hardware(run),
        data=DataFacts(
            seq_len=run.recipe.seq_len,
            global_batch=run.recipe.global_batch,
            tokens_per_step=run.recipe.tokens_per_step,
            micro_batch=int(run.plan.micro_batch),
            micro_batches=float(run.recipe.global_batch / (run.plan.dp * run.plan.micro_batch)),
            precision=run.recipe.precision,
            framework=run.recipe.framework.name,
        ),
        model=_model(run, found),
        memory=_memory(run, found),
        matmuls=matmul_facts(found),
        attention=attention_facts(found),
        communication=axis_facts(found),
        cross_dc=cross,
        pipeline=pipeline_facts(found, run.custom_split),
        block=BlockFacts(attention, mlp, block_terms(found)),
        step={name: float(value) for name, value in found.step.terms().items()},
        results=_results(run, found),
    )


def _hardware(run: Run) -> HardwareFacts:
    hardware = run.hardware
    per_node = hardware.node.devices_of_job(run.devices)
    return HardwareFacts(
        name=hardware.name,
        description=hardware.description,
        devices=run.devices,
        devices_per_node=per_node,
        node_devices=hardware.node.n_devices,
        nodes=run.devices / per_node,
        hbm_bytes=hardware.device.hbm_bytes,
        peak_flops_per_s=hardware.device.peak_flops_per_s(run.recipe.precision),
        hbm_bytes_per_s=hardware.device.hbm_bytes_per_s,
        node_bytes_per_s=hardware.node.link_bytes_per_s,
        fabric_bytes_per_s=hardware.fabric.nic_bytes_per_s_per_device,
        fabric_latency_s=hardware.fabric.latency_s,
        is_measured=hardware.calibration.measured,
        calibration=hardware.calibration.provenance,
    )


def _model(run: Run, found: Estimate) -> ModelFacts:
    model, plan = run.model, run.plan
    held = stage_params(model, plan, found.stages)
    stage_devices = plan.tp * plan.cp * plan.dp
    mesh = {"ep": int(plan.ep), "etp": int(plan.etp), "expert_dp": float(stage_devices / (plan.ep * plan.etp))}
    return ModelFacts(
        name=model.name,
        n_layers=model.n_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        parameters_total=float(params.total_params(model)),
        parameters_active=float(params.active_params(model)),
        parameters_embedding=float(params.embedding_params(model)),
        parameters_per_device=float(np.max(held.stage_dense + held.stage_expert)),
        flops_per_token=float(
            flops.model_flops_per_token_flops(
                model, seq_len=float(run.recipe.seq_len), convention=run.recipe.mfu_convention
            )
        ),
        n_moe_layers=model.n_moe_layers,
        n_experts=model.n_experts,
        top_k=model.top_k,
        expert_ffn_hidden_size=model.expert_ffn_hidden_size,
        expert_mesh=mesh if model.is_moe else None,
    )


def _memory(run: Run, found: Estimate) -> MemoryFacts:
    stages = stage_memory(found, run.custom_split)
    activations = op_activations(found)
    block = common_block(found)
    attention = SUBLAYERS["full"] if any(op.sublayer == SUBLAYERS["full"] for op in activations) else block[0]
    return MemoryFacts(
        total_bytes=float(found.memory_bytes),
        usable_bytes=run.hardware.device.hbm_bytes,
        limit_bytes=found.capacity_bytes,
        terms={name: float(value) for name, value in found.footprint.terms_of_peak().items()},
        fullest_stage=max(stages, key=lambda stage: stage.total_bytes).stage,
        stages=stages,
        activations=activations,
        layer_activation_bytes=sum(op.kept_bytes for op in activations if op.sublayer in (attention, block[1])),
    )


def _results(run: Run, found: Estimate) -> Results:
    recipe, step_s = run.recipe, float(found.step_time_s)
    told = Prediction.of(found)
    return Results(
        iteration_s=step_s,
        ideal_iteration_s=float(found.mfu_seconds),
        mfu=told.mfu,
        hfu=float(found.hfu),
        mfu_convention=recipe.mfu_convention,
        tokens_per_s=recipe.tokens_per_step / step_s,
        tokens_per_s_per_device=told.tokens_per_s_per_device,
        tokens_per_day=recipe.tokens_per_step / step_s * SECONDS_PER_DAY,
        interval=Interval(told.step_time_low_s, told.step_time_high_s, load_uncertainty().coverage),
        days=budget_days(recipe, step_s),
        cost_usd=budget_usd(recipe, run.hardware, run.devices, step_s),
    )
