"""Megatron-Bridge's configuration as YAML: what it dumps beside a checkpoint, or settings in the same groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dlcalc.errors import Problem, SpecError, nearest
from dlcalc.launch.imported import Imported
from dlcalc.launch.megatron.bridge import DEFAULTS, LATENT_YARN, PLACES, PLAIN_YARN
from dlcalc.launch.megatron.details import FUNCTION, GATE, GATED, UNGATED
from dlcalc.launch.megatron.options import BY_NAME, Option, Value
from dlcalc.launch.megatron.patterns import pattern_of
from dlcalc.launch.megatron.said import Place, Said, is_misspelling, parsed
from dlcalc.launch.megatron.understand import imported
from dlcalc.specs.marked_yaml import Marks, Mistake, read_marked

OPTION_AT: Mapping[str, str] = {place: name for name, places in PLACES.items() for place in places} | {
    f"model.{name}": name for name in ("tp_comm_overlap", "overlap_moe_expert_parallel_comm")
}
"""The last two are what a run makes of its group ``comm_overlap``."""
GROUPS = ("model", "train", "mixed_precision", "ddp", "dist", "optimizer", "comm_overlap", "dataset", "tokenizer")
"""Those that decide of a plan."""
_OTHER = """checkpoint dist env_vars ft inprocess_restart logger nvrx_straggler optimizer_config_override_provider peft
profiling rerun_state_machine rng scheduler straggler tensor_inspect validation"""
OTHER_GROUPS = frozenset(_OTHER.split())
BACKENDS = {1: "flash", 2: "fused", 3: "unfused", 4: "local", 5: "auto"}
"""Of attention, by the number under which a dump has them."""
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "uint8": "fp8"}
PRECISIONS: Mapping[str, dict[str, Value]] = {
    "bf16_mixed": {},
    "fp16_mixed": {"fp16": True, "bf16": False},
    "bf16_with_fp8_delayed_scaling_mixed": {"fp8": "hybrid", "fp8_recipe": "delayed"},
    "bf16_with_fp8_current_scaling_mixed": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "bf16_with_fp8_subchannel_scaling_mixed": {"fp8": "hybrid", "fp8_recipe": "blockwise"},
    "bf16_with_mxfp8_mixed": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
    "bf16_with_nvfp4_mixed": {"fp4": "e2m1", "fp4_recipe": "nvfp4"},
}
"""Precisions by name, where a dump was made before they were resolved."""
FUNCTION_NAMES = {"squared_relu": "relu2", "fast_gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swiglu": "silu"}
"""Of activations, ours."""
BUCKET_ELEMENTS = 128 * 2**20
"""Of gradients, where overlap is configured and says nothing of it."""


def read(text: str, file: Path) -> Imported:
    """One run as Megatron-Bridge was told to do it."""
    data, marks = _groups(text, file)
    labels = {name: places[0] for name, places in PLACES.items()} | {"max_position_embeddings": "model.seq_length"}
    said = Said(file, defaults=DEFAULTS, labels=labels)
    for group in data:
        if group in GROUPS:
            _read_group(said, group, data[group], marks)
        elif not group.startswith("_"):
            _other_group(said, group, marks)
    _precision(said, data, marks)
    _derive(said, data, marks)
    return imported(said, "megatron-bridge")


def _groups(text: str, file: Path) -> tuple[dict[str, object], Marks]:
    try:
        data, marks = read_marked(text)
    except Mistake as mistake:
        raise SpecError(file, mistake.problems) from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        text = "holds no group 'model'; a configuration of Megatron-Bridge is YAML of groups (model, train, ddp, ...)"
        raise SpecError(file, (Problem(0, "", text),))
    return {str(key): value for key, value in data.items()}, marks


def _other_group(said: Said, group: str, marks: Marks) -> None:
    near = [one for one in nearest(group, (*GROUPS, *OTHER_GROUPS)) if is_misspelling(group, one)]
    if group not in OTHER_GROUPS and near:
        raise said.error(Place(marks.line_of((group,)), group), f"no such group; did you mean {near[0]}?")
    said.ignore(group)


def _read_group(said: Said, group: str, fields: object, marks: Marks) -> None:
    if fields is None or (group == "mixed_precision" and isinstance(fields, str)):
        return
    if not isinstance(fields, dict):
        raise said.error(Place(marks.line_of((group,)), group), "must be a mapping of fields to values")
    known = [place for place in OPTION_AT if place.startswith(f"{group}.")]
    for key, value in fields.items():
        label = f"{group}.{key}"
        place = Place(marks.line_of((group, key)), label)
        if label in OPTION_AT:
            _read_field(said, BY_NAME[OPTION_AT[label]], _plain(value), place)
        elif label not in UNREAD_NEIGHBOURS and (near := [one for one in nearest(label, known) if _typo(label, one)]):
            raise said.error(place, f"no such field; did you mean {near[0]}?")


def _typo(label: str, known: str) -> bool:
    return is_misspelling(label.partition(".")[2], known.partition(".")[2], abbreviates=False)


UNREAD_NEIGHBOURS = frozenset({"tokenizer.vocab_file"})
"""Fields that exist and are not read, though they are spelt almost like one that is."""


def _plain(value: object) -> object:
    """What a dump's description of an object stands for: the name of a function, the number of an enumeration."""
    if not isinstance(value, dict) or "_target_" not in value:
        return value
    arguments = value.get("_args_")
    if isinstance(arguments, list) and len(arguments) == 1:
        return arguments[0]
    return str(value["_target_"]).rpartition(".")[2]


