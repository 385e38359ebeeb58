"""The model as Hugging Face transformers configures it, and the training loop shared by DeepSpeed and Accelerate.

Neither trainer brings models: both wrap a user's own program. So that a bundle runs as it is, a program is written: a
model of the right dimensions with random weights, random tokens, and the time of every step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dlcalc.costmodel.targets.transformers_models import misfit_of, model_type_of
from dlcalc.errors import DlcalcError
from dlcalc.launch.job import Job
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_details import Activation

MODEL_FILE = "model_config.json"
SCRIPT_FILE = "train.py"

LAYER_CLASSES: Mapping[str, str] = {
    "llama": "LlamaDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "qwen3": "Qwen3DecoderLayer",
    "gpt2": "GPT2Block",
}

ACTIVATIONS: Mapping[Activation, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}
"""By the names of transformers."""

LOOP = '''

def batches(config, rank, micro_batch, seq_len):
    """Random tokens, other ones on every data-parallel rank; what a step costs does not depend on them."""
    random = torch.Generator().manual_seed(rank)
    while True:
        yield torch.randint(config.vocab_size, (micro_batch, seq_len), generator=random)


def train(one_step, devices):
    """Steps, each with its time; the first ones warm up."""
    for step in range(1, STEPS + 1):
        start = time.perf_counter()
        loss = float(one_step())  # waits for the device
        seconds = time.perf_counter() - start
        if int(os.environ["RANK"]) == 0:
            rate = TOKENS_PER_STEP / seconds / devices
            print(f"step {step}: loss {loss:.4f}, {seconds:.4f} s, {rate:.1f} tokens/s/device", flush=True)
'''


def model_config(model: ModelSpec) -> dict[str, Any]:
    """What ``AutoConfig.for_model`` takes."""
    kind = model_type_of(model)
    if kind is None:
        raise DlcalcError(f"no model of transformers is written with {misfit_of(model)}")
    if kind == "gpt2":
        return {
            "model_type": "gpt2",
            "n_embd": model.hidden_size,
            "n_layer": model.n_layers,
            "n_head": model.n_heads,
            "n_inner": model.ffn_hidden_size,
            "n_positions": model.max_seq,
            "vocab_size": model.vocab_size,
            "tie_word_embeddings": model.tied_embeddings,
            "activation_function": ACTIVATIONS[model.activation or "gelu_tanh"],
            "layer_norm_epsilon": model.norm_epsilon or 1e-5,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }
    config: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": model.max_seq,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "hidden_act": ACTIVATIONS[model.activates_by],
        **({"rms_norm_eps": model.norm_epsilon} if model.norm_epsilon else {}),
        **_positions(model),
    }
    if kind in ("llama", "qwen3"):
        config["attention_bias"] = model.attention_bias or model.linear_bias
    if kind == "llama":
        config["mlp_bias"] = model.mlp_bias or model.linear_bias
    return config


def _positions(model: ModelSpec) -> dict[str, Any]:
    """Rotary positions as transformers 5 has them; without a base its own default for the kind of model."""
    base, scaling = model.rotary.base, model.rotary.scaling
    if base is None:
        return {}
    told: dict[str, Any] = {"rope_theta": base, "rope_type": "default"}
    if scaling is None or scaling.kind == "longrope":
        return {"rope_parameters": told}
    told |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        told["original_max_position_embeddings"] = scaling.original_max_seq
    if scaling.kind == "llama3":
        told |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    elif scaling.kind == "yarn":
        told |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.rounds}
        if scaling.mscale_all_dim:
            told |= {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    return {"rope_parameters": told}


def unsaid(model: ModelSpec) -> tuple[str, ...]:
    """Parts of the model that its configuration does not say, and what is trained instead."""
    rotary = model.rotary
    reasons = {
        "The model does not say its rotary base: transformers' default for its kind is taken.": rotary.base is None,
        "All dimensions of a head turn, though the model turns a part of them.": rotary.fraction != 1,
        "Positions are not stretched: the factors of LongRoPE are lists, which a model of ours has not.": (
            rotary.scaling is not None and rotary.scaling.kind == "longrope"
        ),
        "Inputs of the activation are not clamped.": model.activation_limit is not None,
    }
    return () if model.learned_positions else tuple(text for text, is_so in reasons.items() if is_so)


def model_file(model: ModelSpec) -> str:
    """The model's configuration as a file."""
    return json.dumps(model_config(model), indent=2) + "\n"


def constants(job: Job) -> str:
    """What the loop reads of the job."""
    return (
        f"SEQ_LEN = {job.recipe.seq_len}\n"
        f"MICRO_BATCH = {job.plan.micro_batch}\n"
        f"ACCUMULATION = {job.micro_batches}  # micro-batches of a step\n"
        f"TOKENS_PER_STEP = {job.recipe.seq_len * job.recipe.global_batch}\n"
        'STEPS = int(os.environ.get("TRAIN_STEPS", "20"))\n'
    )


def shared_notes(job: Job) -> tuple[str, ...]:
    """What holds for either trainer."""
    return (
        f"{SCRIPT_FILE} trains a model of the right dimensions ({MODEL_FILE}) with random weights on random tokens, and"
        " prints the seconds of every step. For real training put your data in place of batches(), and"
        " from_pretrained in place of from_config. It needs transformers 5.",
        "TRAIN_STEPS is the number of steps (20 unless set).",
        *unsaid(job.model),
        f"Attention is PyTorch's scaled_dot_product_attention; the estimate took {job.recipe.framework.attention}.",
    )
