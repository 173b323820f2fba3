"""Write `docs/network.md`, its drawing and `docs/network.json` from the model itself.

    smart-iqa describe-network --output docs

`network.json` has the shapes of the HyperIQA baseline and of this network, for `generate_paper_figures.py`. Shapes are
recorded while one image passes through the network; none is typed. Run it again after a change of
`models_swin.py`; tests compare what it wrote with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iqa.errors import Parser
from iqa.results import markdown_table
from iqa.system import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from models_swin import Backbone, JoinedBackbone, SmartIQA

BACKBONE, FUSION, SIDE = "tiny", "channel", 224
# Before and after, as the paper's first figure: name, backbone, fusion.
NETWORKS = (("HyperIQA", "resnet50", "single"), ("SMART-IQA", BACKBONE, FUSION))


def shapes_of(value: object) -> list[tuple[int, ...]]:
    """List the shapes, without the batch, of every tensor in a part's output, in order."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return [tuple(value.shape[1:])]
    if isinstance(value, Sequence):
        return [shape for item in value for shape in shapes_of(item)]
    return []


def record_shapes(model: SmartIQA, side: int = SIDE) -> dict[str, list[tuple[int, ...]]]:
    """Record the output shapes of every part for one image of `side` pixels."""
    import torch

    from iqa.figures import PARTS

    recorded: dict[str, list[tuple[int, ...]]] = {}

    def recorder(name: str):
        def record(_module: nn.Module, _inputs: tuple, output: object) -> None:
            recorded[name] = shapes_of(output)

        return record

    hooks = [getattr(model, name).register_forward_hook(recorder(name)) for name in PARTS]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return recorded


def _text(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "1" for shape in shapes)


def draw(parts: dict[str, dict]) -> Figure:
    """Draw the page's figure of parts as `network_record` gives them."""
    from iqa.figures import NETWORK_HEIGHT, PAGE_WIDTH, draw_network, new_figure

    figure, (axes,) = new_figure(PAGE_WIDTH, NETWORK_HEIGHT)
    draw_network(axes, parts)
    return figure


def page() -> str:
    """Write the page as Markdown."""
    from models_swin import SmartIQA

    model = SmartIQA(BACKBONE, FUSION)
    lines = [
        "# The network",
        "",
        "Written by `smart-iqa describe-network` from the model; shapes are without the batch.",
        "",
        "![The parts of the network and the shapes between them](network.png)",
        "",
        f"One image of {SIDE}x{SIDE} through `{BACKBONE}` with `{FUSION}` fusion:",
        "",
        _parts_table(model),
        "",
        "`fusion` gives features, stage weights and raw attention; `hypernet` five weights and five biases.",
        "",
        "## Fusions",
        "",
        _fusions_table(model.backbone),
        "",
        "## Content vectors",
        "",
        _content_vectors_table(model.backbone),
    ]
    return "\n".join(lines) + "\n"


def _parts_table(model: SmartIQA) -> str:
    from iqa.figures import PARTS

    recorded = record_shapes(model)
    parts = {name: getattr(model, name) for name in PARTS}
    rows = [
        [f"`{name}`", f"`{type(part).__name__}`", _text(recorded[name]), _count(part)] for name, part in parts.items()
    ]
    return markdown_table(["part", "class", "gives", "parameters"], rows)


def _fusions_table(backbone: Backbone | JoinedBackbone) -> str:
    import torch

    from models_swin import FUSIONS

    stages = [torch.zeros(1, c, SIDE // s, SIDE // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    rows = []
    for name, kind in FUSIONS.items():
        fusion = kind(backbone.channels).eval()
        fused = fusion(stages)
        weights = "-" if fused.stage_weights is None else _text(shapes_of(fused.stage_weights))
        rows.append([f"`{name}`", _text(shapes_of(fused.features)), weights, _count(fusion), _first_line(kind)])
    return markdown_table(["fusion", "features", "stage weights", "parameters", "what it does"], rows)


def _content_vectors_table(backbone: Backbone | JoinedBackbone) -> str:
    from models_swin import CONTENT_BRANCHES

    rows = [
        [f"`{name}`", _count(kind(backbone.channels)), _first_line(kind)] for name, kind in CONTENT_BRANCHES.items()
    ]
    return markdown_table(["content_vector", "parameters", "what it does"], rows)


def _count(part: nn.Module) -> str:
    return f"{sum(p.numel() for p in part.parameters()):,}"


def _first_line(kind: type) -> str:
    return str(kind.__doc__).splitlines()[0]


def network_record(name: str, backbone: str, fusion: str) -> dict:
    """Describe a network as JSON: `name`, `side`, and of every part kind, main output shapes and parameters."""
    from torch import nn

    from iqa.figures import PARTS
    from models_swin import SmartIQA

    model = SmartIQA(backbone, fusion)
    recorded = record_shapes(model)
    widths = [layer.out_channels for layer in model.reduce if isinstance(layer, nn.Conv2d)]
    kinds = {"backbone": backbone, "fusion": fusion, "content": "lda", "reduce": "-".join(map(str, widths))}
    return {
        "name": f"{name} ({backbone}, {fusion} fusion)",
        "side": SIDE,
        "parts": {
            part: {
                "kind": kinds.get(part, ""),
                "shapes": recorded[part][:1] if part in ("fusion", "target_net") else recorded[part][:5],
                "parameters": sum(p.numel() for p in getattr(model, part).parameters()),
            }
            for part in PARTS
        },
    }


def make_parser() -> Parser:
    """Name the command's flags."""
    parser = Parser(description="Write the page about the network from the model.")
    parser.add_argument("--output", default="docs", metavar="FOLDER", help="[docs]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, the drawing and the record."""
    output = Path(make_parser().parse_args(argv).output)
    from iqa.figures import save_figure

    output.mkdir(parents=True, exist_ok=True)
    (output / "network.md").write_text(page())
    records = [network_record(*network) for network in NETWORKS]
    for file in save_figure(draw(records[-1]["parts"]), output / "network"):
        if file.suffix == ".pdf":
            file.unlink()  # the page shows the PNG
    write_json(output / "network.json", {"networks": records})
    print(f"written to {output / 'network.md'}")
