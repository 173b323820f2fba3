from .bootstrap import (
    RESAMPLES as RESAMPLES,
    Resampling as Resampling,
    TieGroups as TieGroups,
    percentile_interval as percentile_interval,
    require_resamples as require_resamples,
    resample_counts as resample_counts,
    resampled_ranks as resampled_ranks,
    resampled_srcc as resampled_srcc,
    tie_groups as tie_groups,
)
from .checks import (
    MOST_IMAGES_IN_PAIRS as MOST_IMAGES_IN_PAIRS,
    checked_pair as checked_pair,
    content_index as content_index,
    deviations_vector as deviations_vector,
    finite_vector as finite_vector,
    json_number as json_number,
    require_length as require_length,
    undefined_reason as undefined_reason,
)
from .correlation import (
    krcc as krcc,
    mae as mae,
    outlier_ratio as outlier_ratio,
    plcc as plcc,
    rmse as rmse,
    srcc as srcc,
)
from .krasula import area_under_roc as area_under_roc, krasula as krasula, krasula_in_words as krasula_in_words
from .logistic import LogisticFit as LogisticFit, fit_logistic as fit_logistic
from .significance import (
    compare_dependent as compare_dependent,
    compare_over_splits as compare_over_splits,
    in_words as in_words,
    steiger_test as steiger_test,
    williams_test as williams_test,
)
from .summary import (
    QUALITY_LEVELS as QUALITY_LEVELS,
    across_splits as across_splits,
    contents_note as contents_note,
    group_summaries as group_summaries,
    quality_levels as quality_levels,
    summarize as summarize,
)
from .table import (
    STATISTICS as STATISTICS,
    Place as Place,
    Statistic as Statistic,
    bootstrap_interval as bootstrap_interval,
    shown_in as shown_in,
)
