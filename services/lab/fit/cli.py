"""Options of `headwater fit`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, EncoderName, Events, FirstPercent, Items, LogLevel, Scenario, Strict, settings_from


def fit(
    items: Items,
    events: Events,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the warm start goes.")],
    first_percent: FirstPercent = 100.0,
    train_percent: Annotated[
        float | None, typer.Option("--train-percent", metavar="P", help="Of these, the oldest P % to learn from.")
    ] = None,
    validation_percent: Annotated[
        float | None, typer.Option("--validation-percent", metavar="P", help="The P % after them, to stop by.")
    ] = None,
    max_epochs: Annotated[int | None, typer.Option("--max-epochs", min=1, metavar="N", help="Epochs at most.")] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, metavar="N", help="Stop after N epochs that are no better.")
    ] = None,
    encoder: EncoderName = None,
    strict: Strict = False,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Learn from a file of events, for an updater's warm start.

    The setting `updater.start_from` names the directory to the updater.

    Events are split by time. Epochs go over the oldest part until NDCG@20 on the next gets no better; the newest part
    is the test. A run that was cut short resumes after its last epoch when it is started again with the same arguments.

    Example: headwater fit --items items.csv.gz --events events.csv.gz --out ./warm
    """
    section = {
        "train_percent": train_percent,
        "validation_percent": validation_percent,
        "max_epochs": max_epochs,
        "patience": patience,
    }
    settings = settings_from(config, None, log_level, scenario, fit=section, encoder={"model": encoder})
    from services.lab.fit.command import run

    run(settings, items=items, events=events, out=out, first_percent=first_percent, strict=strict)
