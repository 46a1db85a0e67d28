"""Scenario `help-answers`: the share of questions that get the right help answer, and detection of unanswerable ones.

help_questions.json has 24 answers of a shop, two questions for each, and 40 questions that none of them answers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Measurement
from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.catalogue import item_text
from peft_adapters.ranking.lexical import LexicalIndex
from peft_adapters.ranking.retrieval import reciprocal_rank_fusion, top_k
from peft_adapters.settings import EncoderSettings
from services.scorer.search import confidence_of
from services.settings.search import SearchSettings

QUESTIONS = Path(__file__).with_name("help_questions.json")
WORD_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
CONFIDENCES = (0.4, 0.5, 0.6)

Ints = npt.NDArray[np.int64]


def run(_data: Path) -> Measurement:
    """Search the answers for each question with the frozen default encoder."""
    torch.set_num_threads(1)
    content = json.loads(QUESTIONS.read_text())
    answers = content["answers"]
    texts = [item_text(title=answer["title"], description=answer["description"]) for answer in answers]
    questions = [(question, row) for row, answer in enumerate(answers) for question in answer["asked"]]
    questions += [(question, -1) for question in content["unanswered"]]
    encoder = Encoder(EncoderSettings(cache_dir=None))
    suffix, encode_query, index = encoder.merged(), QueryEncoder(encoder), LexicalIndex(texts)
    vectors = torch.nn.functional.normalize(suffix(encoder.prefix(texts)), dim=1)
    similarities = [(vectors @ encode_query(question, suffix)).numpy() for question, _ in questions]
    words = [index.scores(question) for question, _ in questions]
    right = np.array([row for _, row in questions])
    figures: dict[str, float | None] = {}
    for weight in WORD_WEIGHTS:
        for name, value in _figures(similarities, words, right, weight).items():
            figures[f"words_{weight:g}_{name}"] = value
    return Measurement(
        unit="of the answerable questions get the right answer first, by meaning alone",
        value=float(figures["words_0_right_first_ratio"] or 0.0),
        target=None,
        settings={
            "answers": len(answers),
            "questions": len(questions),
            "unanswerable": len(content["unanswered"]),
            "word_weights": list(WORD_WEIGHTS),
            "confidences": list(CONFIDENCES),
        },
        rounds=[figures],
    )


def _figures(
    similarities: list[FloatArray], words: list[FloatArray], right: Ints, weight: float
) -> dict[str, float | None]:
    """Return the figures of fusing both orders with a weight on words; the meaning always weighs 1.

    Args:
        similarities: cosines of each question with every answer.
        words: lexical scores of each question with every answer.
        right: [questions] the row of the right answer, or -1 where there is none.
        weight: the weight of the order by words.
    """
    pairs = list(zip(similarities, words, strict=True))
    first = np.array([_first(similarity, lexical, weight) for similarity, lexical in pairs])
    cosine = np.array([similarity[row] for similarity, row in zip(similarities, first.tolist(), strict=True)])
    correct, answerable = first == right, right >= 0
    confidence = np.array([confidence_of(value, SearchSettings().confident_similarity) for value in cosine.tolist()])
    above = cosine[correct][:, None] > cosine[~correct]
    figures: dict[str, float | None] = {
        "right_first_ratio": float(correct[answerable].mean()),
        "auc_of_right": float(above.mean()),
    }
    for least in CONFIDENCES:
        figures[f"answered_at_{least:g}"] = float((confidence[answerable] >= least).mean())
        figures[f"right_at_{least:g}"] = float(correct[confidence >= least].mean())
        figures[f"unanswerable_answered_at_{least:g}"] = float((confidence[~answerable] >= least).mean())
    return figures


def _first(similarity: FloatArray, lexical: FloatArray, weight: float) -> int:
    matching = np.where(lexical > 0, lexical, -np.inf)
    orders = [top_k(similarity, len(similarity)), top_k(matching, len(similarity))]
    return int(top_k(reciprocal_rank_fusion(orders, (1.0, weight), len(similarity)), 1)[0])
