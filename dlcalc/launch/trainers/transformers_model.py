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

MODEL_FILE = "model_config.json"
SCRIPT_FILE = "train.py"

LAYER_CLASSES: Mapping[str, str] = {
    "llama": "LlamaDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "qwen3": "Qwen3DecoderLayer",
    "gpt2": "GPT2Block",
}

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
    }
    if kind in ("llama", "qwen3"):
        config["attention_bias"] = model.attention_bias or model.linear_bias
    if kind == "llama":
        config["mlp_bias"] = model.mlp_bias or model.linear_bias
    return config


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
        f"Attention is PyTorch's scaled_dot_product_attention; the estimate took {job.recipe.framework.attention}.",
    )
