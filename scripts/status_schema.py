"""The JSON Schema of what `mingle status --json` prints."""

from __future__ import annotations

import json

import msgspec

from mingled.core import local


def text() -> str:
    """docs/status.schema.json."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mingle status --json",
        **msgspec.json.schema(list[local.Report], schema_hook=_plain),
    }
    return json.dumps(schema, indent=2) + "\n"


def _plain(kind: type) -> dict[str, str]:
    """JobId, Sentence and the like."""
    if issubclass(kind, str):
        return {"type": "string"}
    raise NotImplementedError(kind)
