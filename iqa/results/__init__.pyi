from .building import (
    TEST_PART as TEST_PART,
    ScoredPart as ScoredPart,
    build_results as build_results,
    database_of as database_of,
    part_name as part_name,
)
from .history import read_epochs as read_epochs
from .markdown import markdown_table as markdown_table
from .printed import groups_table as groups_table, metrics_table as metrics_table
from .provenance import provenance as provenance
from .published_numbers import (
    DEFAULT_FILE as DEFAULT_FILE,
    PublishedEntry as PublishedEntry,
    PublishedResults as PublishedResults,
    read_published as read_published,
)
from .recorded import (
    Record as Record,
    Recorded as Recorded,
    Run as Run,
    dotted as dotted,
    read_recorded as read_recorded,
)
from .row_files import ROW_FILES as ROW_FILES, RowFile as RowFile, csv_writer as csv_writer
from .rows import (
    Row as Row,
    Score as Score,
    Sweep as Sweep,
    ablation_rows as ablation_rows,
    measured_rows as measured_rows,
    sweeps as sweeps,
)
from .schema import (
    PROTOCOLS as PROTOCOLS,
    SELECTED_ON_TEST as SELECTED_ON_TEST,
    check_results as check_results,
    compare_predictions as compare_predictions,
    digest as digest,
    list_fingerprint as list_fingerprint,
    paired_scores as paired_scores,
    part_metrics as part_metrics,
    prediction_rows as prediction_rows,
    predictions_table as predictions_table,
    read_history as read_history,
    read_json as read_json,
    read_results as read_results,
    require_fields as require_fields,
    require_kind as require_kind,
    write_results as write_results,
)
from .verification import Difference as Difference, Verification as Verification, verify as verify
