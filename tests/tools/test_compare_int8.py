"""Rankings are compared by the usual measures."""

from __future__ import annotations

import numpy as np
import pytest

from tools.compare_int8_embeddings import cosines, golden_texts, ranking_errors

# Texts on a circle: the nearest to text 0 are 1, 2, 3, … in this order.
ANGLES = np.arange(6) ** 1.5 / 10


def on_a_circle(angles: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_equal_vectors_rank_equally() -> None:
    vectors = on_a_circle(ANGLES)
    same = ranking_errors(vectors, vectors, n_queries=3, n_nearest=2, k=4)
    for figures in (same.overlap, same.nearest, same.spearman, same.kendall):
        assert figures.tolist() == [1.0, 1.0, 1.0]


def test_two_neighbours_that_change_places_count_as_one_pair_of_six() -> None:
    swapped = ANGLES.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    found = ranking_errors(on_a_circle(swapped), on_a_circle(ANGLES), n_queries=1, n_nearest=1, k=4)
    assert (found.overlap.tolist(), found.nearest.tolist()) == ([0.0], [0.0])
    assert found.kendall[0] == pytest.approx(1 - 2 / 6)
    assert found.spearman[0] == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_a_reversed_order_has_both_coefficients_at_minus_one() -> None:
    reversed_ = np.concatenate([ANGLES[:1], ANGLES[:0:-1]])
    found = ranking_errors(
        on_a_circle(reversed_), on_a_circle(ANGLES), n_queries=1, n_nearest=5, k=5
    )
    assert found.overlap.tolist() == [1.0]
    assert (found.spearman[0], found.kendall[0]) == pytest.approx((-1.0, -1.0))


def test_the_cosine_is_of_rows_with_the_same_number() -> None:
    a, b = on_a_circle(np.array([0.0, 0.0])), on_a_circle(np.array([0.0, np.pi / 3]))
    np.testing.assert_allclose(cosines(a, b), [1.0, 0.5])


def test_the_golden_texts_are_those_of_the_published_file() -> None:
    assert len(golden_texts()) == 20
