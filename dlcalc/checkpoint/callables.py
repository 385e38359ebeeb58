"""The allow-list: every class and function that a checkpoint's pickle may name, and what stands for its result.

Nothing named here is imported, let alone called: ``call`` makes inert records out of the arguments. Whatever is not
here is refused by name. The list holds what PyTorch itself, torch.distributed.checkpoint, Megatron, DeepSpeed and
Lightning write into training checkpoints, and the plain data types of Python and NumPy.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Sequence
from typing import Any

from dlcalc.checkpoint.contents import DTYPE_BITS
from dlcalc.checkpoint.faults import DamagedError, RefusedCallError
from dlcalc.checkpoint.inert import Blob, Mapping, Record, StorageRef, Symbol, TensorRef, attribute_in

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 2**62
MAX_COPIED_PAIRS = 1_000_000

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}

_DTYPES = frozenset(f"torch.{name}" for name in DTYPE_BITS)
_STORAGES = frozenset(
    f"{module}.{name}" for module in ("torch", "torch.cuda", "torch.storage") for name in _STORAGE_DTYPES
)
_ONLY_NAMED = frozenset(
    {
        *("typing.Any", "builtins.object", "builtins.type", "builtins.NoneType"),
        *("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"),
        *("torch.strided", "torch.contiguous_format", "torch.channels_last", "torch.preserve_format"),
        *("torch.per_tensor_affine", "torch.per_channel_affine", "torch.per_channel_affine_float_qparams"),
        "torch.distributed.tensor.DTensor",
        *("torch.distributed._tensor.api.DTensor", "torch.distributed.tensor._api.DTensor"),
        *("torch.storage.TypedStorage", "torch.nn.Parameter"),
    }
)
"""Classes that may be arguments, but not be called."""


def _under(module: str, *names: str) -> frozenset[str]:
    return frozenset(f"{module}.{name}" for name in names)


_ENUMS = frozenset().union(
    _under("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    _under("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    _under("torch.distributed.fsdp.api", "StateDictType", "ShardingStrategy"),
    _under("signal", "Signals", "Handlers"),
    *(
        _under(module, "ModelType", "LayerType", "AttnType", "AttnMaskType", "PositionEmbeddingType", "UnetType")
        for module in ("megatron.model.enums", "megatron.legacy.model.enums", "megatron.core.transformer.enums")
    ),
    _under("megatron.core.enums", "ModelType", "Fp8Recipe", "Fp4Recipe"),
    _under("megatron.core.transformer.enums", "AttnBackend", "CudaGraphScope"),
    _under(
        "megatron.core.rerun_state_machine", "RerunMode", "RerunDiagnostic", "RerunState", "RerunErrorInjectionType"
    ),
    _under("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    _under("deepspeed.runtime.zero.offload_config", "OffloadDeviceEnum"),
)
"""A member is pickled as a call of the class, or by some versions of Python as ``getattr`` of it."""

_RECORDS = frozenset().union(
    _ENUMS,
    _under("builtins", "set", "frozenset", "complex", "bytearray", "bytes", "slice", "range", "list", "tuple"),
    _under("builtins", "int", "float", "bool", "str"),
    _under("collections", "deque"),
    _under("argparse", "Namespace"),
    _under("types", "SimpleNamespace"),
    _under("datetime", "datetime", "date", "time", "timedelta", "timezone"),
    _under("decimal", "Decimal"),
    _under("fractions", "Fraction"),
    _under("uuid", "UUID"),
    *(
        _under(module, "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
        for module in ("pathlib", "pathlib._local")
    ),
    _under("torch", "device", "Generator"),
    _under("torch.serialization", "_get_layout"),
    _under("torch.torch_version", "TorchVersion"),
    _under("torch.distributed.device_mesh", "DeviceMesh", "_MeshEnv"),
    _under("torch.distributed._mesh_layout", "_MeshLayout", "_FlatLayout"),
    *(
        _under(f"torch.distributed.{module}", "DTensorSpec", "TensorMeta", "ShardOrderEntry")
        for module in ("tensor._dtensor_spec", "_tensor._dtensor_spec", "_tensor.placement_types")
    ),
    *(
        _under(f"torch.distributed.{module}", "Shard", "Replicate", "Partial", "_Partial", "_StridedShard")
        for module in ("tensor.placement_types", "_tensor.placement_types")
    ),
    _under(
        "torch.distributed.checkpoint.metadata",
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex"),
        *("TensorProperties", "StorageMeta"),
    ),
    _under("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties", "ShardedTensorMetadata"),
    _under("torch.distributed._shard.metadata", "ShardMetadata"),
    _under("torch.distributed.checkpoint.filesystem", "_StorageInfo", "_StoragePrefix"),
    _under("torch.distributed.checkpoint.hf_storage", "_HFStorageInfo"),
    _under("numpy", "dtype", "ndarray", "bool_", *(name for name in DTYPE_BITS if name[-1].isdigit())),
    *(_under(f"numpy.{core}.multiarray", "_reconstruct", "scalar") for core in ("core", "_core")),
    *(_under(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    _under("numpy.random._pickle", "__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor"),
    _under("numpy.random._mt19937", "MT19937"),
    _under("numpy.random._pcg64", "PCG64"),
    _under("numpy.random._philox", "Philox"),
    _under("numpy.random.bit_generator", "SeedSequence"),
    _under(
        "megatron.core.rerun_state_machine",
        "RerunDataIterator",
        "QuickStats",
        "RerunErrorInjector",
        "RerunValidationStatus",
    ),
    _under("megatron.core.transformer.pipeline_parallel_layer_layout", "PipelineParallelLayerLayout"),
    _under("deepspeed.runtime.fp16.loss_scaler", "LossScaler", "DynamicLossScaler"),
    _under("deepspeed.utils.tensor_fragment", "fragment_address", "tensor_fragment"),
    _under("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
    _under("omegaconf.dictconfig", "DictConfig"),
    _under("omegaconf.listconfig", "ListConfig"),
    _under("omegaconf.base", "ContainerMetadata", "Metadata"),
    _under("omegaconf.nodes", "AnyNode", "IntegerNode", "FloatNode", "StringNode", "BooleanNode"),
    _under("pytorch_lightning.utilities.parsing", "AttributeDict"),
    _under("lightning.fabric.utilities.data", "AttributeDict"),
    _under("lightning_fabric.utilities.data", "AttributeDict"),
)
"""Classes that may be called: the result is a record of the arguments."""


def find(module: str, name: str) -> Symbol:
    """What a pickle names, if it is on the list. Protocols below 3 write the names of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    symbol = Symbol(module, name)
    full_name = symbol.full_name
    if full_name in _RECORDS or full_name in CONSTRUCTORS or full_name in _DTYPES:
        return symbol
    if full_name in _STORAGES or full_name in _ONLY_NAMED:
        return symbol
    raise RefusedCallError(full_name)


