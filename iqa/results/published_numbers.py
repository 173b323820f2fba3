"""Numbers that others published, from `configs/published_results.yaml`; the only door they come in by. Needs no torch.

Figures and tables show them beside measured ones, hatched and marked "published", with their source in the manifest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from iqa.config import CONFIGS
from iqa.errors import UserError

DEFAULT_FILE = CONFIGS / "published_results.yaml"
_SCORES = ("srcc", "plcc")
# What every row of an entry has to give as a number, and what the entry itself has to say.
_ROW_NUMBERS = {
    "koniq_components": _SCORES,
    "koniq_sizes": (*_SCORES, "parameters"),
    "cross_database": _SCORES,
    "agiqa_in_database": _SCORES,
    "complexity": ("parameters_millions", "operations_g", "latency_ms"),
}
_ENTRY_FIELDS = {
    "koniq_components": ("database",),
    "koniq_sizes": ("database",),
    "cross_database": ("trained_on", "model"),
    "agiqa_in_database": ("database",),
    "complexity": (),
    "attention_by_level": ("stages", "levels"),
}


@dataclass(frozen=True)
class PublishedEntry:
    """One published table: where it is from, how it was measured, and its rows by name."""

    name: str
    source: str
    protocol: str
    rows: dict[str, dict]
    content: dict

    def cite(self, row: str) -> dict[str, str]:
        """What a manifest says of one row: entry, row, source and protocol."""
        own = self.rows.get(row, {})
        source, protocol = own.get("source", self.source), own.get("protocol", self.protocol)
        return {"published": f"{self.name}.{row}", "source": source, "protocol": protocol}


@dataclass(frozen=True)
class PublishedResults:
    """The published tables by name; without a file there are none, and nothing published is drawn."""

    entries: dict[str, PublishedEntry]

    def get(self, name: str) -> PublishedEntry | None:
        """The entry of this name, if published numbers were read."""
        return self.entries.get(name)

    def counterpart(self, name: str, settings: dict) -> tuple[PublishedEntry, str] | None:
        """The published row with a run's database, backbone and fusion; of several, the one the run is named after.

        Args:
            name: of the run or row.
            settings: of the run; `dataset`, `backbone` and `fusion` are compared.
        """
        entries = [self.get(entry) for entry in ("koniq_components", "koniq_sizes")]
        found = [
            (entry, key)
            for entry in entries
            if entry is not None and entry.content["database"] == settings.get("dataset")
            for key, row in entry.rows.items()
            if all(row.get(setting) == settings.get(setting) for setting in ("backbone", "fusion"))
        ]
        return next((pair for pair in found if name.startswith(pair[1])), found[0] if found else None)


def read_published(file: str | Path = DEFAULT_FILE) -> PublishedResults:
    """Read and check the published numbers.

    Raises:
        UserError: no such file, not YAML, an unknown entry, or a field missing or not a number; named by its path.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"published results {file}: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"published results {file} are not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"published results {file}: expected entries of {', '.join(_ENTRY_FIELDS)}")
    unknown = [str(name) for name in content if name not in _ENTRY_FIELDS]
    if unknown:
        raise UserError(f"published results {file}: unknown entry {unknown[0]!r}; known: {', '.join(_ENTRY_FIELDS)}")
    return PublishedResults({name: _entry(file, name, entry) for name, entry in content.items()})


def _entry(file: str | Path, name: str, content: object) -> PublishedEntry:
    rows = "levels" if name == "attention_by_level" else "rows"
    for field in ("source", "protocol", rows, *_ENTRY_FIELDS[name]):
        if not isinstance(content, dict) or not content.get(field):
            raise UserError(f"published results {file}: no field '{name}.{field}'")
    if not isinstance(content[rows], dict):
        raise UserError(f"published results {file}: '{name}.{rows}' is no table of rows by name")
    if name == "attention_by_level":
        _check_levels(file, content)
        found = {level: {"mean": weights} for level, weights in content["levels"].items()}
    else:
        found = content["rows"]
        for key, row in found.items():
            for field in _ROW_NUMBERS[name]:
                if not isinstance(row, dict) or not _is_number(row.get(field)):
                    raise UserError(f"published results {file}: '{name}.rows.{key}.{field}' is missing or no number")
    return PublishedEntry(name, str(content["source"]), str(content["protocol"]), found, content)


def _check_levels(file: str | Path, content: dict) -> None:
    stages = len(content["stages"])
    for level, weights in content["levels"].items():
        if not isinstance(weights, list) or len(weights) != stages or not all(map(_is_number, weights)):
            raise UserError(f"published results {file}: 'attention_by_level.levels.{level}' are not {stages} numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
