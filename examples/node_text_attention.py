"""A worked example for `compare_attention_weights.py`: nodes of a graph attend to the words of a text.

    python examples/node_text_attention.py --output node_text
    python compare_attention_weights.py --checkpoint_full node_text/full.npz \
        --checkpoint_no_middle node_text/no_middle.npz --save_dir node_text/comparison

The task is made up. A chain of nodes and a text of words in any order describe the same things: every thing has one
node and one word, and the text has further words that no node means. A node must give its word's value. It
knows its thing only in part: of two parts of the thing's name it has the first, its neighbour the second, so that
several words fit until nodes exchange what they know. `full` lets neighbours exchange before the cross-attention, the
earlier fusion step; `no_middle` does not. Both are trained alike, in seconds on a CPU, and their attention on
samples neither has seen is written with mask, error and group (simple: few words) to `full.npz` and `no_middle.npz`.
The outcome is built into the task: it shows what a supported finding looks like and is no evidence for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.system import progress

NODES, FEWEST_WORDS, MOST_WORDS = 6, 8, 14
PARTS = 5  # values that each of the two parts of a name can take
WIDTH = 32
STEPS, BATCH, LR, NOISE = 800, 128, 3e-3, 0.1
TEST_SAMPLES = 200


class Alignments(NamedTuple):
    """Graphs and the texts that belong to them; B samples of N nodes and T words."""

    nodes: Tensor  # (B, N, 5): what a node knows, the first part of its thing's name
    carried: Tensor  # (B, N, 5): what it carries for its neighbour, the second part of the next thing's name
    words: Tensor  # (B, T, 11): both parts of a name, and a value
    is_word: Tensor  # (B, T) bool: False is padding
    values: Tensor  # (B, N): the value that each node should give


def make_alignments(samples: int, generator: torch.Generator) -> Alignments:
    """Draw samples of the task; no two words of a text have one name."""
    names = torch.rand(samples, PARTS**2, generator=generator).argsort(dim=1)[:, :MOST_WORDS]  # (B, T), all different
    lengths = torch.randint(FEWEST_WORDS, MOST_WORDS + 1, (samples, 1), generator=generator)
    is_word = torch.arange(MOST_WORDS) < lengths  # (B, T)
    values = torch.randn(samples, MOST_WORDS, generator=generator)
    # The order of names is random, so the nodes can take the first of them and the text shuffles the rest along.
    first, second = (F.one_hot(part, PARTS).float() for part in (names // PARTS, names % PARTS))  # (B, T, 5)
    words = torch.cat([first, second, values[:, :, None]], dim=2) * is_word[:, :, None]
    order = torch.rand(samples, MOST_WORDS, generator=generator).masked_fill(~is_word, 2.0).argsort(dim=1)
    words = words.gather(1, order[:, :, None].expand_as(words))  # padding stays last
    noise = NOISE * torch.randn(2, samples, NODES, PARTS, generator=generator)
    carried = second[:, :NODES].roll(-1, dims=1)
    return Alignments(first[:, :NODES] + noise[0], carried + noise[1], words, is_word, values[:, :NODES])


class NodeTextAttention(nn.Module):
    """Nodes attend to words: one head, queries of nodes, keys and values of words.

    Source: cross-attention of Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

    Args:
        fuses_neighbours: each node first takes in its predecessor's features, the earlier fusion step.
    """

    def __init__(self, fuses_neighbours: bool):
        super().__init__()
        self.fuses_neighbours = fuses_neighbours
        self.embed = nn.Linear(2 * PARTS, WIDTH)
        self.fuse = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(2 * PARTS, WIDTH), nn.Linear(2 * PARTS + 1, WIDTH)
        self.read = nn.Linear(WIDTH, 1)

    def forward(self, batch: Alignments) -> tuple[Tensor, Tensor]:
        """Samples -> values (B, N) and attention (B, N, T), whose rows sum to 1."""
        nodes = self.embed(torch.cat([batch.nodes, batch.carried], dim=2))  # (B, N, 32)
        before = nodes.roll(1, dims=1) if self.fuses_neighbours else torch.zeros_like(nodes)
        nodes = nodes + self.fuse(torch.cat([nodes, before], dim=2))
        keys, values = self.key(batch.words[:, :, :-1]), self.value(batch.words)  # (B, T, 32)
        logits = self.query(nodes) @ keys.mT / WIDTH**0.5  # (B, N, T)
        attention = logits.masked_fill(~batch.is_word[:, None], -torch.inf).softmax(dim=-1)
        return self.read(attention @ values)[:, :, 0], attention


def train(fuses_neighbours: bool, steps: int, seed: int) -> NodeTextAttention:
    """A trained model; both kinds have the same parameters, initial values and batches."""
    torch.manual_seed(seed)
    model = NodeTextAttention(fuses_neighbours)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    generator = torch.Generator().manual_seed(seed)
    for _ in progress(range(steps), "with fusion" if fuses_neighbours else "without fusion"):
        batch = make_alignments(BATCH, generator)
        loss = F.mse_loss(model(batch)[0], batch.values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.inference_mode()
def export(model: NodeTextAttention, samples: Alignments, path: Path) -> float:
    """Write attention, mask, error (mean |value - true value| of a sample's nodes) and group; gives the mean error."""
    values, attention = model(samples)
    error = (values - samples.values).abs().mean(dim=1)  # (B,)
    words = samples.is_word.sum(dim=1).numpy()
    np.savez(
        path,
        attention=attention.numpy(),
        mask=samples.is_word.numpy(),
        error=error.numpy(),
        group=np.where(words <= (FEWEST_WORDS + MOST_WORDS) / 2, "simple", "complex"),
    )
    return float(error.mean())


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Train a node-word cross-attention with and without an earlier fusion step.")
    parser.add_argument("--output", type=Path, default=Path("node_text"), help="folder to write to [node_text]")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps [{STEPS}]")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and data [0]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train both models and write their attention on the same unseen samples."""
    arguments = make_parser().parse_args(argv)
    files = {fuses: arguments.output / name for fuses, name in ((True, "full.npz"), (False, "no_middle.npz"))}
    if existing := [file for file in files.values() if file.exists()]:
        raise UserError(f"{existing[0]} exists: name another folder with --output")
    arguments.output.mkdir(parents=True, exist_ok=True)
    unseen = make_alignments(TEST_SAMPLES, torch.Generator().manual_seed(arguments.seed + 1))
    for fuses, file in files.items():
        error = export(train(fuses, arguments.steps, arguments.seed), unseen, file)
        print(f"{file}: mean error {error:.3f} on {TEST_SAMPLES} unseen samples")


if __name__ == "__main__":
    exit_on_user_error(main)
