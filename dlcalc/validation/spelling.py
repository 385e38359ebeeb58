"""What people call things, in our words: frameworks, precisions, attention kernels, recomputation.

A name that is none of ours is taken for the nearest of ours wherever there is one, and a remark says so. Machines are
``hardware_names``'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from dlcalc.costmodel.plans import ALL_LAYERS
from dlcalc.hardware_registry import SUFFIXES
from dlcalc.specs.recipe import Scaling
from dlcalc.specs.recompute import combined, parts_of


class Taken(NamedTuple):
    """Our word for something, and what to tell the reader if it is not what was written."""

    word: str
    remark: str = ""


TRUE_WORDS = frozenset({"1", "1.0", "true", "yes", "on", "y", "enabled"})
FALSE_WORDS = frozenset({"0", "0.0", "false", "no", "off", "n", "none", "disabled"})
NOT_SAID = frozenset({"nan", "null", "none", "-", "n/a", "na", "?", "unknown", "unspecified"})
"""Words for a cell that says nothing."""
_NOT_SAID = re.compile(r"not[ _](stated|given|said|specified|reported|available)")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")


def says_nothing(text: str) -> bool:
    """Whether a cell is empty but for a word for that."""
    word = text.strip().lower().translate(_DASHES)
    return word in NOT_SAID or bool(_NOT_SAID.fullmatch(word))


def switch(text: str) -> bool | None:
    """On, off, or neither."""
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    return False if word in FALSE_WORDS else None


def names_a_file(written: str) -> bool:
    """Whether a row means a file of its own; a slash alone is part of many names (PyTorch/XLA)."""
    return written.lower().endswith(SUFFIXES)


def plain(name: str) -> str:
    """Lower case, words joined by one underscore."""
    return re.sub(r"[\s\-_/()+,]+", "_", name.strip().lower().translate(_DASHES)).strip("_")


# ---- frameworks

FRAMEWORKS = (
    (r"megatron.*(deepspeed|ds\b)|deepspeed.*megatron|neox", "megatron_deepspeed"),
    (r"auto_?model", "torchtitan"),
    (r"bridge|nemo", "megatron_bridge"),
    (r"titan", "torchtitan"),
    (r"megatron|mcore|mindspeed|primus", "megatron"),
    (r"composer|foundry|mosaic", "fsdp_composer"),
    (r"sagemaker|smp|smddp", "sagemaker_smp"),
    (r"aleph", "aleph_scaling"),
    (r"deepspeed|zero|bmtrain", "deepspeed"),
    (r"levanter|max_?text|t5x|jax|xla|pax|axlearn|easy_?lm|easy_?del|flax|praxis|gspmd|haiku|big_?vision", "maxtext"),
    (r"fsdp_?2|dtensor|torchtune|olmo", "torchtitan"),
    (r"nanotron", "nanotron"),
    (r"colossal|internevo|alpa|paddle|vescale|galvatron|oneflow|varuna", "megatron"),
    (
        r"accelerate|hugging|transformers|axolotl|llama_?factory|hf_?trainer|optimum|trl|unsloth|swift|xtuner",
        "fsdp_accelerate",
    ),
    (r"fsdp|torch|lightning|lit_?gpt", "fsdp_composer"),
)
"""What a trainer's name contains, and the profile of ours that runs most alike; the first match counts."""

SPLITS_NO_LAYERS = frozenset({"fsdp_accelerate", "fsdp_composer", "deepspeed"})
"""Profiles without tensor, context and pipeline parallelism."""


def framework_name(
    written: str, known: Collection[str], *, shards_weights: bool, splits_layers: bool, usual: str = ""
) -> Taken:
    """The profile for a trainer; where its name says nothing the machine (``usual``), ZeRO 3 and other splits do."""
    asked = plain(written)
    if asked in known:
        return Taken(asked)
    matches = (profile for pattern, profile in FRAMEWORKS if re.search(pattern, asked))
    profile = next(matches, usual or ("torchtitan" if shards_weights else "megatron"))
    if splits_layers and profile in SPLITS_NO_LAYERS:
        profile = "torchtitan" if shards_weights or profile.startswith("fsdp") else "megatron_deepspeed"
    return Taken(profile, f"framework {written or '(not stated)'} taken as {profile}")


# ---- precision

