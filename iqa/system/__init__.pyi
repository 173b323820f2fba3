from .distributed import gather_shares as gather_shares, shard_sizes as shard_sizes
from .files import (
    FolderBusyError as FolderBusyError,
    lock_folder as lock_folder,
    spreadsheet_safe as spreadsheet_safe,
    write_atomically as write_atomically,
    write_json as write_json,
)
from .logs import is_first_process as is_first_process, start_logging as start_logging
from .memory import give_back_freed_memory as give_back_freed_memory, keep_freed_memory as keep_freed_memory
from .progress import progress as progress
from .signals import StopSignals as StopSignals
from .threads import in_threads as in_threads
from .torchvision_operators import declare_missing_operators as declare_missing_operators
