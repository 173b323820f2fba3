from .comparison import LayerDifference as LayerDifference, draw_attention_comparison as draw_attention_comparison
from .maps import draw_example as draw_example, draw_panel as draw_panel, save_panel as save_panel
from .network import (
    NETWORK_HEIGHT as NETWORK_HEIGHT,
    PARTS as PARTS,
    draw_architecture as draw_architecture,
    draw_attention as draw_attention,
    draw_complexity as draw_complexity,
    draw_network as draw_network,
    has_stage_weights as has_stage_weights,
    published_attention as published_attention,
    smallest_batch as smallest_batch,
    variant_costs as variant_costs,
)
from .page import (
    Fitted as Fitted,
    best_and_worst as best_and_worst,
    breakable as breakable,
    draw_curve as draw_curve,
    draw_page_scatter as draw_page_scatter,
    fit_errors as fit_errors,
    interval as interval,
    number as number,
    render as render,
    setting as setting,
    signed as signed,
    table_data as table_data,
    thumbnail as thumbnail,
)
from .scatter import (
    few_contents as few_contents,
    scatter_by_label as scatter_by_label,
    scatter_by_mos as scatter_by_mos,
    scatter_of_scores as scatter_of_scores,
)
from .scores import (
    Drawn as Drawn,
    draw_ablation_bars as draw_ablation_bars,
    draw_alpha as draw_alpha,
    draw_comparison as draw_comparison,
    draw_cross_database as draw_cross_database,
    draw_heat_map as draw_heat_map,
    draw_learning_rates as draw_learning_rates,
    draw_losses as draw_losses,
    draw_model_sizes as draw_model_sizes,
    draw_scatter as draw_scatter,
    draw_training_curves as draw_training_curves,
    draw_waterfall as draw_waterfall,
)
from .sheet import MOST as MOST, draw_sheet as draw_sheet
from .stages import draw_distribution as draw_distribution, draw_stage_weights as draw_stage_weights
from .style import (
    COLOURS as COLOURS,
    PAGE_WIDTH as PAGE_WIDTH,
    STYLE as STYLE,
    Bar as Bar,
    bars_height as bars_height,
    draw_bars as draw_bars,
    legend_above as legend_above,
    line_style as line_style,
    new_figure as new_figure,
    new_grid as new_grid,
    new_panels as new_panels,
    published_legend as published_legend,
    save_figure as save_figure,
    shorten as shorten,
)
from .tables import (
    Table as Table,
    ablation_table as ablation_table,
    attention_table as attention_table,
    complexity_table as complexity_table,
    cross_database_table as cross_database_table,
    in_database_table as in_database_table,
    latex_text as latex_text,
    to_latex as to_latex,
    to_markdown as to_markdown,
)
from .weights import draw_components as draw_components, draw_target_weights as draw_target_weights
