"""Several processes that train one model together:  torchrun --nproc_per_node=2 train.py

Each process computes its share of every batch, and DistributedDataParallel averages their gradients, so all
of them make the same step (Li et al. 2020, arXiv:2006.15704). Rank 0 alone writes files and shows progress.
`python train.py` is one process, rank 0 of 1.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from support.cli import UserError


@contextlib.contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Connects the processes that torchrun started:  with process_group() as (rank, world_size): ...

    Raises UserError if the connection to another process breaks, for example because it was killed.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1:
        yield rank, world_size
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, _, _ = next(rendezvous("env://"))
    # Processes that torchrun restarts would otherwise find the addresses of those that are gone
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world_size)
    try:
        if rank:
            with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
                yield rank, world_size
        else:
            yield rank, world_size
        dist.barrier()  # a process that leaves while rank 0 is still saving may abort in gloo's threads
    except RuntimeError as error:  # what gloo and nccl raise when a connection breaks
        line = f"process {rank} of {world_size} stopped: {str(error).splitlines()[0]}"
        if os.environ.get("LOCAL_RANK", "0") != "0":
            print(line, file=sys.stderr)  # run_script prints the errors of local rank 0 only
        raise UserError(line) from error
    dist.destroy_process_group()


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Runs the block on local rank 0 first; the other local ranks then reuse its files."""
    in_group = dist.is_initialized()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if in_group and not is_first:
        dist.barrier()
    yield
    if in_group and is_first:
        dist.barrier()


def data_parallel(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model with its gradients averaged over the processes. With one process, the model itself."""
    if not dist.is_initialized():
        return model
    device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids)


def all_reduce_mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes, in every process."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def broadcast_from_rank_zero(value: Any) -> Any:
    """The value that rank 0 passes, in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
