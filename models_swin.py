"""The network: images -> scores. Torch and timm only; it knows no database and no training.

    images (B, 3, H, W)
      -> Backbone: four stages, fine to coarse (at 224 px: 56, 28, 14, 7 positions a side)
           |-> content branch (LDA)                       -> content vector (B, 224)
           '-> fusion of the stages at 7x7 -> reduce      -> hyper features (B, 112, 7, 7)
                 -> HyperNet                              -> weights of a five-layer network, per image
      -> TargetNet(content vector, generated weights)     -> scores (B,)

The HyperNet idea and its sizes are HyperIQA's (Su et al., "Blindly Assess Image Quality in the Wild
Guided by a Self-Adaptive Hyper Network", CVPR 2020); the backbone is Swin (Liu et al., ICCV 2021) or
any timm model that yields four stages of features, plain vision transformers at four depths included.

    >>> model = SmartIQA(backbone="nano", fusion="channel").eval()
    >>> model(torch.zeros(2, 3, 224, 224)).shape
    torch.Size([2])
"""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from iqa.errors import UserError
from iqa.system import declare_missing_operators

declare_missing_operators()
import timm  # noqa: E402  (importing timm imports torchvision, which needs the line above)
from timm.models._features import FeatureGetterNet  # noqa: E402

GRID = 7  # side of the maps that fusion and HyperNet work on
HYPER_CHANNELS = 112
TARGET_SIZES = (224, 112, 56, 28, 14, 1)  # TargetNet: content vector in, score out
CONTENT_SIZE = TARGET_SIZES[0]
LDA_CHANNELS = (16, 32, 64)
LDA_GRIDS = (8, 4, 2)
LDA_SIZES = (16, 16, 16, 176)
MID_SCORE = 50.0  # the middle of the mos scale, where an untrained network should start
MIN_SIDE = 32


@dataclass(frozen=True)
class BackboneSpec:
    """One row of the backbone table: how timm builds it and what is usual to train it with."""

    timm_name: str
    build: dict = field(default_factory=dict)
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.3
    reduce_channels: tuple[int, int, int] = (512, 256, HYPER_CHANNELS)


BACKBONES = {
    "nano": BackboneSpec(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)},
        drop_path_rate=0.1,
    ),
    "tiny": BackboneSpec("swin_tiny_patch4_window7_224", drop_path_rate=0.2),
    "small": BackboneSpec("swin_small_patch4_window7_224", drop_path_rate=0.25, dropout_rate=0.35),
    "base": BackboneSpec("swin_base_patch4_window7_224", drop_path_rate=0.3, dropout_rate=0.4),
    "resnet50": BackboneSpec("resnet50", reduce_channels=(1024, 512, HYPER_CHANNELS)),
}
_ANY_SIZE = {"timm.models.swin_transformer", "timm.models.swin_transformer_v2"}
# One width and stride from input to output: ViT, CLIP, SigLIP, DINOv2; EVA, DINOv3; DeiT.
_PLAIN = {"timm.models.vision_transformer", "timm.models.eva", "timm.models.deit"}


