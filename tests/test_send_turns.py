"""Whose turn it is, and how many datagrams a turn has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiolb.send.turns import MIN_PIECE, Turns

sources = st.integers(1, 20)
limits = st.integers(1, 64)
rooms = st.integers(1, 300)


def play(turns, number, plan, due, taken=lambda planned: planned):
    """Send what is due by these plans; gives the pieces as (source, datagrams), and how many each source sent."""
    pieces, sent = [], [0] * number
    while due:
        planned, length = plan(due)
        assert planned >= 1
        assert 1 <= length <= due
        assert planned * length <= due
        left = taken(planned * length)
        due -= left
        source = turns.source
        while left:
            piece = min(length, left)
            pieces.append((source, piece))
            sent[source] += piece
            source, left = (source + 1) % number, left - piece
            turns.advance(piece)
    return pieces, sent


@given(sources, st.integers(0, 5000), rooms, limits)
def test_what_is_due_at_once_is_spread_evenly(number, due, room, limit):
    """Each source sends what it would have sent with turns of one datagram."""
    turns = Turns(number)
    pieces, sent = play(turns, number, lambda due: turns.plan(due, room, limit), due)
    assert sent == [len(range(source, due, number)) for source in range(number)]
    assert all(piece <= limit for _, piece in pieces)


@given(sources, st.lists(st.integers(0, 500), max_size=10), limits)
def test_no_source_gets_ahead_by_more_than_a_piece(number, dues, limit):
    """However much is due when, the sources stay together."""
    turns, total = Turns(number), [0] * number
    for due in dues:
        _, sent = play(turns, number, lambda due: turns.plan(due, 256, limit), due)
        total = [a + b for a, b in zip(total, sent, strict=True)]
        assert max(total) - min(total) <= limit
    assert sum(total) == sum(dues)


@given(sources, st.integers(0, 5000), limits, st.randoms(use_true_random=False))
def test_a_piece_that_was_cut_short_goes_on(number, due, limit, random):
    """What a full queue left of a piece goes out first, from the same source."""
    turns = Turns(number)
    _, sent = play(turns, number, lambda due: turns.plan(due, 256, limit), due, lambda n: random.randint(1, n))
    assert sent == [len(range(source, due, number)) for source in range(number)]


def test_one_at_a_time_where_little_is_due():
    """Below MIN_PIECE datagrams per source they take turns one by one."""
    turns = Turns(3)
    pieces, _ = play(turns, 3, lambda due: turns.plan(due, 256, 64), 3 * MIN_PIECE - 1)
    assert pieces == [(n % 3, 1) for n in range(3 * MIN_PIECE - 1)]
    turns = Turns(3)
    pieces, _ = play(turns, 3, lambda due: turns.plan(due, 256, 64), 3 * MIN_PIECE)
    assert pieces == [(0, MIN_PIECE), (1, MIN_PIECE), (2, MIN_PIECE)]


def test_pieces_go_round():
    """A lot is sent in pieces of the limit, one source after the other, and the rest in even pieces."""
    turns = Turns(2)
    pieces, _ = play(turns, 2, lambda due: turns.plan(due, 100, 64), 64 * 4 + 21)
    assert pieces == [(0, 64), (1, 64), (0, 64), (1, 64), (0, 10), (1, 10), (0, 1)]


def test_room_bounds_a_plan():
    """A plan has no more pieces than there is room for, but one at least."""
    turns = Turns(8)
    assert turns.plan(10**6, 256, 64) == (4, 64)
    turns.advance(256)
    assert turns.plan(10**6, 10, 64) == (1, 64)


@given(sources, st.integers(0, 3000), st.integers(1, 64))
def test_trains_of_one_length(number, due, length):
    """All trains have the length that was asked for, but the last."""
    turns = Turns(number)
    pieces, _ = play(turns, number, lambda due: turns.plan_trains(due, 300, length), due)
    full, rest = divmod(due, length)
    expected = [length] * full + [rest] * bool(rest)
    assert pieces == [(n % number, piece) for n, piece in enumerate(expected)]


def test_restart_forgets_a_short_train():
    """A new run begins with a whole train, from the source whose turn it is."""
    turns = Turns(2)
    assert turns.plan_trains(3, 256, 8) == (1, 3)
    turns.advance(3)
    assert turns.plan_trains(20, 256, 8) == (1, 5)
    turns.restart()
    assert turns.plan_trains(20, 256, 8) == (2, 8)
    assert turns.source == 0
