"""What `headwater dead-letters` does."""

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
    """Puts the records of letters back, or the mended events of a file in their place.

    Args:
        settings: Which Kafka, which topics.
        selection: Which letters; its limit is on those not replayed before.
        mended_file: Names letters, and what to put in their place.
        again: Whether to repeat what was replayed before.
        dry_run: Whether to look only, and send nothing.

    Raises:
        LetterError: The file cannot be used; nothing was sent.
        BrokerUnreachableError: No broker answers.
        TopicError: The topic does not exist.
        ConsumeError: The broker does not give what is there.
        DeliveryError: A record or its mark was not confirmed; what was marked before stays replayed.
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
    _work_through(work, read_whole(settings, set(due[: selection.limit])))
    return work.summary


def _work_through(work: Replay, letters: list[DeadLetter]) -> None:
    """Replays, with a progress bar for a person who watches."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay", total=len(letters))
        for done in work.run(letters):
            progress.advance(task, done)


def replayed(summary: ReplaySummary, *, dry_run: bool) -> list[str]:
    """Lines that say what became of the letters.

    Args:
        summary: What became of them.
        dry_run: Whether nothing was sent.
    """
    topics = ", ".join(f"{count} to {topic}" for topic, count in sorted(summary.sent.items()))
    lines = [f"{summary.sent.total()} records {'would be ' if dry_run else ''}put back{': ' if topics else ''}{topics}"]
    if summary.replayed_before:
        lines.append(f"{summary.replayed_before} passed over: replayed before; --again repeats them")
    return lines + [f"{count} not replayable: {why}" for why, count in summary.not_replayable.most_common()]


def purge(settings: Settings, letters: list[DeadLetter]) -> None:
    """Does away with letters: a record without value under the key of each.

    Args:
        settings: Which Kafka, which topics.
        letters: Which letters.

    Raises:
        BrokerUnreachableError: No broker answers.
        DeliveryError: Not all were confirmed; purging again is safe.
    """
    with EventProducer(settings.kafka) as producer:
        for letter in letters:
            producer.send_raw(settings.topics.dead_letters, letter.record_key().encode(), None)
        producer.flush(CONFIRM_SECONDS)
