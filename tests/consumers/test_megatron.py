"""What is written for Megatron-LM, taken by Megatron-Core 0.19.2 itself: arguments, configuration, network, ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcalc.calculators.params import trained_params
from dlcalc.launch.megatron.known import KNOWN
from dlcalc.launch.megatron.options import OPTIONS
from dlcalc.launch.trainers.megatron_lm import emit
from dlcalc.specs.model_registry import load_model, model_names
from dlcalc.topology.job import JobShape
from dlcalc.topology.rings import _ranks
from tests.consumers.megatron_core import asked, asked_about, import_megatron
from tests.launch_jobs import job as estimated_job
from tests.megatron_jobs import SPACES, best_jobs, drawn_jobs, job_from, models, plain_words, reasons_against, recipe_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Megatron, torch and their imports warn of much that is not ours
PATIENT = settings(deadline=None, max_examples=1000, suppress_health_check=list(HealthCheck))
RUNNABLE = tuple(name for name in model_names() if not load_model(name).alibi)
STRICTER = (
    "megatron-lm has no CUDA graphs of experts",
    "megatron-lm needs tp to divide the width of the shared experts",
    "megatron-lm needs tp x cp to divide the KV heads",
    "megatron-lm has attention windows over cp",
    "megatron-lm has attention with sinks over cp",
    "megatron-lm has latent attention over cp",
    "megatron-lm overlaps tp in no latent attention",
    "megatron-lm overlaps experts in no interleaved",
    "megatron-lm overlaps experts of sharded weights",
    "megatron-lm offloads the optimizer only where",
    "megatron-lm needs replicas to divide",
    "megatron-lm has no biases of experts",
    "megatron-lm offloads activations without CUDA graphs",
)
"""Refused here and accepted by the arguments: what fails later, when the network, the process groups, the optimizer or
attention kernels are built, or when tokens are routed under a graph."""


@pytest.fixture(scope="module", autouse=True)
def parser():
    with pytest.MonkeyPatch.context() as patch:
        yield import_megatron(patch)


# ---- the table of options


def test_every_option_is_one_of_megatrons_with_its_default_and_choices(parser):
    actions = {flag: action for action in parser._actions for flag in action.option_strings}
    for option in OPTIONS:
        action = actions[option.flag]
        assert action.dest == option.name
        switch = {"on": "_StoreTrueAction", "off": "_StoreFalseAction"}.get(option.kind, "_StoreAction")
        assert type(action).__name__ == switch, option.flag
        assert _plain(action.default) == (None if option.default is None else _plain(option.default)), option.flag
        if option.choices:
            assert {_plain(choice) for choice in action.choices} == set(option.choices), option.flag


def _plain(value):
    if isinstance(value, (list, tuple)):
        return tuple(str(entry) for entry in value)
    name = getattr(value, "name", value)  # of an enumeration
    return None if name is None else str(name)


def test_all_names_of_options_are_known(parser):
    names = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    assert names == KNOWN


# ---- whole runs


PLANS = {
    "one device": {},
    "tensor": {"tp": 2, "sequence_parallel": 1, "dp": 4, "zero_stage": 1, "overlap_grad": 1, "overlap_param": 1},
    "pipeline": {"pp": 4, "dp": 2, "split": "embedding_and_loss", "recompute": "selective"},
    "context": {"cp": 2, "dp": 4, "zero_stage": 1, "dp_replicate": 2, "recompute": "full"},
    "sharded": {"dp": 8, "zero_stage": 3, "overlap_grad": 1, "overlap_param": 1},
    "offload": {"dp": 8, "zero_stage": 1, "offload_optimizer": 1, "offload_layers": 2},
}


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_shipped_model_is_accepted_and_understood(name):
    """Megatron's own configuration has the dimensions of the model."""
    model = load_model(name)
    taken = 0
    for knobs in PLANS.values():
        recipe = recipe_of("megatron-lm", seq_len=2048, global_batch=64)
        if reasons_against(model, recipe, knobs):
            continue
        job = job_from("megatron-lm", model, recipe, knobs)
        verdict = asked_about(job, emit(job))
        assert not verdict.problem
        _check_config(verdict.config, job)
        taken += 1
    assert taken >= 3