PRECISIONS: dict[str, str] = {
    "bfloat16": "bf16", "amp_bf16": "bf16", "bf16_mixed": "bf16", "mixed_bf16": "bf16", "bf16_amp": "bf16",
    "half": "fp16", "float16": "fp16", "amp_fp16": "fp16", "amp": "fp16", "fp16_mixed": "fp16",
    "float32": "fp32", "float": "fp32", "single": "fp32",
    "float8": "fp8", "mx_fp8": "mxfp8", "fp8_mx": "mxfp8", "fp4": "nvfp4", "nv_fp4": "nvfp4", "fp4_nv": "nvfp4",
}  # fmt: skip
FAMILIES = (
    ("mxfp8", "mxfp8"), ("fp4", "nvfp4"), ("fp8", "fp8"), ("float8", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"),
    ("fp16", "fp16"), ("float16", "fp16"), ("tf32", "tf32"), ("fp32", "fp32"),
)  # fmt: skip
"""Parts of other names, and the precision they mean; the first match counts."""
OTHER_PRECISIONS = {"bf16": "fp16", "fp16": "bf16", "mxfp8": "fp8", "tf32": "fp32"}
"""What a device computes in where it does not have the one asked for."""


def precision_name(written: str, recipe: str, available: Collection[str]) -> Taken | None:
    """Our word for a precision that the device has, or None; ``recipe`` is the scaling recipe, where one is named."""
    asked = plain(written)
    known = {"bf16", "fp16", "fp32", "tf32", "fp8", "mxfp8", "nvfp4"}
    word = asked if asked in known else PRECISIONS.get(asked, "")
    if not word:
        word = next((ours for part, ours in FAMILIES if part in asked), "")
    if word == "fp8" and "mx" in plain(recipe) and "mxfp8" in available:
        word = "mxfp8"
    if word in available:
        return Taken(word, "" if asked == word or asked in PRECISIONS else f"precision {written} taken as {word}")
    other = OTHER_PRECISIONS.get(word, "")
    return Taken(other, f"precision {written} taken as {other}, which the device has") if other in available else None


def scaling_name(recipe: str, fp8: str, precision: str = "") -> Scaling:
    """Our word for what a scale of 8-bit numbers covers; Transformer Engine alone, as ``fp8`` may name it, delays."""
    said = " ".join((recipe, precision)).lower()
    if re.search(r"row|block|sub_?channel|\bsc\b|_sc\b|1x128|tile|fine.?grained", said):
        return "block"
    by_engine = not recipe and plain(fp8) in ("te", "transformer_engine")
    return "delayed" if re.search(r"delayed|\bds\b|_ds\b", said) or by_engine else "tensor"


# ---- attention

ATTENTION = (
    (r"^(no|non|without)_.*flash|flash\w*_?=+_?(0|false|off|no)$|unfused|eager|math|naive|vanilla|standard", "unfused"),
    (r"cudnn", "te_flash"),
    (r"flash_?(attn|attention)?_?(v)?3|fa_?3", "flash3"),
    (r"flash_?(attn|attention)?_?(v)?2|fa_?2|sdpa|scaled_dot_product|flex|splash|aotriton", "flash2"),
    (r"flash_?(attn|attention)?_?(v)?_?=*1|fa_?1|triton|xformers|memory_efficient", "flash1"),
    (r"(^|_)te(_|$)|transformer_engine", "te_flash"),
    (r"torch|local|dot_product", "unfused"),
    (r"fused", "megatron_fused"),
    (r"flash", "flash2"),
)


def attention_name(written: str, known: Collection[str], default: str) -> Taken:
    """The attention kernel, or the framework's own."""
    asked = plain(written)
    if not asked or asked in known:
        return Taken(asked or default)
    word = next((ours for pattern, ours in ATTENTION if re.search(pattern, asked)), default)
    if word == "megatron_fused" and default == "te_flash" and "softmax" not in asked:  # cuDNN's, called so today
        word = default
    return Taken(word, f"attention {written} taken as {word}")


# ---- recomputation


class Recompute(NamedTuple):
    """A mode of ours and the layers of each chunk it covers."""

    mode: str
    layers: int = ALL_LAYERS
    remark: str = ""


MODES = {
    "none": "none", "0": "none", "0.0": "none", "-": "none",
    "selective": "selective", "op_sac": "op_sac",
    **dict.fromkeys(("full", "uniform", "true", "1", "1.0", "yes", "on", "all", "all layers", "remat", "ac"), "full"),
    "nothing_saveable": "full", "everything_saveable": "none", "recompute-activations": "selective",
}  # fmt: skip
"""Spellings that mean exactly one of our modes."""

NEGATED = re.compile(r"\b(no|not|none|off|false|without|w/o|disabled?|n/a|never)\b")
SWITCHED_OFF = re.compile(
    r"\b(re\w*comput\w*|\w*checkpoint\w*|ckpt|remat\w*|ac|selective|full)\s*[=:]\s*(0|no|none|off|false)\b(?!\.)"
)
BEGINS_WITH_A_MODE = re.compile(r"(full|selective|uniform|block)\b")
"""Words that turn what they stand with into nothing, unless it begins with what is recomputed: ``full (no offload)``;
policies of JAX that have one in their name are not meant."""
WHOLE_LAYERS = re.compile(r"\b(full|block|uniform)\b|every|layers?\D{0,3}\d|\d[_ ]?layers?\b|\d of \d")
"""Words that are about layers, whatever parts of one they name beside."""
POLICIES = re.compile(r"nothing_saveable|no_batch_dims")

MODULES = {
    **dict.fromkeys(("core_attn", "attn", "attention", "selective"), "selective"),
    **dict.fromkeys(("mla_up_proj", "mla_up_projection", "mla_up_projections"), "mla_up_proj"),
    "mlp": "mlp", "moe": "moe", "moe_layer": "moe",
    **dict.fromkeys(("layernorm", "layernorms", "rmsnorm", "norm", "norms"), "norm_act"),
    **dict.fromkeys(("moe_act", "swiglu", "activations"), "norm_act"),
}  # fmt: skip
"""Megatron's and others' words for parts of a layer that are recomputed, one or several of them."""

PART_NAMES = {"mla_up_proj": "latent attention", "mlp": "dense MLP", "moe": "experts"}
"""What a mode recomputes that a model may not have."""

PARTS = (
    (r"mla_?up", ("mla_up_proj",)),
    (r"minimal_(flash|with_context)", ("norm_act",)),
    (r"minimal|checkpoint_dots|dots_saveable", ("selective", "norm_act")),
    (r"attn|attention|sdpa", ("selective",)),
    (r"norm|act|swiglu|gelu|silu", ("norm_act",)),
    (r"shared_?expert|router", ()),
    (r"moe|expert", ("moe",)),
    (r"mlp|ffn|feed.?forward", ("mlp",)),
)
"""Parts of a layer by other names, and what comes nearest; the first match counts. ``minimal`` is MaxText's: outputs of
projections are kept."""


WHOLE_MODES = r"full|selective|block|uniform|checkpoint|ckpt|remat|layers?|freq|nothing_saveable|\d of \d"
"""What is said of whole layers, some of them or all."""


def recompute_mode(
    written: str, modes: Sequence[str], *, lacks: Collection[str], layers_per_chunk: Callable[[], int]
) -> Recompute:
    """The mode, and how many layers of a chunk where they are counted.

    ``modes`` are the trainer's, default first; ``lacks`` is what modes recompute and the model has not.
    """
    asked = written.strip().lower()
    nothing = says_nothing(asked) and asked != "none"
    if not asked or nothing or re.search(r"unknown|unspecified|not (stated|given|said|specified|reported)", asked):
        return Recompute(modes[0])
    what = _in_short(asked.removeprefix("other:"))
    selects_ops = "selective" not in modes and "op_sac" in modes
    if what in MODES:
        return Recompute("op_sac" if MODES[what] == "selective" and selects_ops else MODES[what])
    says_no = NEGATED.search(what) and not BEGINS_WITH_A_MODE.match(what)
    if (says_no or SWITCHED_OFF.search(what)) and not POLICIES.search(what):
        return Recompute("none")
    if mode := combined(what.split("+")):  # our own word for several parts
        return _made_of(parts_of(mode), written, lacks=lacks, why="")
    modules = [re.sub(r"[\s\-]+", "_", module.strip()) for module in re.split(r"[+,&]|\band\b", what) if module.strip()]
    if len(modules) == 1 and modules[0] not in MODULES:
        modules = what.split()
    known = [MODULES[module] for module in modules if module in MODULES]
    if known and set(modules) & MODULES.keys() != {"selective"} and not WHOLE_LAYERS.search(what):
        unknown = [module for module in modules if module not in MODULES]
        return _made_of(known, written, lacks=lacks, why=f"without {', '.join(unknown)}" if unknown else "")
    if re.search(r"\bop_?sac|sac\b|_sac_|selective_op", what):
        return Recompute("op_sac")
    if "selective" in what and not re.search(r"full|\d", what):
        mode = "op_sac" if selects_ops else "selective"
        return Recompute(mode, remark=f"recompute {written} taken as {mode}")
    if re.search(r"save_|offloaded", what):
        return Recompute("full", remark=f"recompute {written} taken as full, which comes nearest")
    if re.search(WHOLE_MODES, what) and not re.search(r"checkpoint_dots|dots_saveable", what):
        return _counted(what, layers_per_chunk)
    for pattern, parts in PARTS:
        if re.search(pattern, what):
            return _made_of(parts, written, lacks=lacks, why="which comes nearest")
    return Recompute("selective", remark=f"recompute {written} taken as selective")


def _in_short(words: str) -> str:
    """Without quotes, brackets, asides that say what is not meant, and the names of options before their values."""
    plainly = re.sub(r"[\[\]'\"]", "", words.translate(_DASHES)).strip().lstrip("-")
    plainly = re.sub(r"\((no|not|without|use_\w+)\b[^)]*\)|\buse_reentrant\s*=\s*\w+", "", plainly)
    plainly = re.sub(r"^(remat_?policy|policy|recompute_modules)\s*[=:]\s*", "", plainly)
    plainly = re.sub(r"\blayer[ _\-]?norm", "layernorm", plainly)
    of_parts = re.match(r"selective[:_ ]+(?=(core|attn|moe|mla|mlp|norm|layernorm|rmsnorm|swiglu)[\w+, ]*$)", plainly)
    return plainly[of_parts.end() :] if of_parts else plainly.strip(" ,")


def _made_of(parts: Sequence[str], written: str, *, lacks: Collection[str], why: str) -> Recompute:
    """The mode of those parts that the model has; said where there is a reason (``why``) to."""
    has = [part for part in parts if part not in lacks]
    if len(has) < len(parts):
        names = (PART_NAMES[part] for part in PART_NAMES if part in parts and part in lacks)
        why = f"as the model has no {' and no '.join(names)}"
    mode = combined(has or ("norm_act" if "mla_up_proj" in parts else "none",))
    assert mode is not None  # every set of them has one
    return Recompute(mode, remark=f"recompute {written} taken as {mode}, {why}" if why else "")


def _counted(what: str, layers_per_chunk: Callable[[], int]) -> Recompute:
    """Full recomputation of the layers counted, of one in so many, or of all (``uniform`` counts those of a group)."""
    if some := re.search(r"(\d+) of \d+", what):
        return Recompute("full", int(some[1][:6]))
    if every := re.search(
        r"(?:every|freq|selective(?:_ac_option|_layer)?(?![_ =:]*\d+[_ ]layers))[_ =:]*(other|\d+)", what
    ):
        step = 2 if every[1] == "other" else max(1, int(every[1][:6]))
        return Recompute("full", max(1, layers_per_chunk() // step))
    count = re.search(r"layers?\D{0,3}(\d+)|(\d+)[_ ]?layers?\b|block\W{0,3}(\d+)", what)
    if count is None or "uniform" in what:
        return Recompute("full")
    return Recompute("full", int((count[1] or count[2] or count[3])[:6]))


# ---- context parallelism

EXCHANGES = (
    (r"a2a|all_?to_?all|ulysses", "all_to_all"),
    (r"p2p|ring|zig_?zag", "ring"),
    (r"gather|(^|_)ag(_|$)", "all_gather"),
)


def cp_exchange_name(written: str, default: str) -> str:
    """What context-parallel ranks exchange; the trainer's own where nothing is said that we know."""
    asked = plain(written)
    return next((ours for pattern, ours in EXCHANGES if re.search(pattern, asked)), default)


# ---- schedules

SCHEDULES = (
    (r"dual_?pipe", "dualpipe"),
    (r"interleaved_?zero_?bubble", "interleaved"),
    (r"zb_?v|v_?schedule", "zb-v"),
    (r"zb|zero_?bubble", "zb-h1"),
    (r"gpipe|afab|f_?then_?b|all_forward", "gpipe"),
)


def schedule_name(written: str, *, pp: int, vpp: int, default: str = "1f1b") -> Taken:
    """The pipeline schedule; what is no word of ours runs the trainer's (``default``), or interleaves chunks."""
    if pp == 1:
        return Taken("1f1b")
    asked = plain(written)
    usual = "interleaved" if vpp > 1 else "1f1b" if "1f1b" in asked else default
    special = next((ours for pattern, ours in SCHEDULES if re.search(pattern, asked)), "")
    if special == "interleaved" or asked.endswith("pipev"):
        return Taken(special, f"schedule {written} taken as {special}, which comes nearest")
    if special or not asked or re.search(r"1f1b|interleaved|none", asked):
        return Taken(special or usual)
    return Taken(usual, f"schedule {written} taken as {usual}")
