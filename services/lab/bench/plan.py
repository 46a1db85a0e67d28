"""What the process that makes the load is told, and what it tells back."""

from pydantic import BaseModel, ConfigDict, Field


class Plan(BaseModel):
    """A load.

    Attributes:
        url: Of the server, without a path.
        path: Of the route.
        bodies: Sent in turn, JSON.
        headers: Of every request.
        per_second: Requests that begin in a second, whether or not answers come (open loop), at random times; None
            sends the next as soon as one is answered, over all connections (closed loop).
        seconds: How long.
        until_versions: Ends earlier, once answers have come from so many versions.
        connections: At most so many requests are under way; in an open loop the others wait, and their wait counts.
        seed: Of the random times.
        timeout_seconds: An answer that takes longer is a failure.
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


class Load(BaseModel):
    """What became of it.

    Attributes:
        seconds: How long it lasted.
        answered: Requests answered with success.
        failed: All others.
        first_failure: What the first of them met.
        took_ms: How long each answer took, from when its request was due.
        late_ms: How late the load process itself was with each request: what it could not measure any better.
        first_answers: When the first answer from each version came, epoch seconds.
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
        """Answers in a second."""
        return self.answered / self.seconds
