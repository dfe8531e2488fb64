"""The strong player of connect four: alpha-beta over bitboards, exact wherever it sees the end of the game.

A board is two whole numbers, the cells of whoever is to move and all cells that are taken. Cell (row r, column c) is
bit c (rows + 1) + r, with row 0 at the bottom; the row above the top stays empty, so that no line runs over an edge.

5x4 is solved from its first move in a second. 7x6 is not: measured once beside a perfect solver (BitBully 0.0.79), on
120 positions of eight stones or more from games with mistakes, moves at depth 8 keep the game's outcome in 113, at a
mean of 0.02 CPU seconds each, and in the 34 with 20 free cells or fewer the best moves are the solver's.
"""

from __future__ import annotations

from itertools import product

WIN = 1_000  # no estimate of an open position comes near it
MOST_STORED = 1_000_000  # positions that are remembered, some 200 bytes each


class Search:
    """Looks so many plies ahead, and to the end of the game once few cells are left.

    The value of a position, to whoever is to move, is WIN plus the number of free cells when the game is won at the
    next move, as many less as it takes longer; the negative of that when it is lost; 0 when it is a draw. These are
    proved whatever the depth, and quick wins are better than late ones. What is neither seen to be won nor lost is
    valued by open threats and central stones. A value depends on the position and the depth alone, and not on what was
    searched before: stored bounds are those of one position at one depth.
    """

    def __init__(self, columns: int, rows: int, *, depth: int, endgame: int) -> None:
        """
        Args:
            depth: plies, at least 1.
            endgame: with so many free cells, or fewer, the search goes to the end: its values are perfect play's.
        """
        self.columns, self.rows, self.depth, self.endgame = columns, rows, depth, endgame
        self._column = rows + 1
        self._bottom = sum(1 << c * self._column for c in range(columns))
        self._board = self._bottom * ((1 << rows) - 1)
        from_centre = sorted(range(columns), key=lambda c: abs(2 * c - columns + 1))
        self._order = [(((1 << rows) - 1) << c * self._column, c) for c in from_centre]
        self._centres = _centres(columns, rows)
        self._bounds: dict[int, tuple[int, int]] = {}
        self._best: dict[tuple[int, int], tuple[int, ...]] = {}

    def best(self, own: int, taken: int) -> tuple[int, ...]:
        """The columns of the best moves, in a position that is no end."""
        if (found := self._best.get((own, taken))) is None:
            if len(self._best) >= MOST_STORED:
                self._best.clear()
            found = self._best[own, taken] = self._search_best(own, taken)
        return found

    def value(self, own: int, taken: int) -> int:
        """Of a position that is no end, or of a full board."""
        left, plies = self._ahead(taken)
        return self._value(own, taken, left, plies, -2 * WIN, 2 * WIN)

    def _search_best(self, own: int, taken: int) -> tuple[int, ...]:
        left, plies = self._ahead(taken)
        moves, other = (taken + self._bottom) & self._board, own ^ taken
        best, chosen = -2 * WIN, list[int]()
        wins = self._wins(own, taken) & moves
        if wins:
            return tuple(column for cells, column in self._order if cells & wins)
        for cells, column in self._order:
            if move := cells & moves:
                # The window begins one below the best so far, so that an equal value is told from a smaller one.
                value = -self._value(other, taken | move, left - 1, plies - 1, -2 * WIN, 1 - best)
                if value > best:
                    best, chosen = value, []
                if value == best:
                    chosen.append(column)
        return tuple(chosen)

    def _ahead(self, taken: int) -> tuple[int, int]:
        """(free cells, plies to look ahead)."""
        left = self.columns * self.rows - taken.bit_count()
        return left, left if left <= self.endgame else min(self.depth, left)

    def _value(self, own: int, taken: int, left: int, plies: int, low: int, high: int) -> int:
        """Exact between `low` and `high`, else a bound on that side."""
        moves = (taken + self._bottom) & self._board
        if self._wins(own, taken) & moves:
            return WIN + left
        other = own ^ taken
        threats = self._wins(other, taken)
        if forced := threats & moves:
            moves = forced if not forced & (forced - 1) else 0  # one threat is to be met, two cannot be
        safe = moves & ~(threats >> 1)  # not below a cell that the other wins with
        if not safe:
            return 1 - WIN - left if left else 0
        if left <= 2:
            return 0
        if plies <= 0:
            return self._estimate(own, other, taken, threats)
        high = min(high, WIN + left - 2)  # no win comes before the move after the next
        if low >= high:
            return high
        return self._stored(own, taken, left, plies, safe, low, high)

    def _stored(self, own: int, taken: int, left: int, plies: int, moves: int, low: int, high: int) -> int:
        """`_best_of`, with the bounds that were found before."""
        key = (own + taken) << 6 | plies
        least, most = self._bounds.get(key, (-2 * WIN, 2 * WIN))
        low, high = max(low, least), min(high, most)
        if low >= high:
            return least if least >= high else most
        best = self._best_of(own, taken, left, plies, moves, low, high)
        if len(self._bounds) >= MOST_STORED:
            self._bounds.clear()
        self._bounds[key] = (best if best > low else least, best if best < high else most)
        return best

    def _best_of(self, own: int, taken: int, left: int, plies: int, moves: int, low: int, high: int) -> int:
        best, other = -2 * WIN, own ^ taken
        for move in self._in_order(own, taken, moves, plies):
            value = -self._value(other, taken | move, left - 1, plies - 1, -high, -max(low, best))
            if value > best:
                best = value
                if best >= high:
                    break
        return best

    def _in_order(self, own: int, taken: int, moves: int, plies: int) -> list[int]:
        """From the centre; what makes more threats first, where enough follows for that to pay."""
        cells = [move for column, _ in self._order if (move := column & moves)]
        if plies > 2 and len(cells) > 1:
            cells.sort(key=lambda move: -self._wins(own | move, taken | move).bit_count())
        return cells

    def _wins(self, stones: int, taken: int) -> int:
        """The free cells that complete four in a row of `stones`."""
        found = stones << 1 & stones << 2 & stones << 3
        for step in (self._column - 1, self._column, self._column + 1):
            below, above = stones << step, stones >> step
            pair = below & stones << 2 * step
            found |= pair & (stones << 3 * step | above)
            pair = above & stones >> 2 * step
            found |= pair & (stones >> 3 * step | below)
        return found & (self._board ^ taken)

    def _estimate(self, own: int, other: int, taken: int, threats: int) -> int:
        value = 3 * (self._wins(own, taken).bit_count() - threats.bit_count())
        for cells in self._centres:
            value += (own & cells).bit_count() - (other & cells).bit_count()
        return value


def _centres(columns: int, rows: int) -> list[int]:
    """Cells that at least a quarter, a half and three quarters of the most lines of four run through."""
    through: dict[int, int] = {}
    for row, column, (up, right) in product(range(rows), range(columns), ((0, 1), (1, 0), (1, 1), (1, -1))):
        line = [(row + i * up, column + i * right) for i in range(4)]
        if all(0 <= r < rows and 0 <= c < columns for r, c in line):
            for r, c in line:
                through[c * (rows + 1) + r] = through.get(c * (rows + 1) + r, 0) + 1
    most = max(through.values())
    return [sum(1 << bit for bit, number in through.items() if 4 * number >= share * most) for share in (1, 2, 3)]
