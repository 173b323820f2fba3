from .comparison import (
    ENOUGH_SAMPLES as ENOUGH_SAMPLES,
    MODELS as MODELS,
    SEED as SEED,
    Measured as Measured,
    Samples as Samples,
    compare_models as compare_models,
    draw_samples as draw_samples,
    mean_over_layers as mean_over_layers,
    p_text as p_text,
    percent_text as percent_text,
    pooled_layers as pooled_layers,
)
from .grad_cam import grad_cam as grad_cam, place_on_images as place_on_images
from .npz import read_npz_pair as read_npz_pair
from .paired_tests import (
    FEWEST_SAMPLES as FEWEST_SAMPLES,
    SIGNIFICANT as SIGNIFICANT,
    compare_paired as compare_paired,
    correlate as correlate,
    finding as finding,
)
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
