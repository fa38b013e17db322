"""Pair rows and columns of a cost matrix one to one at the least total cost."""

from __future__ import annotations

import numpy as np


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve the assignment problem of a matrix [N, M]: row and column of min(N, M) pairs, rows ascending.

    The method is that of shortest augmenting paths (Jonker and Volgenant 1987), in O(min(N, M)^2 max(N, M)).

    Raises ValueError for costs that are not finite.
    """
    cost = np.asarray(cost, dtype=np.float64)
    if not np.isfinite(cost).all():
        raise ValueError("the costs of an assignment are not finite")
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    n_rows, n_columns = cost.shape
    price_of_row, price_of_column = np.zeros(n_rows), np.zeros(n_columns)
    row_of = np.full(n_columns, -1)
    for row in range(n_rows):
        _augment(row, cost, price_of_row, price_of_column, row_of)
    columns = np.flatnonzero(row_of >= 0)
    order = np.argsort(row_of[columns])
    return row_of[columns][order], columns[order]


def _augment(
    start: int, cost: np.ndarray, price_of_row: np.ndarray, price_of_column: np.ndarray, row_of: np.ndarray
) -> None:
    """Give a column to row `start`, moving other rows along the cheapest path; update prices and `row_of`."""
    n_columns = cost.shape[1]
    distance, before = np.full(n_columns, np.inf), np.full(n_columns, start)
    is_done, row, length = np.zeros(n_columns, bool), start, 0.0
    while True:
        reached = length + cost[row] - price_of_row[row] - price_of_column
        shorter = ~is_done & (reached < distance)
        distance[shorter], before[shorter] = reached[shorter], row
        column = int(np.where(is_done, np.inf, distance).argmin())
        length = distance[column]
        is_done[column] = True
        if row_of[column] < 0:
            break
        row = row_of[column]
    visited = is_done & (row_of >= 0)
    price_of_row[start] += length
    price_of_row[row_of[visited]] += length - distance[visited]
    price_of_column[is_done] -= length - distance[is_done]
    while True:
        row = before[column]
        previous = np.flatnonzero(row_of == row)
        row_of[column] = row
        if row == start:
            return
        column = int(previous[0])
