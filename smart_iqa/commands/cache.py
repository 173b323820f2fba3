"""List the caches on disk, and remove them.

    smart-iqa cache
    smart-iqa cache --cache_limit 50
    smart-iqa cache --remove koniq-10k/pixels_512x384_224_0123456789ab

They hold decoded images, features of frozen backbones, which images have been checked, perceptual hashes, and networks
for ONNX Runtime. All are made again when they are needed, so nothing is lost but time.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from iqa.data import CacheOnDisk, beyond_limit, cache_folder, caches_on_disk, remove_cache
from iqa.errors import Parser, UserError


def listing(caches: Sequence[CacheOnDisk], folder: Path) -> str:
    """A line each: size, day of last use, name; and the sum."""
    if not caches:
        return f"no caches in {folder}"
    lines = [
        f"{cache.size / 1e9:9.3f} GB  {datetime.date.fromtimestamp(cache.changed)}  {cache.name}" for cache in caches
    ]
    return "\n".join([*lines, f"{sum(cache.size for cache in caches) / 1e9:9.3f} GB  in {folder}"])


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="List the caches on disk, largest first, and remove them.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--remove", nargs="+", metavar="NAME", help="remove these, named as the list names them")
    which.add_argument("--all", action="store_true", help="remove all of them")
    help = "remove those used longest ago until all others take at most so many gigabytes, as training's --cache_limit"
    which.add_argument("--cache_limit", type=float, metavar="GB", help=help)
    parser.add_argument("--cache_dir", metavar="FOLDER", help="where they lie; default: the user's cache folder")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """List, or remove and say what was removed."""
    arguments = make_parser().parse_args(argv)
    folder = cache_folder(arguments.cache_dir)
    if arguments.cache_dir and not folder.is_dir():
        raise UserError(f"--cache_dir {folder}: no such folder")
    caches = caches_on_disk(folder)
    wanted = [cache.name for cache in caches] if arguments.all else arguments.remove or []
    if unknown := set(wanted) - {cache.name for cache in caches}:
        raise UserError(f"--remove {min(unknown)}: no such cache in {folder}; `smart-iqa cache` lists them")
    if arguments.cache_limit is not None:
        wanted = [cache.name for cache in beyond_limit(caches, arguments.cache_limit * 1e9)]
    removed = [cache for cache in caches if cache.name in wanted]
    for cache in removed:
        remove_cache(folder, cache)
        print(f"removed {cache.name} ({cache.size / 1e9:.3f} GB)")
    if not removed:
        print(listing(caches, folder))
