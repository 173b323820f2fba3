"""Scored parts -> the content of `results.json`, whoever writes it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

TEST_PART = "test"  # what results call the part of the database trained on; other parts have their database's name


class ScoredPart(NamedTuple):
    """What came out of testing one list of images."""

    database: str  # the images are of it
    described: dict  # what results say of that database
    metrics: dict  # from `part_metrics`
    predictions: list[dict]  # from `prediction_rows`
    timings: dict  # seconds and images_per_s; empty where they are not taken


def part_name(database: str, trained_on: str) -> str:
    """The name of a database's part in the results of a run.

    >>> part_name("koniq-10k", trained_on="koniq-10k"), part_name("spaq", trained_on="koniq-10k")
    ('test', 'spaq')
    """
    return TEST_PART if database == trained_on else database


def database_of(results: dict, part: str) -> str:
    """The database that a part of results is of: as `parts` says, or what `part_name` made the name from."""
    listed = results.get("parts", {}).get(part, {}).get("database")
    return listed or (results["config"].get("dataset", part) if part == TEST_PART else part)


def build_results(
    config: dict,
    provenance: dict,
    protocol: dict,
    scored: Mapping[str, ScoredPart],
    timings: Mapping[str, float] | None = None,
    **further: Any,
) -> dict:
    """The content of a results file; `iqa.results.write_results` checks and writes it.

    Args:
        config: the settings; their seed is that of the results.
        provenance: from `iqa.results.provenance`, and what else is known of the origin.
        protocol: how was tested.
        scored: parts by the name that they get in the file.
        timings: of work that belongs to no part.
        further: fields that only this kind of results has, as they are.
    """
    return {
        "config": config,
        "provenance": provenance | {"seed": config["seed"]},
        "protocol": protocol,
        **further,
        "databases": {part.database: part.described for part in scored.values()},
        "metrics": {name: part.metrics for name, part in scored.items()},
        "predictions": {name: part.predictions for name, part in scored.items()},
        "timings": {**(timings or {}), **{name: part.timings for name, part in scored.items() if part.timings}},
    }
