"""The JSON Schema of a sweep file, for editors; its table of fields also is the loader's."""

from __future__ import annotations

import copy
from typing import Any

_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 1}
_AUTO = {"const": "auto"}
_STEPS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "every": _WHOLE,
        "log_spaced": {"type": "integer", "minimum": 2},
        "at": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
    },
    "additionalProperties": False,
    "minProperties": 1,
}

_GROUPS: dict[str, Any] = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {}}

# Every field of the file as JSON Schema; what tasks and measurements add is in `schema`.
FIELDS: dict[str, dict[str, Any]] = {
    "name": {
        "description": "a-z, 0-9, _ and -; results lie in <storage>/<name>",
        "type": "string",
        "pattern": "^[a-z0-9_-]{1,100}$",
    },
    "task": {
        "description": "a registered name, an entry point, or path/to/file.py:Class",
        "type": "string",
    },
    "base": {"description": "parameters that all trials share", "type": "object"},
    "grid": {
        "description": "axes whose product is swept, each a list of values; "
        "a list of such blocks is their union",
        "type": ["object", "array"],
    },
    "zip": {
        "description": "axes of equal length that move together, multiplied with the grid",
        "type": "object",
    },
    "exclude": {
        "description": "partial assignments of swept parameters to leave out",
        "type": "array",
        "items": {"type": "object", "minProperties": 1},
    },
    "seeds": {
        "description": "N for the seeds 0..N-1, or a list of seeds",
        "default": 1,
        "anyOf": [
            _WHOLE,
            {
                "type": "array",
                "minItems": 1,
                "uniqueItems": True,
                "items": {"type": "integer", "minimum": 0},
            },
        ],
    },
    "snapshots": {
        "description": "steps at which spectra are measured; 0 and the last are always among them",
        "default": {"log_spaced": 40},
        **_STEPS,
    },
    "evaluations": {
        "description": "steps at which metrics are evaluated, beside those of the snapshots",
        **_STEPS,
    },
    "measure": {
        "description": "what a snapshot holds: groups of measurements, or those with options",
        "default": ["ranks", "spectrum"],
        "anyOf": [
            _GROUPS,
            {
                "type": "object",
                "properties": {
                    "groups": {"default": ["ranks", "spectrum"], **_GROUPS},
                    "vectors": {
                        "description": "leading singular vectors per matrix",
                        "default": 100,
                        **_WHOLE,
                    },
                    "views": {
                        "description": "names of matrices, with * and ? (default: all of them)",
                        "type": "array",
                        "minItems": 1,
                        "uniqueItems": True,
                        "items": {"type": "string"},
                    },
                    "residual": {
                        "description": "alignment across residual streams too",
                        "default": False,
                        "type": "boolean",
                    },
                    "heads": {
                        "description": "alignment of single heads too, not only of all as one",
                        "default": False,
                        "type": "boolean",
                    },
                    "keep": {
                        "description": "whose leading singular vectors stay in the store",
                        "default": "none",
                        "enum": ["none", "final", "all"],
                    },
                    "workspace": {
                        "description": "memory of decompositions: bytes, or such as 256 MB",
                        "anyOf": [
                            _WHOLE,
                            {"type": "string", "pattern": r"^\d+(\.\d+)? *(kB|MB|GB|MiB|GiB)$"},
                        ],
                    },
                    "pruned": {
                        "description": "which pruned models are evaluated, and when",
                        "type": "object",
                        "properties": {
                            "fractions": {
                                "description": "shares of singular directions that are kept",
                                "default": [0.5],
                                "type": "array",
                                "minItems": 1,
                                "uniqueItems": True,
                                "items": {
                                    "type": "number",
                                    "exclusiveMinimum": 0,
                                    "exclusiveMaximum": 1,
                                },
                            },
                            "last": {
                                "description": "whether the last matrix stays whole",
                                "default": "exempt",
                                "enum": ["exempt", "included"],
                            },
                            **_STEPS["properties"],
                        },
                        "additionalProperties": False,
                    },
                },
                "additionalProperties": False,
            },
        ],
    },
    "resources": {
        "description": "what one trial is given; group: how many trials a worker trains together",
        "type": "object",
        "properties": {
            "cpus": _WHOLE,
            "gpus": {"anyOf": [_AUTO, {"type": "number", "minimum": 0}]},
            "group": {"anyOf": [_AUTO, _WHOLE]},
            "custom": {
                "description": "resources that the cluster's owner has named, such as {v100: 1}",
                "type": "object",
                "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
            },
        },
        "additionalProperties": False,
    },
    "tracking": {
        "description": "none, or where the MLflow server is (default: SQLite in the results)",
        "anyOf": [
            {"const": "none"},
            {
                "type": "object",
                "properties": {"uri": {"type": "string"}, "experiment": {"type": "string"}},
                "additionalProperties": False,
            },
        ],
    },
    "storage": {
        "description": "folder of all results, relative to the working directory",
        "default": "results",
        "type": "string",
    },
    "data": {
        "description": "folder that holds one folder per real data set, relative to the working "
        "directory (default: SPECTRAL_SWEEPS_DATA, else ~/.cache/spectral-sweeps)",
        "type": "string",
    },
    "checkpoint_seconds": {
        "description": "seconds between two checkpoints of a trial",
        "default": 60,
        "type": "number",
        "minimum": 0,
    },
}
REQUIRED = ("name", "task")

# Columns of the trials table, which `Results` gives one column per parameter beside its own.
RESERVED = frozenset(
    "trial_id config_id seed params status error_kind error last_step attempt epoch group_size "
    "started_at ended_at wall_seconds host device environment parents reused_from shards".split()
)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a sweep file, with the parameters of every registered task.

    For editors: it knows names, types and ranges, but not what only loading can check: conflicts
    between fields, and what a task's own validators say of several parameters together.
    """
    # here, because they load torch: who only reads results does without
    from spectral import MEASUREMENTS
    from tasks import available, resolve

    properties = copy.deepcopy(FIELDS)
    groups, options = properties["measure"]["anyOf"]
    for each in (groups, options["properties"]["groups"]):
        each["items"] = {"enum": [*MEASUREMENTS]}
    branches: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for name in sorted(available()):
        config = resolve(name).Config.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions |= {f"{name}.{key}": value for key, value in config.pop("$defs", {}).items()}
        values = config["properties"]
        base = {"properties": values, "additionalProperties": False}
        lists = {key: {"type": "array", "minItems": 1, "items": of} for key, of in values.items()}
        axes = {"type": "object", "properties": lists, "additionalProperties": False}
        parameters = {
            "base": base,
            "grid": {"anyOf": [axes, {"type": "array", "minItems": 1, "items": axes}]},
            "zip": axes,
            "exclude": {"items": base},
        }
        this_task = {"properties": {"task": {"const": name}}, "required": ["task"]}
        branches.append({"if": this_task, "then": {"properties": parameters}})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sweep file of spectral-sweeps",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": [*REQUIRED],
        "allOf": branches,
        "$defs": definitions,
    }
