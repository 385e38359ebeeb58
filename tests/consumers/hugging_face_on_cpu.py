"""Runs a DeepSpeed or Accelerate program on CPUs, with what is in the way of that taken away.

DeepSpeed would compile a collective over shared memory first; Gloo serves. Accelerate has FSDP2 on GPUs alone.
"""

import importlib
import runpy
import sys

library, *sys.argv = sys.argv[1:]
if library == "deepspeed":
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
else:
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.state import AcceleratorState, DistributedType

    ParallelismConfig._validate_accelerator = lambda self, accelerator: None
    made = AcceleratorState.__init__

    def made_with_fsdp(self, *args, **kwargs):
        made(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and "fsdp_plugin" in kwargs:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]

    AcceleratorState.__init__ = made_with_fsdp
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
