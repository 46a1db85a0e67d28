"""Route `/v1/noop`: the cost of a request without ranking, a baseline for `headwater bench`."""

from fastapi import FastAPI, Response

from services.scorer.requests import RankRequest
from services.web.json_response import FastJsonResponse

NOOP_ROUTE = "/v1/noop"


def add_noop(app: FastAPI, *, scenario: str) -> None:
    """Add the route.

    Args:
        app: the application to extend.
        scenario: the scenario named in the answer.
    """

    @app.post(NOOP_ROUTE, include_in_schema=False)
    async def noop(request: RankRequest) -> Response:
        """Parse the body of a `/v1/rank` call and return its candidates unordered."""
        items = [{"item_id": item_id, "score": 0.0} for item_id in request.candidates]
        return FastJsonResponse({"adapter_version": 0, "scenario": scenario, "items": items, "unknown_candidates": []})
