"""Options of `headwater tune`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, EncoderName, Events, FirstPercent, Items, LogLevel, Strict, settings_from


def tune(
    items: Items,
    events: Events,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the study and the winner go.")],
    trials: Annotated[int, typer.Option("--trials", min=1, metavar="N", help="Trials in all, earlier ones too.")] = 20,
    first_percent: FirstPercent = 100.0,
    encoder: EncoderName = None,
    strict: Strict = False,
    config: Config = None,
    log_level: LogLevel = None,
) -> None:
    """Search for the best settings of the learner on a data set.

    The settings are learning rates, LoRA's optimiser, negatives and batch size. It needs the extra `tune`.

    A trial learns the training events once and is judged by NDCG@20 on the validation events; the test events are not
    looked at. Started again, it resumes the study. DIR/tuned.toml holds the winner, for --config.

    Example: headwater tune --items items.csv.gz --events events.csv.gz --out ./tuned --trials 30
    """
    settings = settings_from(config, None, log_level, encoder={"model": encoder})
    from services.lab.tune.command import run

    run(settings, items=items, events=events, out=out, trials=trials, first_percent=first_percent, strict=strict)