def _check_config(config, job) -> None:
    model, plan = job.model, job.plan
    assert (config.num_layers, config.hidden_size) == (model.n_layers, model.hidden_size)
    assert config.num_attention_heads == model.n_heads
    assert config.gated_linear_unit == model.gated_mlp
    if not model.is_mla:
        assert (config.num_query_groups, config.kv_channels) == (model.n_kv_heads, model.head_dim)
    assert config.num_moe_experts == (model.n_experts or None)
    if model.is_moe and config.moe_layer_freq != 1:
        assert tuple(bool(kind) for kind in config.moe_layer_freq) == model.layer_is_moe
    assert (config.tensor_model_parallel_size, config.context_parallel_size) == (plan.tp, plan.cp)
    assert config.pipeline_model_parallel_size == plan.pp
    assert (config.virtual_pipeline_model_parallel_size or 1) == plan.vpp


@PATIENT
@given(drawn=drawn_jobs("megatron-lm"))
def test_a_plan_is_refused_just_where_megatron_refuses_it(drawn):
    """Both ways: what is not refused is accepted, and what Megatron accepts is refused for listed reasons alone."""
    job, against = drawn
    verdict = asked_about(job, emit(job))
    if not against:
        assert not verdict.problem
    elif not verdict.problem:
        ours = [reason for reason in against if reason.startswith("megatron-lm")]
        assert all(reason.startswith(STRICTER) for reason in ours)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"--global-batch-size": "63"}, "divisible"),
        ({"--tensor-model-parallel-size": "3"}, "divisible"),
        ({"--num-attention-heads": "30"}, "multiple of tensor_model_parallel_size"),
        ({"--overlap-param-gather": None}, "overlap-param-gather"),
        ({"--pipeline-model-parallel-layout": "Et*30L"}, "must match num_layers"),
        ({"--recompute-granularity": "full"}, "recompute_method"),
        ({"--num-layers-per-virtual-pipeline-stage": "4", "--num-virtual-stages-per-pipeline-rank": "2"}, "No more"),
        ({"--tensor-model-parallel": "2"}, "unrecognized arguments"),
    ],
)  # fmt: skip
def test_the_consumer_refuses_what_is_wrong(change, problem):
    """It is a judge: changed for the worse, the same options are not taken."""
    job = job_from(
        "megatron-lm", load_model("llama3-8b"), recipe_of("megatron-lm"), {"tp": 4, "sequence_parallel": 1, "dp": 2}
    )
    words = plain_words(emit(job))
    for flag, value in change.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag] if value is None else [flag, value]
    assert problem in asked(words, world_size=8, environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"}).problem


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.stem)
def test_the_best_plans_of_the_shipped_spaces_are_accepted(space):
    for job in best_jobs(space, "megatron-lm"):
        verdict = asked_about(job, emit(job))
        assert not verdict.problem
        _check_config(verdict.config, job)


def test_the_pipeline_of_nvidias_deepseek_is_accepted_with_its_chunk_without_layers():
    """Megatron-Bridge 0.6.2, deepseek_v3_pretrain_1024gpu_h100_fp8cs_config: ``Et|(tt|)*30mL`` over 8 x 4 chunks."""
    chunks = (1, *(2,) * 30, 0)
    knobs = {"tp": 2, "pp": 8, "vpp": 4, "dp": 64, "ep": 64, "schedule": "interleaved", "split": "custom"}
    knobs |= {"sequence_parallel": 1, "recompute": "mla_up_proj+mlp", "zero_stage": 1}
    recipe = recipe_of("megatron-lm", global_batch=16384, precision="fp8", framework="megatron_bridge")
    job = job_from("megatron-lm", load_model("deepseek-v3"), recipe, knobs, custom_split=chunks)
    assert not reasons_against(job.model, recipe, knobs, chunks)
    verdict = asked_about(job, emit(job))
    assert not verdict.problem
    layout = verdict.config.pipeline_model_parallel_layout
    theirs = type(layout)("Et|(tt|)*30mL", 8)
    assert layout.flatten_layout == theirs.flatten_layout
    assert layout.layout == theirs.layout
    config = verdict.config
    routing = (config.moe_router_score_function, config.moe_router_enable_expert_bias, config.moe_router_num_groups)
    assert routing == ("sigmoid", True, 8)
    assert (config.moe_router_topk_scaling_factor, config.moe_aux_loss_coeff) == (2.5, 0.0001)
    assert (config.rotary_scaling_factor, config.mscale_all_dim, config.fp8_param) == (40.0, 1.0, True)