def backbone_spec(name: str) -> BackboneSpec:
    """The table's row for a short name, or a plain row for any other timm model.

    Raises:
        UserError: timm has no such model; the nearest names are offered.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    by_timm_name = {spec.timm_name: spec for spec in BACKBONES.values() if not spec.build}
    if name in by_timm_name:
        return by_timm_name[name]
    if not timm.is_model(name):
        known = [*BACKBONES, *timm.list_models()]
        near = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.5) or list(BACKBONES)
        raise UserError(f"unknown backbone {name!r}; nearest known: {', '.join(near)}")
    return BackboneSpec(timm_name=name)


class Backbone(nn.Module):
    """A timm feature extractor reduced to its last four stages, in NCHW.

    A plain vision transformer gives four maps of one stride, taken after each quarter of its blocks.

    Args:
        name: a key of `BACKBONES` or any timm model name.
        drop_path_rate: stochastic depth; None takes the backbone's usual value.

    Raises:
        UserError: the model is unknown, or has no features or fewer than four stages.
    """

    def __init__(self, name: str = "tiny", drop_path_rate: float | None = None):
        super().__init__()
        spec = backbone_spec(name)
        self.name, self.timm_name = name, spec.timm_name
        drop_path_rate = spec.drop_path_rate if drop_path_rate is None else drop_path_rate
        body = _create_features(spec, drop_path_rate)
        self.body: nn.Module = body
        info = body.feature_info
        if len(info.channels()) < 4:
            raise UserError(f"backbone {name!r} has {len(info.channels())} stages; four are needed")
        self.channels: list[int] = info.channels()[-4:]
        self.strides: list[int] = info.reduction()[-4:]
        self.channels_last_output = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        # Swin's patch embedding takes sides divisible by 4; a CNN takes them too; a plain transformer's patches do not
        self.patch = self.strides[0] if isinstance(body, FeatureGetterNet) else 4
        self.is_convolutional = any(keeps_batch_statistics(m) for m in body.modules())
        if self.is_convolutional:
            body.to(memory_format=torch.channels_last)  # twice as fast for a CNN; Swin gains nothing
        self.mean: tuple[float, ...] = tuple(body.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(body.pretrained_cfg["std"])

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The body's parameters by layer, from input to output: the stem, then every block.

        A stage's downsampling belongs to its first block.
        """
        body = self.body.model if isinstance(self.body, FeatureGetterNet) else self.body
        stem, blocks = list(body.parameters(recurse=False)), []
        for child in body.children():
            if (isinstance(child, nn.Sequential | nn.ModuleList) and len(child)) or hasattr(child, "blocks"):
                blocks += _blocks_of(child)
            else:  # the last norm of a plain transformer learns as its last block
                (blocks[-1] if blocks else stem).extend(child.parameters())
        return [layer for layer in (stem, *blocks) if layer]

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0..1 as the pretrained weights expect them."""
        return torch.stack([(c - m) / s for c, m, s in zip(images.unbind(1), self.mean, self.std, strict=True)], dim=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Stages 0..3 of normalised `images` (B, 3, H, W): four maps (B, C_i, H_i, W_i).

        Raises:
            ValueError: a side is below 32 pixels or the images are not (B, 3, H, W).
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < MIN_SIDE:
            raise ValueError(
                f"expected images (B, 3, H, W) with sides of at least {MIN_SIDE}, got {tuple(images.shape)}"
            )
        below, beside = ((side + self.patch - 1) // self.patch * self.patch - side for side in images.shape[-2:])
        images = F.pad(images, (0, beside, 0, below), mode="replicate")
        if self.is_convolutional:
            images = images.contiguous(memory_format=torch.channels_last)
        stages = self.body(images)[-4:]
        return [s.permute(0, 3, 1, 2) for s in stages] if self.channels_last_output else stages


SwinBackbone = Backbone  # by its name in the design, where every backbone is a Swin


class JoinedBackbone(nn.Module):
    """Several looks at an image as one backbone: other networks, other scales, deviations beside means.

    Each stage is the concatenation, over backbones and scales, of the means (and deviations) within 7x7 cells, so
    that maps of different sizes meet. Deviations tell fine texture from flat areas of the same mean.

    Args:
        names: of the backbones, as `Backbone` takes them.
        scales: of the image that each of them sees; 0.5 halves its sides.
        deviation: give the deviation within each cell beside its mean.
        drop_path_rate: as `Backbone` takes it.
    """

    def __init__(
        self, names: Sequence[str], scales: Sequence[float], deviation: bool, drop_path_rate: float | None = None
    ):
        super().__init__()
        members = nn.ModuleList(Backbone(name, drop_path_rate) for name in names)
        self.members: Sequence[Backbone] = members  # type: ignore[assignment]
        self.scales, self.deviation = tuple(scales), deviation
        self.name, self.timm_name = "+".join(names), "+".join(member.timm_name for member in self.members)
        looks = len(self.scales) * (1 + deviation)
        self.channels = [looks * sum(widths) for widths in zip(*(m.channels for m in self.members), strict=True)]
        self.strides: list[int] = self.members[0].strides
        self.patch = 1  # each member pads for itself
        self.is_convolutional = any(member.is_convolutional for member in self.members)
        self.mean: tuple[float, ...] = self.members[0].mean
        self.std: tuple[float, ...] = self.members[0].std

    @property
    def body(self) -> nn.Module:
        """Refuse, as there is no one feature extractor.

        Raises:
            UserError: always: what looks into a network's layers needs one network.
        """
        raise UserError(f"backbone {self.name} is several looks at an image: this takes one backbone at one scale")

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters by layer, from input to output: the members' last layers lie side by side, and so on back."""
        by_depth = itertools.zip_longest(*(reversed(m.layer_parameters()) for m in self.members), fillvalue=())
        return [[p for layer in layers for p in layer] for layers in by_depth][::-1]

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0..1 as `forward` expects them."""
        return self.members[0].normalise(images)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> four maps (B, C_i, 7, 7), in fp32.

        Raises:
            ValueError: a side is below 32 pixels at the smallest scale.
        """
        looks = [member(self._seen_by(member, images, scale)) for member in self.members for scale in self.scales]
        pool = cell_statistics if self.deviation else to_grid
        return [torch.cat([pool(stage.float()) for stage in stages], dim=1) for stages in zip(*looks, strict=True)]

    def _seen_by(self, member: Backbone, images: Tensor, scale: float) -> Tensor:
        if (member.mean, member.std) != (self.mean, self.std):
            mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std))
            images = member.normalise(images * std + mean)
        if scale == 1:
            return images
        return F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)


def cell_statistics(stage: Tensor) -> Tensor:
    """Mean and deviation of a map (B, C, H, W) within 7x7 cells: (B, 2C, 7, 7)."""
    mean = to_grid(stage)
    # A root has no finite slope at 0, and rounding may take a flat cell's variance below it.
    deviation = (to_grid(stage * stage) - mean * mean).clamp(min=1e-6).sqrt()
    return torch.cat([mean, deviation], dim=1)


def make_backbone(
    name: str, scales: Sequence[float] = (1.0,), deviation: bool = False, drop_path_rate: float | None = None
) -> Backbone | JoinedBackbone:
    """The backbone of a name, or of several joined by `+`, at one scale or several.

    Raises:
        UserError: one of the names is unknown.
    """
    names = name.split("+")
    if len(names) == 1 and tuple(scales) == (1.0,) and not deviation:
        return Backbone(name, drop_path_rate)
    return JoinedBackbone(names, scales, deviation, drop_path_rate)


def keeps_batch_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by statistics that it gathers in training: batch normalisation of any kind."""
    return getattr(module, "running_var", None) is not None


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and none of them learns."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _blocks_of(module: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each block of a stage, or of a sequence of stages or blocks."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [block for child in module.children() for block in _blocks_of(child)]
    own_blocks = getattr(module, "blocks", None)
    if own_blocks is None:
        return [list(module.parameters())]
    blocks = [list(block.parameters()) for block in own_blocks.children()]
    inside = {id(p) for block in blocks for p in block}
    blocks[0] = [p for p in module.parameters() if id(p) not in inside] + blocks[0]
    return blocks


def _create_features(spec: BackboneSpec, drop_path_rate: float) -> Any:
    """timm's `features_only` form of a backbone, randomly initialised; timm declares no type for its attributes."""
    options = dict(spec.build)
    family = timm.models.model_entrypoint(spec.timm_name).__module__
    if family in _ANY_SIZE:
        options["strict_img_size"] = False
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        if family in _PLAIN:
            body: Any = _four_depths(timm.create_model(spec.timm_name, dynamic_img_size=True, num_classes=0, **options))
        else:
            body = timm.create_model(spec.timm_name, pretrained=False, features_only=True, **options)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"backbone {spec.timm_name!r} cannot be built for features: {error}") from error
    for module in body.modules():
        if hasattr(module, "get_attn_mask"):
            module.get_attn_mask = functools.partial(shifted_window_mask, module)
            if hasattr(module.attn, "fused_attn"):  # of Swin, not of Swin V2, whose attention is by cosines
                module.attn.fused_attn = True  # timm leaves torch's scaled_dot_product_attention off, as untested
        elif isinstance(module, timm.layers.DropPath) and not drop_path_rate:
            module.drop_prob = 0.0  # Swin's own default in timm is 0.1
    return body