def call(function: object, args: object) -> object:
    """What stands for ``function(*args)``."""
    if not isinstance(function, Symbol) or not isinstance(args, tuple):
        raise DamagedError("damaged: its pickle calls something that is no function")
    if constructor := CONSTRUCTORS.get(function.full_name):
        return constructor(function, args)
    if function.full_name in _RECORDS:
        return Record(function, args)
    raise RefusedCallError(function.full_name)


def dtype_name(symbol: object) -> str:
    """The dtype that ``torch.bfloat16`` stands for."""
    if isinstance(symbol, Symbol) and symbol.full_name in _DTYPES:
        return symbol.name
    raise DamagedError("damaged: a tensor's dtype is none")


def sizes(value: object) -> tuple[int, ...]:
    """A shape or strides: whole numbers that are not negative."""
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise DamagedError("damaged: a tensor's shape is none")
    for size in value:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise DamagedError("damaged: a tensor's shape is none")
    return tuple(value)


def storage_of(persistent_id: object) -> StorageRef:
    """The storage that a persistent id of torch.save stands for."""
    match persistent_id:
        case ("storage", Symbol() as kind, str(key), _, int(n_elements), *_) if kind.full_name in _STORAGES:
            if 0 <= n_elements <= MAX_ELEMENTS:
                dtype = _STORAGE_DTYPES[kind.name]
                return StorageRef(key, dtype, -(-n_elements * DTYPE_BITS[dtype] // 8))
    raise DamagedError("damaged: its pickle refers to something that is no storage")


# ---- what stands for the results of functions that need a look at their arguments


def _tensor(_: Symbol, args: tuple[Any, ...]) -> TensorRef:
    if len(args) < 4:
        raise DamagedError("damaged: a tensor has too few arguments")
    storage, offset, shape, strides = args[:4]
    if not isinstance(storage, StorageRef):
        raise DamagedError("damaged: a tensor has no storage")
    return _view(storage, storage.dtype, offset, shape, strides)


def _tensor_v3(_: Symbol, args: tuple[Any, ...]) -> TensorRef:
    if len(args) < 7 or not isinstance(args[0], StorageRef):
        raise DamagedError("damaged: a tensor has too few arguments")
    return _view(args[0], dtype_name(args[6]), *args[1:4])


def _view(storage: StorageRef, dtype: str, offset: object, shape: object, strides: object) -> TensorRef:
    own_sizes, own_strides = sizes(shape), sizes(strides)
    if type(offset) is not int or not 0 <= offset <= MAX_ELEMENTS or len(own_sizes) != len(own_strides):
        raise DamagedError("damaged: a tensor's offset or strides are none")
    _check_count(own_sizes)
    if all(own_sizes):
        last = offset + sum((size - 1) * stride for size, stride in zip(own_sizes, own_strides, strict=True))
        if (last + 1) * DTYPE_BITS[dtype] > storage.size_bytes * 8:
            raise DamagedError(
                f"damaged: a tensor of {list(own_sizes)} {dtype} reaches beyond its storage of {storage.size_bytes:,} B"
            )
    return TensorRef(own_sizes, dtype, storage, own_strides, offset)


def _check_count(shape: Sequence[int]) -> None:
    n_elements = 1
    for size in shape:
        n_elements *= size
        if n_elements > MAX_ELEMENTS:
            raise DamagedError("damaged: a tensor of more than 2^62 elements")


def _meta_tensor(_: Symbol, args: tuple[Any, ...]) -> TensorRef:
    if len(args) < 2:
        raise DamagedError("damaged: a tensor has too few arguments")
    shape = sizes(args[1])
    _check_count(shape)
    return TensorRef(shape, dtype_name(args[0]), None)


def _wrapped_tensor(symbol: Symbol, args: tuple[Any, ...]) -> TensorRef:
    return _meta_tensor(symbol, args[1:])


def _first_argument(_: Symbol, args: tuple[Any, ...]) -> object:
    if not args:
        raise DamagedError("damaged: a call has no arguments")
    return args[0]


def _typed_tensor(_: Symbol, args: tuple[Any, ...]) -> object:
    """A tensor of a subclass, or with attributes: ``(function, type, arguments, state)``."""
    if len(args) != 4 or not isinstance(args[0], Symbol) or CONSTRUCTORS.get(args[0].full_name) is _typed_tensor:
        raise DamagedError("damaged: a tensor has the wrong arguments")
    made = call(args[0], args[2])
    return _local_shard(made, args[3])


def _local_shard(made: object, state: object) -> object:
    """Of a DTensor, the part that this file holds."""
    local = attribute_in(state, "_local_tensor")
    return local if isinstance(local, TensorRef) else made


def _sparse_tensor(_: Symbol, args: tuple[Any, ...]) -> Mapping:
    """Indices and values, as they lie in the file."""
    parts = args[1] if len(args) > 1 and isinstance(args[1], tuple) else ()
    tensors = [part for part in parts if isinstance(part, TensorRef)]
    labels = ("indices", "values") if len(tensors) == 2 else ("compressed_indices", "plain_indices", "values")
    return Mapping([part for pair in zip(labels, tensors, strict=False) for part in pair])


def _mapping(_: Symbol, args: tuple[Any, ...]) -> Mapping:
    """OrderedDict, defaultdict, Counter: empty, or of a mapping or pairs among the arguments."""
    made = Mapping()
    for argument in args:
        if isinstance(argument, (Mapping, list)) and len(argument) + len(made) > MAX_COPIED_PAIRS:
            raise DamagedError(f"its pickle copies over {MAX_COPIED_PAIRS:,} items at once, which no checkpoint needs")
        if isinstance(argument, Mapping):
            made.flat.extend(argument.flat)
        elif isinstance(argument, list):
            made.flat.extend(
                part for pair in argument if isinstance(pair, (list, tuple)) and len(pair) == 2 for part in pair
            )
    return made


def _size(_: Symbol, args: tuple[Any, ...]) -> tuple[int, ...]:
    return sizes(args[0]) if args else ()


def _encoded(symbol: Symbol, args: tuple[Any, ...]) -> Blob:
    """Bytes, as protocols below 3 write them."""
    if len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
        return Blob(len(args[0]))
    raise RefusedCallError(symbol.full_name)


def _attribute(symbol: Symbol, args: tuple[Any, ...]) -> Record:
    """``getattr``: of a known enumeration and for the name of a member only."""
    match args:
        case (Symbol() as owner, str(member)) if owner.full_name in _ENUMS:
            if member.isidentifier() and not member.startswith("_"):
                return Record(owner, (member,))
    raise RefusedCallError(symbol.full_name)


def _reconstructed(symbol: Symbol, args: tuple[Any, ...]) -> object:
    """``copyreg._reconstructor(class, base, state)``."""
    if len(args) == 3 and isinstance(args[0], Symbol) and isinstance(args[1], Symbol):
        return call(args[0], ())
    raise RefusedCallError(symbol.full_name)


CONSTRUCTORS: dict[str, Callable[[Symbol, tuple[Any, ...]], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_qtensor": _tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_wrapper_subclass": _wrapped_tensor,
    "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
    "torch._utils._rebuild_nested_tensor": _first_argument,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_argument,
    "torch._utils._rebuild_device_tensor_from_numpy": _first_argument,
    "torch._utils._rebuild_xla_tensor": _first_argument,
    "torch._tensor._rebuild_from_type": _typed_tensor,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
    "torch.Size": _size,
    "builtins.dict": _mapping,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "_codecs.encode": _encoded,
    "builtins.getattr": _attribute,
    "copyreg._reconstructor": _reconstructed,
}
