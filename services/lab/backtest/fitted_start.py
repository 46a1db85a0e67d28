"""A backtest that begins from a fit: which events it has learnt already, and learners that begin there."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from peft_adapters.errors import BundleFormatError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.warm_start import start_from
from services.data.dataset import read_events
from services.data.rows import RefusedRows
from services.lab.backtest.run import Start
from services.lab.fit.fitting import REPORT_NAME
from services.settings import Settings
from streams.events import Item
from streams.privacy import pseudonymiser


def backtest_start(settings: Settings, directory: Path, events: Path) -> Start:
    """What learners of a backtest begin from.

    Where the fit was made of the same file, its events are not learnt again.

    Raises:
        BundleFormatError: the directory is not one of `headwater fit`.
        InputError: the events cannot be read.
        SecretError: there is no secret to know the fit's shoppers by.
    """
    try:
        report = json.loads((directory / REPORT_NAME).read_text(encoding="utf-8"))
        known, share = report["data"].values(), report["first_percent"] / 100
    except (OSError, ValueError, KeyError) as error:
        raise BundleFormatError(
            f"{directory / REPORT_NAME}: expected the report of a finished fit, found {error!r}; run `headwater fit`"
        ) from error
    pseudonymise = pseudonymiser(settings.privacy)
    read = read_events(events, refused=RefusedRows(strict=False))
    users = {event.user_id for event in read if not isinstance(event, Item)}
    names = {pseudonymise(user): user for user in users}
    same = hashlib.sha256(events.read_bytes()).hexdigest() in known
    return Start(partial(_begin, directory, names), share if same else 0.0)


def _begin(directory: Path, names: dict[str, str], learner: Learner) -> None:
    """Begin from the fit, its shoppers under the names that the data has for them."""
    start_from(learner, directory)
    learner.shoppers.load_state_dict(
        {names.get(user, user): state for user, state in learner.shoppers.state_dict().items()}
    )