def _four_depths(transformer: Any) -> FeatureGetterNet:
    """A plain transformer as a feature extractor: its tokens after each quarter of its blocks, as maps.

    All pass its last norm, since the scale of the tokens grows with depth; so does the linear evaluation of DINOv2
    (Oquab et al., 2023). Positions are resampled to the size of the images.
    """
    depth = len(transformer.blocks)
    body = FeatureGetterNet(transformer, tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)), norm=True)
    body.pretrained_cfg = transformer.pretrained_cfg
    return body


class ShiftedWindows(Protocol):
    """What `shifted_window_mask` reads of a block of timm's Swin: (rows, columns) of tokens."""

    window_size: tuple[int, int]
    shift_size: tuple[int, int]


def shifted_window_mask(block: ShiftedWindows, x: Tensor) -> Tensor | None:
    """Which tokens of a window may attend to each other; takes the place of the method of timm's Swin blocks.

    The cyclic shift brings tokens from opposite borders into one window. timm finds them by assigning to slices,
    one after the other, which torch.compile traces for longer than a training takes; the values are the same.

    Args:
        block: gives the sizes of window and shift.
        x: shifted tokens (B, H, W, C), padded to whole windows.

    Returns:
        (windows, N, N) with N tokens a window: 0, or -100 between tokens that were apart; None without a shift.
    """
    if not any(block.shift_size):
        return None
    rows, columns = block.window_size
    down, across = (
        _sides(*each, x.device) for each in zip(x.shape[1:3], block.window_size, block.shift_size, strict=True)
    )
    region = (3 * down[:, None] + across).unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    region = region.transpose(1, 2).reshape(-1, rows * columns)  # (windows, N)
    apart = region[:, :, None] != region[:, None]
    return torch.zeros_like(apart, dtype=x.dtype).masked_fill(apart, -100.0)


def _sides(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Along one axis (size,): 0 before the last window, and in it 1, or 2 for what came from the other border."""
    place = torch.arange(size, device=device)
    return (place >= size - window).int() + (place >= size - shift).int()


class Fused(NamedTuple):
    """What a fusion gives: features for the HyperNet, and its weights where it has any."""

    features: Tensor  # (B, C, 7, 7), or (B, C) for the vector fusions
    stage_weights: Tensor | None = None  # (B, 4), rows sum to 1
    attention: Tensor | list[Tensor] | None = None  # gates, maps or matrix, as the fusion defines


def to_grid(stage: Tensor, side: int = GRID) -> Tensor:
    """Average a map (B, C, H, W) to (B, C, side, side), as torch's adaptive pooling does.

    Two matrix products: unlike torch's pooling they are exported with dynamic sizes, and their gradient is
    deterministic on CUDA. The products run over maps that lie channels last, as every backbone gives them.
    """
    B, C, H, W = stage.shape
    over_rows, over_columns = _cell_weights(H, side, stage), _cell_weights(W, side, stage)
    rows = over_rows.expand(B, -1, -1).bmm(stage.permute(0, 2, 3, 1).reshape(B, H, W * C))  # (B, side, W * C)
    cells = over_columns.expand(B * side, -1, -1).bmm(rows.reshape(B * side, W, C))  # (B * side, side, C)
    return cells.reshape(B, side, side, C).permute(0, 3, 1, 2).contiguous()


def _cell_weights(size: int, side: int, like: Tensor) -> Tensor:
    """What each of `side` cells takes of `size` places (side, size): the mean of those that it overlaps."""
    traced = torch.compiler.is_compiling() or isinstance(like, FakeTensor)  # what is kept has to be numbers
    make = _make_cell_weights if traced else _kept_cell_weights
    return make(size, side, like.device, like.dtype)


def _make_cell_weights(size: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    cells = torch.arange(side, device=device)[:, None] * size
    places = torch.arange(size, device=device) * side
    inside = ((places < cells + size) & (places + side > cells)).to(dtype)
    return inside / inside.sum(dim=1, keepdim=True)


@functools.lru_cache(maxsize=512)
@torch.inference_mode(False)  # a tensor of inference could not be used in training
def _kept_cell_weights(size: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return _make_cell_weights(size, side, device, dtype)


def _to_vector(stage: Tensor) -> Tensor:
    return stage.mean(dim=(2, 3))  # (B, C)


class Branch(nn.Module):
    """What reads the four stages.

    Attributes:
        grids: the side at which it pools each stage (0: not read); empty where positions are weighed before pooling.
    """

    grids: tuple[int, ...]


class Fusion(Branch):
    """Joins the four stages: `forward` takes them and gives `Fused`.

    Attributes:
        weighs_stages: whether it gives stage weights.
        out_channels: C of its features.
    """

    grids: tuple[int, ...] = (GRID,) * 4
    weighs_stages = False
    out_channels: int

    @property
    def single_stage(self) -> bool:
        """Whether it reads one stage alone."""
        return sum(side > 0 for side in self.grids) == 1

    @property
    def gives_vector(self) -> bool:
        """Whether its features are a vector (B, C): no 7x7 map reaches the HyperNet."""
        return max(self.grids, default=0) == 1


class SingleFusion(Fusion):
    """Stage 3 alone: the network without multi-scale features (ablation A2)."""

    grids = (0, 0, 0, GRID)

    def __init__(self, channels: list[int]):
        super().__init__()
        self.out_channels = channels[-1]

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, C_3, 7, 7)."""
        return Fused(to_grid(stages[-1]))


class ConcatFusion(Fusion):
    """All stages at 7x7, concatenated without weights (ablation A1)."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.out_channels = sum(channels)

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, sum C_i, 7, 7)."""
        return Fused(torch.cat([to_grid(s) for s in stages], dim=1))


class AttentionFusion(Fusion):
    """A sigmoid gate for every channel of the concatenation (squeeze-and-excitation; ablation E6).

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, with reduction 4.
    """

    weighs_stages = True

    def __init__(self, channels: list[int]):
        super().__init__()
        self.channels = list(channels)
        self.out_channels = sum(channels)
        squeezed = self.out_channels // 4
        self.gate = nn.Sequential(
            nn.Linear(self.out_channels, squeezed),
            nn.ReLU(),
            nn.Linear(squeezed, self.out_channels),
            nn.Sigmoid(),
        )

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, C, 7, 7), gates (B, C), their mean per stage."""
        maps = torch.cat([to_grid(s) for s in stages], dim=1)  # (B, C, 7, 7)
        gates = self.gate(_to_vector(maps))  # (B, C)
        stage_gates = torch.stack([g.mean(dim=1) for g in gates.split(self.channels, dim=1)], dim=1)
        stage_weights = stage_gates / stage_gates.sum(dim=1, keepdim=True)  # (B, 4)
        return Fused(maps * gates[:, :, None, None], stage_weights, gates)


class MultiScaleAttention(Fusion):
    """One softmax weight per stage, decided by stage 3 (the published analysis and its E6 number)."""

    weighs_stages = True

    def __init__(self, channels: list[int]):
        super().__init__()
        self.out_channels = sum(channels)
        self.weigh = nn.Sequential(
            nn.Linear(channels[-1], 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, len(channels))
        )

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, C, 7, 7), stage weights (B, 4)."""
        maps = [to_grid(s) for s in stages]
        stage_weights = self.weigh(_to_vector(maps[-1])).softmax(dim=1)  # (B, 4)
        weighted = [m * w[:, None, None, None] for m, w in zip(maps, stage_weights.T, strict=True)]
        return Fused(torch.cat(weighted, dim=1), stage_weights, stage_weights)