def _read_field(said: Said, option: Option, value: object, place: Place) -> None:
    """One field that an option is read from; null and an empty list are as if it was not there."""
    if value is None and option.name == "q_lora_rank":
        _set(said, option, 0, place)  # which is not the default
    if value is None or value == []:
        return
    if option.kind in ("on", "off"):
        if not isinstance(value, bool):
            raise said.error(place, f"must be true or false, not {value!r}")
        _set(said, option, value, place)
        return
    if isinstance(value, bool):
        raise said.error(place, f"needs a value, not {str(value).lower()}")
    _set(said, option, parsed(said, option, _words(option, value), place), place)


def _set(said: Said, option: Option, value: Value, place: Place) -> None:
    """Of several fields of one option, ``comm_overlap`` decides, and for switches whichever is on."""
    if option.name not in said.values:
        said.set(option.name, value, place)
    elif place.label.startswith("comm_overlap."):
        said.values[option.name] = value
        said.places[option.name] = place
    elif option.kind == "on":
        said.values[option.name] = bool(value) or said.values[option.name]
    elif option.name != "vocab_size":
        said.set(option.name, value, place)


def _words(option: Option, value: object) -> list[str]:
    if option.name == "attention_backend" and isinstance(value, int):
        return [BACKENDS.get(value, str(value))]
    if option.name.endswith("_dtype"):
        name = str(value).rpartition(".")[2]
        return [DTYPES.get(name, name)]
    if isinstance(value, list):
        plain = [_plain(entry) for entry in value]
        if option.name in ("moe_layer_freq", "window_attn_skip_freq"):
            return [pattern_of([bool(entry) for entry in plain]) if plain else "[]"]
        if option.name == "pipeline_model_parallel_layout":
            return ["|".join("".join(_letter(layer) for layer in chunk) for chunk in plain if isinstance(chunk, list))]
        return [str(entry) for entry in plain] if option.kind == "words" else [",".join(str(entry) for entry in plain)]
    if option.kind == "whole" and isinstance(value, float) and value.is_integer():
        return [str(int(value))]
    return [str(value)]


def _letter(layer: object) -> str:
    """Of a layer in a list of chunks."""
    return {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}.get(str(_plain(layer)), "?")


def _precision(said: Said, data: Mapping[str, object], marks: Marks) -> None:
    """Of its group; of its name where that is all there is; of the model where there is no group."""
    group = data.get("mixed_precision")
    place = Place(marks.line_of(("mixed_precision",)), "mixed_precision")
    if isinstance(group, str):
        name = re.sub(r"-", "_", group)
        if name not in PRECISIONS:
            near = nearest(name, PRECISIONS)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PRECISIONS)}"
            raise said.error(place, f"no such precision as {group!r}; {hint}")
        for option, value in ({"bf16": True} | PRECISIONS[name]).items():
            said.set(option, value, place)
    elif group is None and isinstance(data["model"], dict):
        for option in ("bf16", "fp16", "fp8", "fp8_recipe", "fp4"):
            plain = _plain(data["model"].get(option))
            if plain is not None:
                said.set(option, plain if isinstance(plain, (bool, str)) else str(plain), place)


