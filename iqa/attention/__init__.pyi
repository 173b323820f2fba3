from .comparison import (
    FEWEST_SAMPLES as FEWEST_SAMPLES,
    SIGNIFICANT as SIGNIFICANT,
    compare_paired as compare_paired,
    correlate as correlate,
    finding as finding,
)
from .grad_cam import grad_cam as grad_cam, place_on_images as place_on_images
from .statistics import (
    STATISTICS as STATISTICS,
    THRESHOLD as THRESHOLD,
    check_attention as check_attention,
    row_statistics as row_statistics,
    sample_statistics as sample_statistics,
)
from .swin import (
    LayerAttention as LayerAttention,
    attention_rollout as attention_rollout,
    collect_window_attention as collect_window_attention,
    has_window_attention as has_window_attention,
    window_attention as window_attention,
)
