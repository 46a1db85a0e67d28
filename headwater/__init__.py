"""Headwater's public API.

Names are imported when they are first used: `import headwater` takes milliseconds and imports neither torch nor kafka.

    from headwater import Click, EventProducer, HeadwaterClient    # applications: pip install headwater
    from headwater import backtest, learn, load_ranker             # notebooks: pip install 'headwater[notebook]'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_adapters.checks import check_learner, check_registry
    from peft_adapters.encoder.encoder import Encoder
    from peft_adapters.errors import ContractError
    from peft_adapters.learning.learner import Learner
    from peft_adapters.registry.registry import AdapterRegistry
    from peft_adapters.settings import EncoderSettings, LearnerSettings
    from services.client.answers import (
        ExplainedItem,
        Explanation,
        HistoryShare,
        RankedItem,
        Ranking,
        ScoreBySource,
        SearchHit,
        SearchResult,
    )
    from services.client.errors import (
        HeadwaterClientError,
        RequestRefusedError,
        ScorerUnavailableError,
        UnexpectedAnswerError,
    )
    from services.client.http_client import AsyncHeadwaterClient, HeadwaterClient
    from services.lab.notebook.offline import backtest, learn
    from services.lab.notebook.ranker import Ranker, load_ranker
    from services.lab.notebook.tables import sample_files
    from services.settings import Settings, load_settings
    from streams.connection import KafkaConnection
    from streams.delivery import Delivery
    from streams.events import Click, Impression, Item, Purchase
    from streams.producer import EventProducer
    from streams.topics import Topics

_MODULES = {
    "services.client.answers": (
        "ExplainedItem",
        "Explanation",
        "HistoryShare",
        "RankedItem",
        "Ranking",
        "ScoreBySource",
        "SearchHit",
        "SearchResult",
    ),
    "peft_adapters.checks": ("check_learner", "check_registry"),
    "peft_adapters.errors": ("ContractError",),
    "services.client.http_client": ("AsyncHeadwaterClient", "HeadwaterClient"),
    "services.client.errors": (
        "HeadwaterClientError",
        "RequestRefusedError",
        "ScorerUnavailableError",
        "UnexpectedAnswerError",
    ),
    "services.lab.notebook.offline": ("backtest", "learn"),
    "services.lab.notebook.ranker": ("Ranker", "load_ranker"),
    "services.lab.notebook.tables": ("sample_files",),
    "peft_adapters.encoder.encoder": ("Encoder",),
    "peft_adapters.learning.learner": ("Learner",),
    "peft_adapters.registry.registry": ("AdapterRegistry",),
    "peft_adapters.settings": ("EncoderSettings", "LearnerSettings"),
    "services.settings": ("Settings", "load_settings"),
    "streams.connection": ("KafkaConnection",),
    "streams.delivery": ("Delivery",),
    "streams.events": ("Click", "Impression", "Item", "Purchase"),
    "streams.producer": ("EventProducer",),
    "streams.topics": ("Topics",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AdapterRegistry",
    "AsyncHeadwaterClient",
    "Click",
    "ContractError",
    "Delivery",
    "Encoder",
    "EncoderSettings",
    "EventProducer",
    "ExplainedItem",
    "Explanation",
    "HeadwaterClient",
    "HeadwaterClientError",
    "HistoryShare",
    "Impression",
    "Item",
    "KafkaConnection",
    "Learner",
    "LearnerSettings",
    "Purchase",
    "RankedItem",
    "Ranker",
    "Ranking",
    "RequestRefusedError",
    "ScoreBySource",
    "ScorerUnavailableError",
    "SearchHit",
    "SearchResult",
    "Settings",
    "Topics",
    "UnexpectedAnswerError",
    "backtest",
    "check_learner",
    "check_registry",
    "learn",
    "load_ranker",
    "load_settings",
    "sample_files",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Raises:
        AttributeError: the name is not public.
        ImportError: the extra that the name needs is not installed.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}; public names: {', '.join(__all__)}")
    try:
        value = getattr(import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        from services.extras import missing_extra

        problem = missing_extra(error)
        if problem is None:
            raise
        raise ImportError(f"headwater.{name}: {problem}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