def _derive(said: Said, data: Mapping[str, object], marks: Marks) -> None:
    """Options that several fields decide together, or that a field says the opposite of."""
    model = data["model"]
    assert isinstance(model, dict)

    def derived(option: str, value: Value, field: str, group: str = "model") -> None:
        said.values[option] = value
        said.places[option] = Place(marks.line_of((group, field)), f"{group}.{field}")

    _derive_activation(said, model, marks)
    latent = said.on("multi_latent_attention")
    for option, field in (LATENT_YARN if latent else PLAIN_YARN).items():
        if isinstance(value := _plain(model.get(field)), int | float):
            derived(option, value, field)
    if latent and "rotary_scaling_factor" not in said.values:
        derived("rotary_scaling_factor", 40.0, "rotary_scaling_factor")  # its own default
    fusion = model.get("bias_activation_fusion") is True
    derived("bias_swiglu_fusion", fusion, "bias_activation_fusion")
    derived("bias_gelu_fusion", fusion or not said.on("add_bias_linear"), "bias_activation_fusion")
    shared = model.get("share_embeddings_and_output_weights")
    derived("untie_embeddings_and_output_weights", shared is False, "share_embeddings_and_output_weights")
    groups = said.get("num_query_groups") if "num_query_groups" in said.values else None
    derived("group_query_attention", groups is not None and not latent, "num_query_groups")
    if said.get("seq_length") is not None:
        derived("max_position_embeddings", said.get("seq_length"), "seq_length")
    if said.get("expert_tensor_parallel_size") is None and said.count("expert_model_parallel_size", 1) > 1:
        said.values["expert_tensor_parallel_size"] = 1
    if said.get("pipeline_model_parallel_layout") is not None:
        said.values.pop("num_virtual_stages_per_pipeline_rank", None)  # a run derives it from the layout
    _derive_gradients(said, data)
    if said.get("cpu_offloading_num_layers") and model.get("cpu_offloading") is not True:
        said.values["cpu_offloading_num_layers"] = 0


def _derive_activation(said: Said, model: Mapping[str, object], marks: Marks) -> None:
    """The function, and Megatron's flags of those that have one."""
    written = str(_plain(model.get("activation_func", "gelu")))
    function = FUNCTION_NAMES.get(written, written)
    gated = model.get("gated_linear_unit") is True
    flags = GATED if gated else UNGATED
    said.values |= {GATE: gated, FUNCTION: function}
    for option in ("swiglu", "quick_geglu", "squared_relu"):
        said.values[option] = option == flags.get(function)  # type: ignore[call-overload]
        said.places[option] = Place(marks.line_of(("model", "activation_func")), "model.activation_func")


def _derive_gradients(said: Said, data: Mapping[str, object]) -> None:
    """The precision decides whether gradients are summed in 32 bits; overlap has defaults of its own."""
    precision, ddp = data.get("mixed_precision"), data.get("ddp")
    in_32_bits: object = True
    if isinstance(precision, dict):
        in_32_bits = precision.get("grad_reduce_in_fp32", True)
    elif precision is None and isinstance(ddp, dict):
        in_32_bits = ddp.get("grad_reduce_in_fp32", False)
    said.values["grad_reduce_in_bf16"] = in_32_bits is False and not said.on("fp16")
    said.values["accumulate_allreduce_grads_in_fp32"] = in_32_bits is not False
    overlap = data.get("comm_overlap")
    if not isinstance(overlap, dict):
        said.values.setdefault("overlap_p2p_comm", True)
    elif said.on("use_distributed_optimizer"):
        fully = said.on("use_megatron_fsdp")
        for option, usual in (
            ("overlap_grad_reduce", True),
            ("overlap_param_gather", True),
            ("bucket_size", BUCKET_ELEMENTS),
        ):
            if overlap.get(option) is None and not (fully and option == "bucket_size"):
                said.values["ddp_bucket_size" if option == "bucket_size" else option] = usual
