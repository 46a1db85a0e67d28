"""Messages to and from the load process: the plan of a load, and its result."""

from pydantic import BaseModel, ConfigDict, Field


class LoadPlan(BaseModel):
    """The plan of a load.

    Attributes:
        url: URL of the server, without a path.
        path: path of the route.
        bodies: JSON bodies, sent in turn.
        headers: headers of every request.
        per_second: requests started per second at random times, whether or not answers arrive (open loop); None sends
            the next request as soon as one is answered, over all connections (closed loop).
        seconds: length of the load.
        until_versions: number of versions after whose first answers the load ends early; None runs for the whole time.
        connections: requests under way at most; in an open loop the others wait, and their wait counts.
        seed: seed of the random times.
        timeout_seconds: time after which an answer counts as a failure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    path: str
    bodies: list[str] = Field(min_length=1)
    headers: dict[str, str] = {}
    per_second: float | None = Field(default=None, gt=0)
    seconds: float = Field(gt=0)
    until_versions: int | None = Field(default=None, ge=1)
    connections: int = Field(default=8, ge=1)
    seed: int = 0
    timeout_seconds: float = Field(default=10.0, gt=0)


class LoadResult(BaseModel):
    """The result of a load.

    Attributes:
        seconds: length of the load.
        answered: requests answered with success.
        failed: all other requests.
        first_failure: description of the first failure.
        took_ms: time of each answer, from when its request was due.
        late_ms: delay of the load process itself with each request, which limits the precision.
        first_answers: time of the first answer from each version, epoch seconds.
    """

    seconds: float
    answered: int
    failed: int
    first_failure: str
    took_ms: list[float]
    late_ms: list[float]
    first_answers: dict[int, float]

    @property
    def per_second(self) -> float:
        """Return the answers per second."""
        return self.answered / self.seconds
