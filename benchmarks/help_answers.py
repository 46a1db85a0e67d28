"""`python -m benchmarks.help_answers`: whether questions get the right help answer, and whether it is known when not.

24 answers of a shop, two ways to ask for each, and 40 questions that none of them answers, in help_questions.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import code, machine
from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.catalogue import item_text
from peft_adapters.ranking.counters import FloatArray
from peft_adapters.ranking.lexical import LexicalIndex
from peft_adapters.ranking.retrieval import reciprocal_rank_fusion, top_k
from peft_adapters.settings import EncoderSettings
from services.scorer.search import sure_of
from services.settings.search import SearchSettings

QUESTIONS = Path(__file__).with_name("help_questions.json")
WORD_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
CONFIDENCES = (0.4, 0.5, 0.6)


def main() -> int:
    """Ask all questions of the frozen default encoder, print figures as JSON."""
    torch.set_num_threads(1)
    known = json.loads(QUESTIONS.read_text())
    texts = [item_text(title=own["title"], description=own["description"]) for own in known["answers"]]
    asked = [(question, row) for row, own in enumerate(known["answers"]) for question in own["asked"]]
    asked += [(question, -1) for question in known["unanswered"]]
    encoder = Encoder(EncoderSettings(cache_dir=None))
    suffix, queries, index = encoder.merged(), QueryEncoder(encoder), LexicalIndex(texts)
    vectors = torch.nn.functional.normalize(suffix(encoder.prefix(texts)), dim=1)
    meaning = [(vectors @ queries(question, suffix)).numpy() for question, _ in asked]
    words = [index.scores(question) for question, _ in asked]
    wanted = np.array([row for _, row in asked])
    result = {f"words {weight:g}": _figures(meaning, words, wanted, weight) for weight in WORD_WEIGHTS}
    sys.stdout.write(json.dumps({**result, "machine": machine(), "code": code()}, indent=2) + "\n")
    return 0


def _figures(meaning: list[FloatArray], words: list[FloatArray], wanted: Any, weight: float) -> dict[str, Any]:
    first = np.array([_first(own, found, weight) for own, found in zip(meaning, words, strict=True)])
    cosine = np.array([own[row] for own, row in zip(meaning, first.tolist(), strict=True)])
    right, answerable = first == wanted, wanted >= 0
    sure = np.array([sure_of(one, SearchSettings().confident_similarity) for one in cosine.tolist()])
    above = cosine[right][:, None] > cosine[~right]
    return {
        "right_first": round(float(right[answerable].mean()), 3),
        "auc_of_right": round(float(above.mean()), 3),
        "at_confidence": {
            f"{least:g}": {
                "answered": round(float((sure[answerable] >= least).mean()), 2),
                "right_of_those": round(float(right[sure >= least].mean()), 2),
                "unanswerable_answered": round(float((sure[~answerable] >= least).mean()), 2),
            }
            for least in CONFIDENCES
        },
    }


def _first(meaning: FloatArray, words: FloatArray, weight: float) -> int:
    having = np.where(words > 0, words, -np.inf)
    orders = [top_k(meaning, len(meaning)), top_k(having, len(meaning))]
    return int(top_k(reciprocal_rank_fusion(orders, (1.0, weight), len(meaning)), 1)[0])


if __name__ == "__main__":
    sys.exit(main())