class SpatialFusion(Fusion):
    """A map of weights for every stage, at the stage's own resolution, before pooling (plan B)."""

    grids = ()
    weighs_stages = True

    def __init__(self, channels: list[int]):
        super().__init__()
        self.out_channels = sum(channels)
        self.score_maps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c // 4, 1), nn.ReLU(), nn.Conv2d(c // 4, 1, 1), nn.Sigmoid()) for c in channels
        )

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, C, 7, 7), maps 4 x (B, 1, H_i, W_i), their means."""
        maps = [score(stage) for score, stage in zip(self.score_maps, stages, strict=True)]
        means = torch.stack([m.mean(dim=(1, 2, 3)) for m in maps], dim=1)  # (B, 4)
        features = torch.cat([to_grid(s * m) for s, m in zip(stages, maps, strict=True)], dim=1)
        return Fused(features, means / means.sum(dim=1, keepdim=True), maps)


class CrossScaleFusion(Fusion):
    """Attention among the 4 x 49 positions of all stages, so that scales inform each other (plan C).

    Source: multi-head attention of Vaswani et al., "Attention Is All You Need", NeurIPS 2017; residual, then norm.
    """

    WIDTH, HEADS = 256, 8
    weighs_stages = True

    def __init__(self, channels: list[int]):
        super().__init__()
        self.stages = len(channels)
        self.out_channels = self.stages * self.WIDTH
        self.project = nn.ModuleList(nn.Conv2d(c, self.WIDTH, kernel_size=1) for c in channels)
        self.stage_embedding = nn.Parameter(torch.empty(self.stages, 1, self.WIDTH))
        self.position_embedding = nn.Parameter(torch.empty(1, GRID**2, self.WIDTH))
        self.attend = nn.MultiheadAttention(self.WIDTH, self.HEADS, batch_first=True)
        self.norm = nn.LayerNorm(self.WIDTH)

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, 1024, 7, 7), attention (B, 8, 196, 196).

        The weight of a stage is the share of all attention that its positions receive.
        """
        maps = [conv(to_grid(s)).flatten(2).mT for conv, s in zip(self.project, stages, strict=True)]
        tokens = torch.stack(maps, dim=1) + self.stage_embedding + self.position_embedding  # (B, 4, 49, 256)
        tokens = tokens.flatten(1, 2)  # (B, 196, 256)
        gathered, attention = self.attend(tokens, tokens, tokens, average_attn_weights=False)
        tokens = self.norm(tokens + gathered)
        features = tokens.unflatten(1, (self.stages, GRID, GRID)).permute(0, 1, 4, 2, 3)  # (B, 4, 256, 7, 7)
        received = attention.mean(dim=(1, 2)).unflatten(1, (self.stages, -1)).sum(dim=2)  # (B, 4)
        return Fused(features.flatten(1, 2), received, attention)


