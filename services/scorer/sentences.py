"""Sentences for shoppers: the one or two strongest reasons for an item."""

from collections.abc import Iterator

from peft_adapters.serving.explanations import Explanation, HistoryShare
from peft_adapters.serving.served_model import ServedModel

_REASONS = 2
_MIN_SHARE = 0.15  # of all positive reasons; a second reason below it is left out
_TITLE_CHARS = 60
_NOTHING = "We know too little yet to say why."


def because(explanation: Explanation, model: ServedModel) -> str:
    """Return a sentence with the strongest reasons for an item.

    Args:
        explanation: the explanation of its score.
        model: the model that gave the score; knows the titles of items.
    """
    reasons = sorted((reason for reason in _reasons(explanation, model) if reason[0] > 0), reverse=True)
    if not reasons:
        return _NOTHING
    threshold = _MIN_SHARE * sum(strength for strength, _ in reasons)
    texts = [reasons[0][1], *(text for strength, text in reasons[1:_REASONS] if strength >= threshold)]
    return f"Because {', and because '.join(texts)}."


def _reasons(explanation: Explanation, model: ServedModel) -> Iterator[tuple[float, str]]:
    """Yield the strength of each reason and its text."""
    yield explanation.popularity, "many shoppers choose it"
    yield explanation.query, "it fits what you are looking for"
    yield explanation.global_preference, "it is the kind of thing that shoppers here like"
    for looked_at in explanation.history:
        yield looked_at.share, _of_history(looked_at, explanation.row, model)


def _of_history(looked_at: HistoryShare, row: int, model: ServedModel) -> str:
    when = "" if looked_at.sessions_ago == 0 else " before"
    if looked_at.row == row:
        return f"you looked at it{when or ' just now'}"
    seen = f"you looked at {_title(model.texts[looked_at.row])}{when}"
    vectors = looked_at.shares["text"] + looked_at.shares["residual"]
    return f"{seen}, and it is much like that" if vectors > looked_at.shares["cooccurrence"] else seen


def _title(text: str | None) -> str:
    """Return the title of an item: the first part of its text.

    >>> _title("Mug. Acme. Blue.")
    '“Mug”'
    >>> _title(None)
    'something'
    """
    if not text:
        return "something"
    title = text.split(". ", maxsplit=1)[0].rstrip(".")
    return f"“{title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1].rstrip() + '…'}”"
