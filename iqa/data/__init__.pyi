from .cache import (
    CacheOnDisk as CacheOnDisk,
    RowCache as RowCache,
    beyond_limit as beyond_limit,
    cache_folder as cache_folder,
    caches_on_disk as caches_on_disk,
    remove_cache as remove_cache,
)
from .database import Database as Database
from .images import (
    ImageFile as ImageFile,
    ImageFileError as ImageFileError,
    ImageFiles as ImageFiles,
    NamedBytes as NamedBytes,
    check_image as check_image,
    check_images as check_images,
    file_hash as file_hash,
    image_sizes as image_sizes,
    open_rgb as open_rgb,
    opened as opened,
    upright_size as upright_size,
)
from .label_files import (
    SPLIT_NAMES as SPLIT_NAMES,
    has_mat_variable as has_mat_variable,
    read_csv_rows as read_csv_rows,
    read_mat_names as read_mat_names,
    read_mat_numbers as read_mat_numbers,
    read_numbers as read_numbers,
    read_pairs as read_pairs,
    read_records as read_records,
    read_workbook as read_workbook,
)
from .names import Names as Names
from .near_duplicates import (
    HASH_BITS as HASH_BITS,
    HASH_SIDE as HASH_SIDE,
    NEAR_BITS as NEAR_BITS,
    ClosePairs as ClosePairs,
    close_pairs as close_pairs,
    count_unhashed as count_unhashed,
    perceptual_hash as perceptual_hash,
    perceptual_hashes as perceptual_hashes,
)
from .overlap import Overlap as Overlap, find_overlap as find_overlap
from .paths import IMAGE_SUFFIXES as IMAGE_SUFFIXES, LIST as LIST, Found as Found, find_images as find_images
from .splits import (
    PARTS as PARTS,
    check_leakage as check_leakage,
    contents_in_two_parts as contents_in_two_parts,
    kfold as kfold,
    read_split as read_split,
    split_database as split_database,
    write_split as write_split,
)
