"""Compiled loops that compare candidates with a context's items, by vectors and by the words of their texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.vector_kernels import dot_pair

NEAR_ITEMS, NEAR_TEXTS = 5, 3  # newest items of a maximum over near ones
TEXTS = 10  # newest items whose texts are compared
SHARPNESS = np.float32(8)  # a cosine lower by 1 / 8 reduces an item's weight to 1 / e
WORD_DECAY = np.float32(0.8)  # weight of an item's words over that of the next newer item's
_SLOTS = 512  # of the table of a context's words, more than twice as many as there can be words


@compiled
def gathered(table: Any, places: Any) -> Any:
    """Return vectors [places, dim] of a table, padded with zeros to a multiple of four, as `dot_pair` takes them."""
    vectors = np.zeros(((len(places) + 3) // 4 * 4, table.shape[1]), np.float32)
    for index in range(len(places)):
        vectors[index] = table[places[index]]
    return vectors


@compiled
def maximum(values: Any, count: int) -> Any:
    """Return the largest of the first `count` values; there must be one."""
    largest = values[0]
    for index in range(1, min(count, len(values))):
        largest = max(largest, values[index])
    return largest


@compiled
def vector_features(context: Any, candidates: Any, out: Any) -> None:
    """Write the similarities of candidates to the context's items to `out`.

    Args:
        context: places of the items that stand for the context in a table of vectors in the query role; place of the
            second newest item there, -1 without one; the table [.., dim]; rows of the items; unit text vectors
            [all items, dim].
        candidates: places of the candidates in a table of vectors in the candidate role; the table [.., dim]; rows.
        out: [8, candidates] zeros to fill: largest cosine, the same of near items, attention, cosine with the second
            newest item, mean cosine; cosine of the texts with the last item, largest, the same of near items.
    """
    places, second, query_table, newest, text_table = context
    candidate_places, candidate_table, rows = candidates
    count = len(places)
    if count == 0:
        return
    compared = np.empty(count + 1, np.int64)
    compared[:count], compared[count] = places, max(second, 0)
    vectors = gathered(query_table, compared)
    texts = gathered(text_table, newest[:TEXTS])
    cosines, text_cosines = np.empty((2, len(vectors)), np.float32), np.empty((2, len(texts)), np.float32)
    for start in range(0, len(rows), 2):
        end = min(start + 2, len(rows))
        left, right = candidate_places[start], candidate_places[end - 1]
        dot_pair(vectors, candidate_table[left], candidate_table[right], cosines)
        dot_pair(texts, text_table[rows[start]], text_table[rows[end - 1]], text_cosines)
        for member in range(end - start):
            column, cosine, text_cosine = start + member, cosines[member, :count], text_cosines[member]
            weighted, weights, total = np.float32(0), np.float32(0), np.float32(0)
            for value in cosine:
                weight = np.exp(SHARPNESS * (value - np.float32(1)))
                weighted += weight * value
                weights += weight
                total += value
            out[0, column] = maximum(cosine, count)
            out[1, column] = maximum(cosine, NEAR_ITEMS)
            out[2, column] = weighted / weights
            if second >= 0:
                out[3, column] = cosines[member, count]
            out[4, column] = total / np.float32(count)
            compared_texts = text_cosine[: min(count, TEXTS)]
            out[5, column] = compared_texts[0]
            out[6, column] = maximum(compared_texts, TEXTS)
            out[7, column] = maximum(compared_texts, NEAR_TEXTS)


@compiled
def words_of_context(newest: Any, words: Any, squared_idf: Any) -> Any:
    """Return the words of some items as a hash table with linear probing, and the norms of the items' words.

    Args:
        newest: [items] rows of at most `TEXTS` items.
        words: [all items, words] ids of each item's words, -1 for padding.
        squared_idf: [word ids] squared inverse document frequency.

    Returns:
        ids [512] of words, -1 for empty slots; for each slot the bits of the items with the word; norms [items].
    """
    keys, bits, norms = np.full(_SLOTS, -1, np.int32), np.zeros(_SLOTS, np.int32), np.zeros(len(newest), np.float32)
    for place in range(len(newest)):
        for word in words[newest[place]]:
            if word < 0:
                break
            slot = word % _SLOTS
            while keys[slot] >= 0 and keys[slot] != word:
                slot = (slot + 1) % _SLOTS
            keys[slot] = word
            bits[slot] |= 1 << place
            norms[place] += squared_idf[word]
    return keys, bits, np.sqrt(norms)


@compiled
def word_features(newest: Any, words: Any, squared_idf: Any, rows: Any, out: Any) -> None:
    """Write the cosines of the texts' words, weighted by inverse document frequency, to `out`.

    Args:
        newest: [items] rows of the items that stand for the context, newest first.
        words: [all items, words] ids of each item's words, -1 for padding.
        squared_idf: [word ids] squared inverse document frequency.
        rows: [candidates] rows of the candidates.
        out: [4, candidates] zeros to fill: cosine with the last item, largest of near items, largest, weighted mean.
    """
    newest = newest[:TEXTS]
    if len(newest) == 0:
        return
    keys, bits, norms = words_of_context(newest, words, squared_idf)
    shared = np.empty(len(newest), np.float32)
    for candidate in range(len(rows)):
        shared[:] = np.float32(0)
        norm, any_shared = np.float32(0), False
        for word in words[rows[candidate]]:
            if word < 0:
                break
            norm += squared_idf[word]
            slot = word % _SLOTS
            while keys[slot] >= 0 and keys[slot] != word:
                slot = (slot + 1) % _SLOTS
            if keys[slot] == word:
                any_shared = True
                for place in range(len(newest)):
                    if bits[slot] >> place & 1:
                        shared[place] += squared_idf[word]
        if not any_shared:
            continue
        norm = np.sqrt(norm)
        weight, weights = np.float32(1), np.float32(0)
        for place in range(len(newest)):
            product = norm * norms[place]
            cosine = shared[place] / product if product > 0 else np.float32(0)
            if place == 0:
                out[0, candidate] = cosine
            if place < NEAR_TEXTS:
                out[1, candidate] = max(out[1, candidate], cosine)
            out[2, candidate] = max(out[2, candidate], cosine)
            out[3, candidate] += weight * cosine
            weights += weight
            weight *= WORD_DECAY
        out[3, candidate] /= weights