def test_gpt_oss_is_configured_as_published():
    job = job_from("megatron-lm", load_model("gpt-oss-20b"), recipe_of("megatron-lm"), {"dp": 8, "zero_stage": 1})
    config = asked_about(job, emit(job)).config
    assert config.activation_func.__name__ == "quick_gelu"
    assert (config.activation_func_clamp_value, config.glu_linear_offset) == (7.0, 1.0)
    assert (config.softmax_type, tuple(config.window_size), config.add_bias_linear) == ("learnable", (127, 0), True)
    assert (config.yarn_rotary_scaling_factor, config.yarn_correction_range_round_to_int) == (32.0, False)
    assert not config.apply_rope_fusion


def test_graphs_are_accepted_in_every_form():
    for name, knobs in (("llama3-8b", {}), ("llama3-8b", {"recompute": "full"}), ("mixtral-8x7b", {"dp": 8, "ep": 8})):
        job = job_from("megatron-lm", load_model(name), recipe_of("megatron-lm", cuda_graphs=True), knobs)
        assert asked_about(job, emit(job)).config.cuda_graph_impl != "none"


# ---- the network


@pytest.fixture(scope="module")
def one_rank(parser):
    """Process groups of a single rank, and what a network asks of a device when it is made without one."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.transformer import dot_product_attention
    from megatron.core.transformer.moe import token_dispatcher

    dist.init_process_group("gloo", store=dist.HashStore(), world_size=1, rank=0)
    parallel_state.initialize_model_parallel()
    make = dot_product_attention.DotProductAttention.__init__

    def make_with_one_width(self, *args, k_channels=None, v_channels=None, **kwargs):
        make(self, *args, **kwargs)  # it has no parameters of either width

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_device", lambda: "meta")
        patch.setattr(token_dispatcher.MoEAlltoAllTokenDispatcher, "cuda_dtoh_stream", object())
        patch.setattr(dot_product_attention.DotProductAttention, "__init__", make_with_one_width)
        yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def network_params(job) -> int:
    """Parameters of the network that Megatron builds from the options, in PyTorch's own layers."""
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec

    verdict = asked_about(job, emit(job))
    assert not verdict.problem
    arguments, config = verdict.arguments, verdict.config
    config.use_cpu_initialization, config.perform_initialization = True, False
    config.persist_layer_norm = config.gradient_accumulation_fusion = False
    config.moe_grouped_gemm = config.moe_permute_fusion = False
    layers = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization=config.normalization)
    further = get_gpt_mtp_block_spec(config, layers, use_transformer_engine=False) if config.mtp_num_layers else None
    with torch.device("meta"):
        network = GPTModel(
            config,
            layers,
            vocab_size=arguments.vocab_size,
            max_sequence_length=arguments.max_position_embeddings,
            share_embeddings_and_output_weights=not arguments.untie_embeddings_and_output_weights,
            position_embedding_type=arguments.position_embedding_type,
            mtp_block_spec=further,
        )
    return sum(parameter.numel() for parameter in network.parameters())


@settings(parent=PATIENT, max_examples=100)
@given(model=models())
def test_the_network_built_from_the_options_has_the_parameters_counted(one_rank, model):
    if model.qk_norm or model.is_mla:
        model = model.model_copy(update={"norm": "rmsnorm"})  # LayerNorms of Q, K and latents have uncounted biases
    if model.is_mla and not model.q_lora_rank:
        model = model.model_copy(
            update={"q_lora_rank": 64}
        )  # without it, PyTorch's own layers have no norms of latents
    job = job_from("megatron-lm", model, recipe_of("megatron-lm"), {})
    assert network_params(job) == trained_params(job.model)