class VectorFusion(Fusion):
    """The global average of every stage, as one vector that alone feeds the HyperNet."""

    grids = (1,) * 4

    def __init__(self, channels: list[int]):
        super().__init__()
        self.out_channels = sum(channels)

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, sum C_i)."""
        return Fused(torch.cat([_to_vector(s) for s in stages], dim=1))


class SingleVectorFusion(Fusion):
    """The global average of stage 3, as the baseline of `VectorFusion`."""

    grids = (0, 0, 0, 1)

    def __init__(self, channels: list[int]):
        super().__init__()
        self.out_channels = channels[-1]

    def forward(self, stages: list[Tensor]) -> Fused:
        """Stages 4 x (B, C_i, H_i, W_i) -> features (B, C_3)."""
        return Fused(_to_vector(stages[-1]))


FUSIONS: dict[str, type[Fusion]] = {
    "single": SingleFusion,
    "concat": ConcatFusion,
    "channel": AttentionFusion,
    "scale": MultiScaleAttention,
    "spatial": SpatialFusion,
    "cross_scale": CrossScaleFusion,
    "vector": VectorFusion,
    "single_vector": SingleVectorFusion,
}


class LocalDistortionAware(Branch):
    """The content branch: fine stages summed up on small grids, stage 3 globally (HyperIQA's LDA)."""

    grids = (*LDA_GRIDS, 1)

    def __init__(self, channels: list[int]):
        super().__init__()
        self.project = nn.ModuleList(
            nn.Conv2d(c, out, kernel_size=1, bias=False) for c, out in zip(channels[:-1], LDA_CHANNELS, strict=True)
        )
        flat = [out * grid**2 for out, grid in zip(LDA_CHANNELS, LDA_GRIDS, strict=True)]
        self.summarise = nn.ModuleList(
            nn.Linear(size, out) for size, out in zip([*flat, channels[-1]], LDA_SIZES, strict=True)
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Stages 4 x (B, C_i, H_i, W_i) -> content vector (B, 224)."""
        # Pooling commutes with the 1x1 convolution, so it comes first, where it costs less.
        grids = [to_grid(s, side) for s, side in zip(stages[:-1], LDA_GRIDS, strict=True)]
        local = [conv(grid).flatten(1) for conv, grid in zip(self.project, grids, strict=True)]
        pooled = [*local, _to_vector(stages[-1])]
        return torch.cat([fc(v) for fc, v in zip(self.summarise, pooled, strict=True)], dim=1)


class PooledContent(Branch):
    """The content branch without grids: the global average of every stage, through one linear layer."""

    grids = (1,) * 4

    def __init__(self, channels: list[int]):
        super().__init__()
        self.summarise = nn.Linear(sum(channels), CONTENT_SIZE)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Stages 4 x (B, C_i, H_i, W_i) -> content vector (B, 224)."""
        return self.summarise(torch.cat([_to_vector(s) for s in stages], dim=1))


CONTENT_BRANCHES: dict[str, type[Branch]] = {"lda": LocalDistortionAware, "pooled": PooledContent}


class TargetWeights(NamedTuple):
    """The generated network: per layer a weight (B, out, in) and a bias (B, out)."""

    weights: list[Tensor]
    biases: list[Tensor]


class HyperNet(nn.Module):
    """Generates, for each image, the weights of a TargetNet from hyper features.

    Layers 1..4 come from 3x3 convolutions whose 7x7 output maps are read as the weight matrix, so
    out * in of a layer is divisible by 49; biases and layer 5 come from the global average. A hyper
    vector has no map, and every layer comes from it by a linear one.
    """

    def __init__(self, from_vector: bool = False):
        super().__init__()
        self.shapes = list(zip(TARGET_SIZES[1:], TARGET_SIZES[:-1], strict=True))  # (out, in) of each layer
        sizes = [out * size for out, size in self.shapes]
        assert all(size % GRID**2 == 0 for size in sizes[:-1])
        self.from_vector = from_vector
        self.weight_maps = nn.ModuleList(
            nn.Linear(HYPER_CHANNELS, size)
            if from_vector
            else nn.Conv2d(HYPER_CHANNELS, size // GRID**2, kernel_size=3, padding=1)
            for size in sizes[:-1]
        )
        self.last_weight = nn.Linear(HYPER_CHANNELS, sizes[-1])
        self.biases = nn.ModuleList(nn.Linear(HYPER_CHANNELS, out) for out, _ in self.shapes)

    def forward(self, hyper_features: Tensor) -> TargetWeights:
        """Hyper features (B, 112, 7, 7), or a hyper vector (B, 112) -> weights and biases of five layers."""
        mean = hyper_features if self.from_vector else _to_vector(hyper_features)  # (B, 112)
        flat = [generate(hyper_features) for generate in self.weight_maps] + [self.last_weight(mean)]
        weights = [w.reshape(mean.shape[0], out, size) for w, (out, size) in zip(flat, self.shapes, strict=True)]
        return TargetWeights(weights, [generate(mean) for generate in self.biases])


class TargetNet(nn.Module):
    """A batch of small networks, one per image: activation and dropout between linear layers, five as published."""

    def __init__(self, dropout_rate: float, activation: Callable[[Tensor], Tensor] = torch.sigmoid):
        super().__init__()
        self.dropout, self.activation = nn.Dropout(dropout_rate), activation

    def forward(self, content_vector: Tensor, target: TargetWeights) -> Tensor:
        """Content vectors (B, 224) and their generated weights -> scores (B,)."""
        x = content_vector[:, :, None]  # (B, in, 1)
        last = len(target.weights) - 1
        for i, (weight, bias) in enumerate(zip(*target, strict=True)):
            x = torch.baddbmm(bias[:, :, None], weight, x)  # (B, out, 1)
            x = self.dropout(self.activation(x)) if i < last else x
        return x[:, 0, 0]


class Inspection(NamedTuple):
    """Scores and the inner values that led to them."""

    scores: Tensor  # (B,)
    stage_weights: Tensor | None  # (B, 4), rows sum to 1; None for a fusion without weights
    attention: Tensor | list[Tensor] | None
    target_weights: TargetWeights
    content_vector: Tensor  # (B, 224)


class SmartIQA(nn.Module, PyTorchModelHubMixin, library_name="smart-iqa", license="mit", tags=["image-quality"]):
    """Blind image quality assessment: normalised images (B, 3, H, W) -> scores (B,), higher is better.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are Hugging Face's: a folder, or a repository of its hub,
    with `config.json` (the arguments below) and `model.safetensors`.

    Args:
        backbone: `nano`, `tiny`, `small`, `base` (Swin) or any timm model with four stages; several joined by `+`.
        fusion: a key of `FUSIONS`.
        content_vector: a key of `CONTENT_BRANCHES`.
        scales: of the image that the backbone sees; their stages are joined.
        deviation: join each stage's deviation within 7x7 cells to its mean.
        pretrained: load the backbone's ImageNet weights (see `iqa.pretrained`); False builds offline.
        backbone_weights: read the backbone's weights from this file instead.
        drop_path_rate: stochastic depth of the backbone; None takes the backbone's usual value.
        dropout_rate: dropout of reduce and TargetNet; None takes the backbone's usual value.
        freeze_backbone: the backbone neither learns nor drops anything.
        freeze_batch_norm: the backbone's batch statistics stay as they were loaded.

    Raises:
        UserError: unknown backbone or fusion, or weights that cannot be had.
    """

    def __init__(
        self,
        backbone: str = "tiny",
        fusion: str = "concat",
        pretrained: bool = False,
        backbone_weights: str | None = None,
        drop_path_rate: float | None = None,
        dropout_rate: float | None = None,
        freeze_backbone: bool = False,
        freeze_batch_norm: bool = True,
        content_vector: str = "lda",
        scales: Sequence[float] = (1.0,),
        deviation: bool = False,
    ):
        super().__init__()
        for kind, name, table in (("fusion", fusion, FUSIONS), ("content_vector", content_vector, CONTENT_BRANCHES)):
            if name not in table:
                raise UserError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
        spec = backbone_spec(backbone.split("+")[0])
        dropout_rate = spec.dropout_rate if dropout_rate is None else dropout_rate
        self.backbone = make_backbone(backbone, scales, deviation, drop_path_rate)
        self.content = CONTENT_BRANCHES[content_vector](self.backbone.channels)
        self.fusion = FUSIONS[fusion](self.backbone.channels)
        from_vector = self.fusion.gives_vector
        self.reduce = _reduce(self.fusion.out_channels, spec.reduce_channels, dropout_rate, from_vector)
        self.hypernet: HyperNet | ResidualHyperNet = HyperNet(from_vector)
        self.target_net = TargetNet(dropout_rate)
        initialise(self)
        # Of the mixin: the arguments that `save_pretrained` writes. The weights beside them need no others.
        arguments: Any = self._hub_mixin_config
        self._hub_mixin_config = {**arguments, "pretrained": False, "backbone_weights": None}
        self.weights_source = "random initialisation"
        if pretrained or backbone_weights:
            from iqa.pretrained import load_backbone_weights

            members = getattr(self.backbone, "members", [self.backbone])
            if backbone_weights and len(members) > 1:
                raise UserError(f"backbone_weights: one file cannot fill {len(members)} backbones ({backbone})")
            self.weights_source = "; ".join(load_backbone_weights(member, backbone_weights) for member in members)
        self.freeze_backbone, self.freeze_batch_norm = freeze_backbone, freeze_batch_norm
        self.backbone.requires_grad_(not freeze_backbone)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> SmartIQA:
        """As the mixin does it, but every tensor has to be there: its own default leaves out what is missing."""
        return super()._from_pretrained(strict=strict, **options)

    def train(self, mode: bool = True) -> SmartIQA:
        """Training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if self.freeze_backbone or (self.freeze_batch_norm and keeps_batch_statistics(module)):
                module.training = False
            elif _is_frozen(module):  # its stochastic depth too
                nn.Module.train(module, False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W), sides of at least 32 -> scores (B,)."""
        return self.inspect(images).scores

    def score_features(self, features: Tensor) -> Tensor:
        """`pooled_features` of images (B, D) -> the scores (B,) that `forward` gives those images."""
        return self.from_stages(*self._unpack(features)).scores

    def inspect(self, images: Tensor) -> Inspection:
        """As `forward`, with stage weights, raw attention, generated weights and content vector."""
        stages = self.backbone(images)  # 4 x (B, C_i, H_i, W_i)
        return self.from_stages(stages, stages)

    def from_stages(self, content_stages: list[Tensor], fusion_stages: list[Tensor]) -> Inspection:
        """Everything after the backbone; the two branches may read the same maps, each pooled for it or not.

        Args:
            content_stages: four maps (B, C_i, H_i, W_i) for the content branch.
            fusion_stages: four maps (B, C_i, H_i, W_i) for the fusion.

        Half precision ends here: between scores of about 50 it has steps of 0.25 (bf16), and the head is small.
        """
        dtype = self.hypernet.last_weight.weight.dtype
        content_stages, fusion_stages = ([s.to(dtype) for s in stages] for stages in (content_stages, fusion_stages))
        with torch.autocast(content_stages[0].device.type, enabled=False):
            content_vector = self.content(content_stages)  # (B, 224)
            fused = self.fusion(fusion_stages)  # (B, C, 7, 7), or (B, C)
            # Contiguous: dropout draws in memory order, and cached features have to meet the same masks as images do.
            target = self.hypernet(self.reduce(fused.features.contiguous()))  # five layers per image
            scores = self.target_net(content_vector, target)  # (B,)
        return Inspection(scores, fused.stage_weights, fused.attention, target, content_vector)

    @property
    def feature_grids(self) -> list[tuple[int, int, int]]:
        """(stage, channels, side) of each map in `pooled_features`: what any fusion and content branch reads.

        Raises:
            UserError: the fusion weighs positions before they are pooled.
        """
        content, fusion = self.branch_grids
        if not fusion:
            raise UserError(f"{type(self.fusion).__name__} weighs positions before pooling: it has no features to keep")
        sides: list[tuple[int, ...]] = [*((side, GRID, 1) for side in LDA_GRIDS), (GRID, 1)]
        if max(*content, *fusion) == 1:  # averages alone: a hundredth of the room
            sides = [(1,)] * len(sides)
        return [
            (stage, channels, side) for stage, channels in enumerate(self.backbone.channels) for side in sides[stage]
        ]

    def pooled_features(self, images: Tensor) -> Tensor:
        """All that the rest of the network reads of the backbone: images (B, 3, H, W) -> (B, D).

        Pooling commutes with the 1x1 convolutions that come first, so `score_features` gives the scores of the images.
        The features are the same for every fusion and content branch, so that one cache serves them all; those that
        read nothing but averages have a small one of their own.
        """
        stages = self.backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            pooled = [to_grid(stages[i].float(), side).flatten(1) for i, _, side in self.feature_grids]
        return torch.cat(pooled, dim=1)

    def _unpack(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pooled features (B, D) -> the maps that the content branch and the fusion read."""
        grids = self.feature_grids
        maps = features.split([channels * side**2 for _, channels, side in grids], dim=1)
        by_place = {
            (stage, side): flat.unflatten(1, (channels, side, side))
            for (stage, channels, side), flat in zip(grids, maps, strict=True)
        }
        # A stage that a branch does not read (side 0) still has its place in the list.
        content, fusion = (
            [by_place[stage, side or 1] for stage, side in enumerate(sides)] for sides in self.branch_grids
        )
        return content, fusion

    @property
    def branch_grids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """At which side content branch and fusion pool each stage; see `Branch`."""
        return self.content.grids, self.fusion.grids

    def parameter_groups(self, lr: float, lr_ratio: float, layer_decay: float | None = None) -> list[dict]:
        """Optimizer groups: the backbone at `lr`, everything new (LDA included) at `lr * lr_ratio`.

        Args:
            lr: rate of the backbone's last layer.
            lr_ratio: how much faster the new parts learn.
            layer_decay: each layer of the backbone learns at this times the rate of the next one; None gives
                the whole backbone one group.
        """
        layers = [list(self.backbone.parameters())] if layer_decay is None else self.backbone.layer_parameters()
        groups = [
            {
                "name": "backbone" if layer_decay is None else f"backbone_{depth}",
                "params": [p for p in layer if p.requires_grad],
                "lr": lr * (1.0 if layer_decay is None else layer_decay) ** (len(layers) - 1 - depth),
            }
            for depth, layer in enumerate(layers)
        ]
        new = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        groups.append({"name": "head", "params": new, "lr": lr * lr_ratio})
        return [group for group in groups if group["params"]]


RESIDUAL_SIZES = (512, 256, 1)  # content vector in, score out
RESIDUAL_RANK = 64  # of what is generated of the first layer
GENERATED_START = 0.02  # of what is generated at the start, beside shared weights of about 1


class GatheredNorm(nn.BatchNorm2d):
    """Batch normalisation that also learns from a batch of one vector, as the last one of an epoch may be.

    One vector has no deviation of its own: it is standardised by what was gathered, and adds to that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> standardised maps."""
        if not self.training or x.numel() > x.shape[1]:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        with torch.no_grad():
            away = x.float().flatten() - self.running_mean
            self.running_mean += self.momentum * away
            self.running_var += self.momentum * (away.square() - self.running_var)
        return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)


class Standardise(nn.Module):
    """Pooled features as a head learns from them: roots of their sizes, then each channel to mean 0, deviation 1.

    Without the root a few channels with long tails decide everything. Statistics are gathered in training.

    Args:
        channels: of each stage.
        grids: the side at which each stage is pooled; 0 leaves a stage out.
    """

    def __init__(self, channels: list[int], grids: tuple[int, ...]):
        super().__init__()
        self.grids = grids
        self.norms = nn.ModuleList(GatheredNorm(c, affine=False) for c in channels)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Stages 4 x (B, C_i, H_i, W_i) -> 4 x (B, C_i, side, side); one that is left out passes."""
        return [
            norm(_signed_root(to_grid(stage, side))) if side else stage
            for norm, stage, side in zip(self.norms, stages, self.grids, strict=True)
        ]


def _signed_root(x: Tensor) -> Tensor:
    return x.sign() * (x.abs() + 1e-6).sqrt()  # a root has no finite slope at 0


class ResidualHyperNet(nn.Module):
    """Generates, for each image, how its TargetNet differs from one that all images share.

    The first layer's weights are W + U diag(g) V with generated g: full matrices would be 130,000 numbers an image.
    At the start hardly anything is generated, and the shared network is an ordinary one, so that training starts as
    quickly as an MLP's (Chang et al., "Principled Weight Initialization for Hypernetworks", ICLR 2020, on why the
    published form does not).
    """

    def __init__(self) -> None:
        super().__init__()
        inputs, hidden, _ = RESIDUAL_SIZES
        shared = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, 1)])
        self.shared: Sequence[nn.Linear] = shared  # type: ignore[assignment]
        self.down, self.up = nn.Linear(inputs, RESIDUAL_RANK, bias=False), nn.Linear(RESIDUAL_RANK, hidden, bias=False)
        self.gains = nn.Linear(HYPER_CHANNELS, RESIDUAL_RANK)
        self.last_weight = nn.Linear(HYPER_CHANNELS, hidden)
        biases = nn.ModuleList(nn.Linear(HYPER_CHANNELS, out) for out in RESIDUAL_SIZES[1:])
        self.biases: Sequence[nn.Linear] = biases  # type: ignore[assignment]

    def forward(self, hyper_vector: Tensor) -> TargetWeights:
        """Hyper vectors (B, 112) -> weights and biases of two layers."""
        gains = self.gains(hyper_vector)  # (B, rank)
        first = self.shared[0].weight + (self.up.weight * gains[:, None, :]) @ self.down.weight  # (B, 256, 512)
        last = self.shared[1].weight + self.last_weight(hyper_vector)[:, None, :]  # (B, 1, 256)
        biases = [layer.bias + generate(hyper_vector) for layer, generate in zip(self.shared, self.biases, strict=True)]
        return TargetWeights([first, last], biases)


class ResidualNetwork(SmartIQA):
    """SmartIQA whose TargetNet is shared by all images but for what is generated; stages come standardised.

    Arguments are those of `SmartIQA`; the content vector is pooled.

    Raises:
        UserError: the fusion weighs positions before they are pooled.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"content_vector": "pooled"})
        channels, dropout = self.backbone.channels, self.target_net.dropout
        if not self.fusion.grids:
            raise UserError(f"head residual: {type(self.fusion).__name__} weighs positions before they are pooled")
        self.standardise = nn.ModuleList(Standardise(channels, grids) for grids in self.branch_grids)
        self.content.summarise = nn.Linear(sum(channels), RESIDUAL_SIZES[0])
        hypernet = ResidualHyperNet()
        self.hypernet, self.target_net = hypernet, TargetNet(dropout.p, F.relu)
        for layer in (hypernet.gains, hypernet.last_weight, *hypernet.biases):
            nn.init.normal_(layer.weight, std=GENERATED_START / HYPER_CHANNELS**0.5)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(hypernet.shared[-1].bias, MID_SCORE)

    def from_stages(self, content_stages: list[Tensor], fusion_stages: list[Tensor]) -> Inspection:
        """Everything after the backbone; see `SmartIQA.from_stages`."""
        dtype = self.hypernet.last_weight.weight.dtype
        with torch.autocast(content_stages[0].device.type, enabled=False):
            content_stages, fusion_stages = (
                norm([s.to(dtype) for s in stages])
                for norm, stages in zip(self.standardise, (content_stages, fusion_stages), strict=True)
            )
            content_vector = self.target_net.dropout(self.content(content_stages).relu())  # (B, 512)
            fused = self.fusion(fusion_stages)
            hyper_features = self.reduce(fused.features.contiguous())  # (B, 112), or (B, 112, 7, 7)
            target = self.hypernet(
                hyper_features.flatten(2).mean(dim=2) if hyper_features.ndim == 4 else hyper_features
            )
            scores = self.target_net(content_vector, target)
        return Inspection(scores, fused.stage_weights, fused.attention, target, content_vector)


class PlainNetwork(SmartIQA):
    """The control that generated weights have to beat: one MLP for all images, of about as many parameters.

    It reads the standardised average of every stage. Arguments are those of `SmartIQA`; fusion and content vector only
    set how many parameters there are to match.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        size, inputs = sum(p.numel() for p in self._head_parameters()), sum(self.backbone.channels)
        dropout_rate = self.target_net.dropout.p
        del self.content, self.fusion, self.reduce, self.hypernet, self.target_net
        self.standardise = Standardise(self.backbone.channels, PooledContent.grids)
        # Two hidden layers of width w have w * (inputs + w) weights.
        width = round((-inputs + (inputs**2 + 4 * size) ** 0.5) / 2)
        layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, 1)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(layers[-1].bias, MID_SCORE)
        hidden = ([layer, nn.ReLU(), nn.Dropout(dropout_rate)] for layer in layers[:-1])
        self.mlp = nn.Sequential(*itertools.chain(*hidden), layers[-1])

    @property
    def branch_grids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Averages of every stage."""
        return PooledContent.grids, PooledContent.grids

    def _head_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("backbone.")]

    def from_stages(self, content_stages: list[Tensor], fusion_stages: list[Tensor]) -> Inspection:
        """Everything after the backbone; there is no attention, and no weight is generated."""
        dtype = next(self.mlp.parameters()).dtype
        with torch.autocast(content_stages[0].device.type, enabled=False):
            stages = self.standardise([stage.to(dtype) for stage in content_stages])
            pooled = torch.cat([stage.flatten(1) for stage in stages], dim=1)
            scores = self.mlp(pooled).squeeze(1)
        return Inspection(scores, None, None, TargetWeights([], []), pooled)


class Ensemble(nn.Module):
    """Networks of one architecture whose scores are averaged: one model.

    Frozen backbones are equal, so that all networks share the first one's.

    Args:
        networks: at least one.
    """

    def __init__(self, networks: Sequence[SmartIQA]):
        super().__init__()
        backbone, self.freeze_backbone = networks[0].backbone, networks[0].freeze_backbone
        self.weights_source = networks[0].weights_source
        if self.freeze_backbone:
            for network in networks:
                del network.backbone
                object.__setattr__(network, "backbone", backbone)  # no module of its own: stored and moved once
            self.backbone = backbone
        else:
            object.__setattr__(self, "backbone", backbone)  # the first network's, which holds it
        self.networks: Sequence[SmartIQA] = nn.ModuleList(networks)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> scores (B,)."""
        if not self.freeze_backbone:
            return torch.stack([network(images) for network in self.networks]).mean(dim=0)
        stages = self.backbone(images)
        return torch.stack([network.from_stages(stages, stages).scores for network in self.networks]).mean(dim=0)

    @property
    def fusion(self) -> Fusion:
        """The first network's, as the kind is that of all."""
        return self.networks[0].fusion

    def inspect(self, images: Tensor) -> Inspection:
        """Refuse.

        Raises:
            UserError: always: attention and generated weights are each network's own.
        """
        raise UserError(
            "this run is an ensemble: attention and generated weights are its networks' own; "
            "give the folder of one of them, such as network_00"
        )

    def score_features(self, features: Tensor) -> Tensor:
        """`pooled_features` of images (B, D) -> the scores (B,) that `forward` gives those images."""
        return torch.stack([network.score_features(features) for network in self.networks]).mean(dim=0)

    @property
    def feature_grids(self) -> list[tuple[int, int, int]]:
        """As of each network."""
        return self.networks[0].feature_grids

    def pooled_features(self, images: Tensor) -> Tensor:
        """As of each network, whose backbones are frozen and equal."""
        return self.networks[0].pooled_features(images)


