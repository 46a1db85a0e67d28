"""Backtests that start from a fit: the events it has learnt already, and learners in its state."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from peft_adapters.errors import BundleFormatError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.warm_start import start_from
from services.data.dataset import read_events
from services.data.digests import file_digest
from services.data.rows import RefusedRows
from services.lab.backtest.run import Start
from services.lab.fit.fitting import REPORT_NAME
from services.settings import Settings
from streams.events import Item
from streams.privacy import pseudonymiser


def backtest_start(settings: Settings, directory: Path, events: Path) -> Start:
    """Return the state of a fit for the learners of a backtest.

    If the fit was made from the same events file, the events it has learnt are not learnt again.

    Args:
        settings: settings with the secret that pseudonymised the fit's shoppers.
        directory: the directory that `headwater fit` wrote.
        events: file of the backtest's events.

    Raises:
        BundleFormatError: the directory was not written by `headwater fit`.
        InputError: the events cannot be read.
        SecretError: the secret of the fit's pseudonyms is missing.
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
    same = file_digest(events) in known
    return Start(partial(_begin, directory, names), share if same else 0.0)


def _begin(directory: Path, names: dict[str, str], learner: Learner) -> None:
    """Load the fit into a learner, and give its shoppers the names that they have in the data."""
    start_from(learner, directory)
    learner.shoppers.load_state_dict(
        {names.get(user, user): state for user, state in learner.shoppers.state_dict().items()}
    )
