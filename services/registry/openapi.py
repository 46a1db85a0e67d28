"""OpenAPI documentation of the registry's answers and path parameters."""

from typing import Annotated, Any

from fastapi import Path

from peft_adapters.registry.manifest import MANIFEST_NAME, MAX_VERSION, SCENARIO_PATTERN
from services.registry.changes import PATHS, Change
from services.web.problems import KEYS, problems

# Documented here and enforced by the registry, whose error names the remedy.
ScenarioName = Annotated[str, Path(json_schema_extra={"pattern": f"^{SCENARIO_PATTERN}$"}, examples=["home"])]
Version = Annotated[int, Path(ge=1, le=MAX_VERSION, examples=[1])]
FileName = Annotated[str, Path(examples=[MANIFEST_NAME])]

_AWAY = "the store does not answer, or there are too many calls at once; try again after `Retry-After` seconds"
_READS = KEYS | {
    422: "the name of the scenario, or another value, is invalid",
    500: "data in the registry is damaged",
    503: _AWAY,
}

STORE_AWAY = problems({503: _AWAY})
KEYS_ONLY = problems(KEYS)
READS = problems(_READS)
READS_PUBLISHED = problems(_READS | {404: "there is no such version or file, or nothing has been published"})
REPORTS = problems(
    _READS | {400: "the body is not text", 408: "the body did not arrive in time", 413: "the body is too large"}
)
CHANGES = problems(
    _READS
    | {
        400: "the body is not text, or gzip that is damaged or cut off",
        403: "the key does not allow this call, or this process only reads from another one",
        404: "there is no such version, or nothing has been published",
        408: "the body did not arrive in time",
        409: "the rollout was changed meanwhile, or the change would break one of its rules",
        413: "the body, as sent or decompressed, is larger than any call accepts",
        415: "the `Content-Type` is not application/json, or the `Content-Encoding` is not gzip",
        503: "the store, or the audit log, does not answer; or there are too many calls at once",
    }
)
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "the value is the one that `If-None-Match` names"}}
FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "the file", "content": {"application/octet-stream": {}, "application/json": {}}}
}


def changes_before(*later: type[Change]) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a change, with OpenAPI links to changes that may follow it.

    Args:
        later: the changes that may follow.
    """
    links = {
        change.__name__: {
            "operationRef": f"#/paths/~1v1~1adapters~1{{scenario}}~1{PATHS[change].replace('/', '~1')}/post",
            "parameters": {"scenario": "$request.path.scenario"},
        }
        for change in later
    }
    return CHANGES | {200: {"links": links}}
