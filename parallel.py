"""Several processes that train one model together:  torchrun --nproc_per_node=2 train.py

Each takes its share of every batch, and DistributedDataParallel averages their gradients, so that all of them make the
same step (Li et al. 2020, arXiv:2006.15704). Process 0 alone writes files and shows progress. `python train.py` is one process.
"""

import contextlib
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

import cli


@contextlib.contextmanager
def together():
    """with together() as (rank, count): this process is number `rank` of `count`, as torchrun has told it.

    Raises UserError if the connection to the others breaks, as when one of them is killed.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield rank, count
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, _, _ = next(rendezvous("env://"))
    # Processes that torchrun starts again would find the addresses of those that are gone
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=count)
    if rank:
        sys.stdout = open(os.devnull, "w")
    try:
        yield rank, count
    except RuntimeError as error:  # what gloo and nccl raise when a connection breaks
        line = f"process {rank} of {count} stopped: {str(error).splitlines()[0]}"
        if rank:
            print(line, file=sys.stderr)  # cli.run speaks for process 0 alone
        raise cli.UserError(line) from error
    dist.destroy_process_group()


@contextlib.contextmanager
def one_first():
    """What stands in the with block is done by one process of each machine, and then by its others, who find files made."""
    alone, waits = not dist.is_initialized(), os.environ.get("LOCAL_RANK", "0") != "0"
    if waits and not alone:
        dist.barrier()
    yield
    if not waits and not alone:
        dist.barrier()


def wrap(model, device: torch.device):
    """The model as the processes share it: its gradients come out as the average over all of them."""
    if not dist.is_initialized():
        return model
    return DistributedDataParallel(model, device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None)


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if not dist.is_initialized():
        return value
    dist.all_reduce(value)
    return value / dist.get_world_size()


def from_first(value):
    """What process 0 calls with, in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
