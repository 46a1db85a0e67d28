"""`/v1/noop`: what a request costs before anything is ranked, for `headwater bench` to measure ranking against."""

from fastapi import FastAPI, Response

from services.scorer.requests import RankRequest
from services.web.json_response import FastJsonResponse

NOOP_ROUTE = "/v1/noop"


def add_noop(app: FastAPI, *, scenario: str) -> None:
    """Add the route.

    Args:
        app: The application.
        scenario: Said in the answer.
    """

    @app.post(NOOP_ROUTE, include_in_schema=False)
    async def noop(request: RankRequest) -> Response:
        """Read the body of a `/v1/rank`, and give its candidates back in the order they came in."""
        items = [{"item_id": item_id, "score": 0.0} for item_id in request.candidates]
        return FastJsonResponse({"adapter_version": 0, "scenario": scenario, "items": items, "unknown_candidates": []})
