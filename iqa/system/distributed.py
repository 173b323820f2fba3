"""Several processes, one batch: the shares of all put together so that a loss sees the whole of it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


def shard_sizes(items: int, shards: int) -> list[int]:
    """How many of `items` each shard gets: as even as can be, in order.

    >>> shard_sizes(7, 3)
    [3, 2, 2]
    """
    return [items // shards + (shard < items % shards) for shard in range(shards)]


def gather_shares(accelerator: Accelerator, scores: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The scores and labels of a whole batch, from each process's share of it.

    Args:
        accelerator: the processes.
        scores: (n,) of this process, with their gradient; one crop too many where the share is empty.
        labels: (n, L) of the same crops.
        size: of the whole batch. It decides every share, so that no process has to ask another for its length.

    Returns:
        scores (size,), of which this process's own carry a gradient, and labels (size, L).
    """
    processes, mine = accelerator.num_processes, accelerator.process_index
    if processes == 1:
        return scores, labels
    sizes = shard_sizes(size, processes)
    columns = torch.cat([scores.detach()[:, None], labels], dim=1)
    padded = columns.new_zeros(max(sizes), columns.shape[1])
    padded[: sizes[mine]] = columns[: sizes[mine]]
    shares = accelerator.gather(padded).split(max(sizes))
    shares = [share[:n] for share, n in zip(shares, sizes, strict=True)]
    everyone = [share[:, 0] for share in shares]
    # An empty share still takes part in the backward pass, with nothing to add: the processes wait for each other.
    everyone[mine] = scores[: sizes[mine]] + 0 * scores.sum()
    return torch.cat(everyone), torch.cat([share[:, 1:] for share in shares])


def sum_shares(accelerator: Accelerator, share: Tensor) -> Tensor:
    """The sum over all processes of what each has a share of: with the gradient of this process's own.

    Args:
        accelerator: the processes.
        share: () of this process.
    """
    if accelerator.num_processes == 1:
        return share
    return share + (accelerator.reduce(share.detach().clone(), "sum") - share.detach())