HEADS: dict[str, type[SmartIQA]] = {"hypernet": SmartIQA, "residual": ResidualNetwork, "mlp": PlainNetwork}


def build_network(members: int = 1, head: str = "hypernet", **architecture: Any) -> SmartIQA | Ensemble:
    """The network of an architecture, or an ensemble of them.

    Args:
        members: how many networks; 1 is no ensemble.
        head: a key of `HEADS`.
        **architecture: arguments of `SmartIQA`.
    """
    networks = [HEADS[head](**architecture) for _ in range(members)]
    return networks[0] if members == 1 else Ensemble(networks)


def _reduce(in_channels: int, widths: tuple[int, ...], dropout_rate: float, from_vector: bool) -> nn.Sequential:
    """1x1 convolutions (linear layers for a vector) with ReLU down to the hyper features, then dropout."""
    layers: list[nn.Module] = []
    for size, out in zip((in_channels, *widths), widths, strict=False):
        layers += [nn.Linear(size, out) if from_vector else nn.Conv2d(size, out, kernel_size=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout_rate))


def initialise(model: SmartIQA) -> None:
    """All initialisation of the new parts: kaiming normal weights, zero biases, scores at mid-scale.

    The backbone keeps timm's own initialisation, multi-head attention torch's.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("fusion.") and name.endswith("_embedding"):
            nn.init.trunc_normal_(parameter, std=0.02)
    for name, module in model.named_modules():
        if name.startswith(("backbone", "fusion.attend")) or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.constant_(model.hypernet.biases[-1].get_parameter("bias"), MID_SCORE)
