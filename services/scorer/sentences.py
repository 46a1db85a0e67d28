"""Why an item is shown, as a shopper may read it: the one or two strongest of the reasons that speak for it."""

from collections.abc import Iterator

from peft_adapters.serving.explanations import Explanation, HistoryShare
from peft_adapters.serving.served_model import ServedModel

_REASONS = 2
_WORTH_SAYING = 0.15  # share of all that speaks for an item, below which a second reason is left out
_TITLE_CHARS = 60
_NOTHING = "We know too little yet to say why."


def because(explanation: Explanation, model: ServedModel) -> str:
    """A sentence that says what speaks most for an item.

    Args:
        explanation: of its score.
        model: which gave it; knows what items are called.
    """
    reasons = sorted((reason for reason in _reasons(explanation, model) if reason[0] > 0), reverse=True)
    if not reasons:
        return _NOTHING
    enough = _WORTH_SAYING * sum(strength for strength, _ in reasons)
    said = [reasons[0][1], *(text for strength, text in reasons[1:_REASONS] if strength >= enough)]
    return f"Because {', and because '.join(said)}."


def _reasons(explanation: Explanation, model: ServedModel) -> Iterator[tuple[float, str]]:
    """How strongly each reason speaks for the item, and the reason in words."""
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
    """What an item is called: the first part of its text.

    >>> _title("Mug. Acme. Blue.")
    '“Mug”'
    >>> _title(None)
    'something'
    """
    if not text:
        return "something"
    title = text.split(". ", maxsplit=1)[0].rstrip(".")
    return f"“{title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1].rstrip() + '…'}”"
