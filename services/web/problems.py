"""OpenAPI documentation of answers other than success: RFC 9457 problem details."""

from collections.abc import Mapping
from typing import Any

from services.web.http import PROBLEM_MEDIA_TYPE

FAULT = {
    "type": "object",
    "properties": {
        "pointer": {"type": "string", "description": "where in the request, such as body/candidates/0"},
        "detail": {"type": "string"},
    },
    "required": ["pointer", "detail"],
}
PROBLEM = {
    "title": "Problem details (RFC 9457)",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what went wrong with this request, and what to do about it"},
        "instance": {"type": "string"},
        "errors": {"type": "array", "items": FAULT},
    },
    "required": ["type", "title", "status", "detail", "instance"],
}

# Answers of access control, which any call but a probe may get (services/web/access).
KEYS = {
    401: "a key is required, and none was sent that is valid",
    403: "the key does not allow this call",
}


def problems(descriptions: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route, which document what each status means there.

    Args:
        descriptions: the meaning of each status.
    """
    content = {PROBLEM_MEDIA_TYPE: {"schema": PROBLEM}}
    return {status: {"description": text, "content": content} for status, text in descriptions.items()}
