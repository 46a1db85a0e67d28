"""The options of `headwater tune`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, LogLevel, settings_from


def tune(
    items: Annotated[Path, typer.Option("--items", metavar="FILE", help="Catalogue, CSV or CSV.GZ.")],
    events: Annotated[Path, typer.Option("--events", metavar="FILE", help="Events, CSV or CSV.GZ.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the study and the winner go.")],
    trials: Annotated[int, typer.Option("--trials", min=1, metavar="N", help="Trials in all, earlier ones too.")] = 20,
    first_percent: Annotated[
        float, typer.Option("--first-percent", min=0.001, max=100.0, metavar="P", help="Use the oldest P % of events.")
    ] = 100.0,
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="NAME|DIR", help="The frozen encoder, by name or directory.")
    ] = None,
    config: Config = None,
    log_level: LogLevel = None,
) -> None:
    """Search learning rates, negatives and batch size; needs the extra `tune`.

    A trial learns the training events once and is judged by NDCG@20 on the validation events; the test events are not
    looked at. Started again, it goes on with the study. DIR/tuned.toml holds the winner, for --config.

    Example: headwater tune --items items.csv.gz --events events.csv.gz --out ./tuned --trials 30
    """
    settings = settings_from(config, None, log_level, encoder={"model": encoder})
    from services.tune.command import run

    run(settings, items=items, events=events, out=out, trials=trials, first_percent=first_percent)
