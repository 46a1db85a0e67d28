"""Implementation of `headwater dead-letters replay` and `purge`."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from services.operate.dead_letters.letters import Selection, read, read_whole
from services.operate.dead_letters.mended import letters_named, mended
from services.operate.dead_letters.replaying import Replay, ReplaySummary
from services.settings import Settings
from streams.dead_letters import DeadLetter
from streams.producer import EventProducer

CONFIRM_SECONDS = 30.0


def replay(
    settings: Settings,
    selection: Selection,
    *,
    mended_file: Path | None = None,
    again: bool = False,
    dry_run: bool = False,
) -> ReplaySummary:
    """Put the records of letters back, or send the corrected events of a file in their place.

    Args:
        settings: the settings with brokers and topics.
        selection: the filters of the letters; its limit applies to letters not replayed before.
        mended_file: the file with letters and the events to send in their place.
        again: whether to include letters that were replayed before.
        dry_run: whether to only count, and send nothing.

    Raises:
        LetterError: the file cannot be used; nothing was sent.
        BrokerUnreachableError: no broker answers.
        TopicError: the topic does not exist.
        ConsumeError: the broker refuses the records.
        DeliveryError: a record or its mark was not confirmed; letters marked before stay replayed.
    """
    named = letters_named(mended_file) if mended_file else None
    letters = read(settings, replace(selection, limit=None)).letters
    events = None
    if named is not None:
        events = mended(named, {letter.record_key(): letter for letter in letters}, settings.topics)
        letters = [letter for letter in letters if letter.record_key() in events]
    due = [letter.record_key() for letter in letters if again or letter.replayed_ts is None]
    work = Replay(settings, mended=events, dry_run=dry_run)
    work.summary.replayed_before = len(letters) - len(due)
    _run_with_progress(work, read_whole(settings, set(due[: selection.limit])))
    return work.summary


def _run_with_progress(work: Replay, letters: list[DeadLetter]) -> None:
    """Replay letters, with a progress bar on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay", total=len(letters))
        for done in work.run(letters):
            progress.advance(task, done)


def replayed(summary: ReplaySummary, *, dry_run: bool) -> list[str]:
    """Return lines that report the outcome of a replay.

    Args:
        summary: the outcome for the letters.
        dry_run: whether nothing was sent.
    """
    topics = ", ".join(f"{count} to {topic}" for topic, count in sorted(summary.sent.items()))
    lines = [f"{summary.sent.total()} records {'would be ' if dry_run else ''}put back{': ' if topics else ''}{topics}"]
    if summary.replayed_before:
        lines.append(f"{summary.replayed_before} skipped: replayed before; --again repeats them")
    return lines + [f"{count} not replayable: {why}" for why, count in summary.not_replayable.most_common()]


def purge(settings: Settings, letters: list[DeadLetter]) -> None:
    """Delete letters by writing a record without value under the key of each.

    Args:
        settings: the settings with brokers and topics.
        letters: the letters to delete.

    Raises:
        BrokerUnreachableError: no broker answers.
        DeliveryError: not all deletions were confirmed; purging again is safe.
    """
    with EventProducer(settings.kafka) as producer:
        for letter in letters:
            producer.send_raw(settings.topics.dead_letters, letter.record_key().encode(), None)
        producer.flush(CONFIRM_SECONDS)