@pytest.mark.parametrize("name", [name for name in RUNNABLE if not load_model(name).is_moe])
def test_shipped_dense_networks_have_the_parameters_counted(one_rank, name):
    model = load_model(name)
    job = job_from("megatron-lm", model, recipe_of("megatron-lm", seq_len=min(2048, model.max_seq)), {})
    assert network_params(job) == trained_params(model)


@pytest.mark.parametrize("name", [name for name in RUNNABLE if load_model(name).is_moe])
def test_shipped_mixtures_have_the_parameters_counted(one_rank, name):
    """With fewer layers and experts, which Megatron makes one by one here."""
    model = load_model(name).model_copy(
        update={"n_layers": 5, "n_experts": 16, "top_k": 4, "expert_groups_per_token": 0}
    )
    job = job_from("megatron-lm", model, recipe_of("megatron-lm"), {})
    assert network_params(job) == trained_params(model)


# ---- memory


@pytest.mark.parametrize("name", ["llama3-8b", "gpt3-175b", "qwen3-32b", "llama2-70b"])
@pytest.mark.parametrize(
    "knobs",
    [
        {"dp": 8},
        {"dp": 8, "zero_stage": 1},
        {"tp": 2, "sequence_parallel": 1, "dp": 4, "zero_stage": 1},
        {"tp": 2, "pp": 4, "sequence_parallel": 1, "dp": 2, "zero_stage": 1},
        {"tp": 4, "pp": 8, "sequence_parallel": 1, "dp": 4, "zero_stage": 0},
    ],
)
def test_weights_and_optimizer_take_what_megatron_says(name, knobs):
    """Bytes of the most loaded device: 18 a parameter, or 6 and 12 over the ranks that share the optimizer.

    Within 0.5 %: Megatron pads the vocabulary to a multiple of 128 tp and counts neither learned positions nor the
    biases and norms of its column-parallel layers as divided by tp, as they are.
    """
    from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory

    job = estimated_job(
        "megatron-lm", name, seq_len=2048, global_batch=64, **{"overlap_param": 0, "zero_stage": 0, **knobs}
    )
    arguments = asked_about(job, emit(job)).arguments
    multiple = arguments.make_vocab_size_divisible_by * job.plan.tp
    arguments.padded_vocab_size = -(-job.model.vocab_size // multiple) * multiple
    theirs = compute_weight_and_optimizer_memory(arguments)
    assert _states_bytes(job) == pytest.approx(theirs, rel=0.005)


def _states_bytes(job) -> float:
    from dlcalc.costmodel.estimate import estimate
    from dlcalc.costmodel.plans import Plans

    found = estimate(job.model, job.hardware, job.recipe, Plans.point(**job.plan.as_dict()))
    parts = found.footprint
    return float(np.max(parts.weights_bytes + parts.gradients_bytes + parts.optimizer_bytes))


# ---- ranks


@given(
    tp=st.sampled_from([1, 2, 4]),
    cp=st.sampled_from([1, 2]),
    pp=st.sampled_from([1, 2, 4]),
    dp=st.sampled_from([1, 2, 4, 8]),
    ep=st.sampled_from([1, 2, 4, 8]),
    etp=st.sampled_from([1, 2, 4]),
)
def test_ranks_form_the_groups_that_megatron_forms(tp, cp, pp, dp, ep, etp):
    """Dense groups of order tp-cp-ep-dp-pp, and those of experts beside them, on the same ranks."""
    from megatron.core.parallel_state import RankGenerator

    if tp * cp * dp % (ep * etp):
        ep = etp = 1
    shape = JobShape(tp=tp, cp=cp, pp=pp, dp=dp, ep=ep, etp=etp, node_devices=1)
    ours = {kind: sorted(map(tuple, groups.tolist())) for kind, groups in _ranks(shape).items()}
    order = "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order=order)
    shared = tp * cp * dp // (ep * etp)
    sparse = RankGenerator(tp=etp, ep=ep, dp=shared, pp=pp, cp=1, order=order)
    theirs = {
        **{kind: dense.get_ranks(kind) for kind in ("tp", "cp", "dp", "pp")},
        "ep": sparse.get_ranks("ep"),
        "expert_dp": sparse.get_ranks("dp"),
    }
    assert ours == {kind: sorted(map(tuple, groups)) for kind, groups in theirs.items()}
