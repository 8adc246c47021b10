"""A frozen teacher that no process holds as a whole: each keeps a part and borrows the rest, block by block (FSDP2)."""

from __future__ import annotations

import os

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hf_kdmri.distillation import DistillationModel
from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.data_options import OptionError

# What the teacher is asked by, beside `forward`: each gathers the weights it needs and lets them go.
_ASKED_BY = ("forward_intermediates", "forward_head", "forward_features")

_ONE_PROCESS = "shard_teacher divides the teacher among processes, and there is one; start several, or leave it out"


def shard_teacher(model: DistillationModel, device: torch.device) -> None:
    """Divide the teacher's weights among the processes of each machine; the student stays whole on each of them.

    FSDP2 (`fully_shard`) is put on every block of the teacher and then on the rest of it. A forward gathers one block
    at a time and lets it go. The student and what trains beside it are left to DistributedDataParallel, which is told
    to leave the teacher alone. On several machines each holds a whole teacher, divided among its own processes,
    so that no weights cross the network.

    All processes must then ask the teacher equally often. Its weights are changed in place, for good: evaluate and save
    another copy.

    Args:
        model: with a teacher whose weights are the same on all processes; not yet wrapped, and best on the CPU, so that
            no accelerator has to hold the whole teacher first.
        device: where this process computes.

    Raises:
        OptionError: there is no teacher, just one process, or processes that do not divide into machines.
    """
    if model.teacher is None:
        raise OptionError("there is no teacher to shard; leave shard_teacher out")
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() < 2:
        raise OptionError(_ONE_PROCESS)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    processes = distributed.get_world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if processes % here:
        raise OptionError(f"{processes} processes do not divide into machines of {here}; start equally many on each")
    mesh = init_device_mesh(device.type, (processes // here, here), mesh_dim_names=("machine", "part"))["part"]
    network = model.teacher.timm_model
    network.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other; its inputs may well be channels-last
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)  # no backward pass would let go of its weights
    for name in _ASKED_BY:
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model,
        [f"teacher.{name}" for name, _ in [*model.teacher.named_parameters(), *model.teacher.named_buffers()]],
    )


def refuse_other_wrappers(args: DistillationTrainingArguments) -> None:
    """Refuse accelerate's FSDP and DeepSpeed's ZeRO-3, which would divide the student with everything else.

    A student has few weights, and is saved from where it is whole; a large teacher is what `shard_teacher` is for. It
    is refused here already where there is one process, before a teacher is trained that would then be divided.

    Raises:
        OptionError: one of them was asked for, by accelerate's configuration or by the arguments.
    """
    if args.shard_teacher and args.world_size < 2:
        raise OptionError(_ONE_PROCESS)
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise OptionError(
            "accelerate's FSDP would divide the student as well as the teacher, and no whole student could be saved; "
            "launch with configs/accelerate/sharded_teacher.yaml and --shard_teacher, which divides the teacher alone"
        )
    plugin = args.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise OptionError(
            "DeepSpeed's ZeRO-3 would divide the student as well as the teacher; set zero_stage to 1 or 2, or divide "
            "the teacher alone with --shard_teacher (docs/scale.md)"
        )
    if plugin is not None and args.shard_teacher:
        raise OptionError("shard_teacher works with DistributedDataParallel, not with DeepSpeed; leave one of them out")


def teacher_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of a network's parameters that this process holds, and of all of them.

    Args:
        model: sharded or not.
    """
    held = whole = 0
    for parameter in model.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        held += local.numel() * local.element_size()
        whole += parameter.numel() * parameter.element_size()
    return held, whole


def _blocks(network: nn.Module) -> list[nn.Module]:
    """What is gathered at one time: the members of a network's sequences, or of the stages that are its members."""
    found: list[nn.Module] = []
    for child in network.children():
        if not isinstance(child, nn.ModuleList | nn.Sequential):
            continue
        for member in child:
            if isinstance(member, nn.ModuleList | nn.Sequential):  # a stage that is a sequence itself
                found += [block for block in member if _has_weights(block)]
            elif isinstance(blocks := getattr(member, "blocks", None), nn.ModuleList | nn.Sequential):
                found += [block for block in blocks if _has_weights(block)]
            elif _has_weights(member):
                found.append(member)
    return found


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
