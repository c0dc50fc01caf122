import multiprocessing
import os
import signal
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.cache import FILE, RequestCache, key
from tasks.core.errors import StoreError


def keys(count):
    return [key("k", i) for i in range(count)]


def test_what_was_put_is_found_by_another(tmp_path):
    answers = {k: ["é\ud83d", i, None, 0.1 * i] for i, k in enumerate(keys(1200))}
    RequestCache(tmp_path).put(answers)
    assert RequestCache(tmp_path).get([*keys(1200), key("other")]) == answers


def test_without_a_folder_nothing_is_kept():
    cache = RequestCache(None)
    cache.put({keys(1)[0]: 1})
    assert cache.get(keys(1)) == {}


@given(st.lists(st.one_of(st.text(), st.integers(), st.floats(allow_nan=False)), max_size=4), st.data())
def test_different_parts_different_keys(parts, data):
    other = data.draw(st.permutations(parts))
    assert (key(*parts) == key(*other)) == (repr(parts) == repr(other))
    assert key("a", "bc") != key("ab", "c")


@pytest.mark.parametrize("content", [b"no database at all", b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_damaged_file_is_set_aside_with_a_warning(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    cache = RequestCache(tmp_path)
    with pytest.warns(UserWarning, match="set aside"):
        assert cache.get(keys(2)) == {}
    cache.put({keys(1)[0]: 1})
    assert cache.get(keys(2)) == {keys(1)[0]: 1}
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == content


def test_pages_overwritten_after_the_header_are_noticed(tmp_path):
    cache = RequestCache(tmp_path)
    cache.put(dict.fromkeys(keys(2000), "x" * 100))
    cache.close()
    raw = bytearray((tmp_path / FILE).read_bytes())
    raw[8192:] = b"\xa5" * (len(raw) - 8192)
    (tmp_path / FILE).write_bytes(raw)
    with pytest.warns(UserWarning, match="set aside"):
        assert RequestCache(tmp_path).get(keys(2000)) == {}


def test_a_value_with_a_flipped_bit_counts_as_unknown(tmp_path):
    cache = RequestCache(tmp_path)
    cache.put(dict.fromkeys(keys(2), "Answer: 8"))
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE answers SET value = ? WHERE key = ?", (b'"Answer: 9"', keys(1)[0]))
    assert cache.get(keys(2)) == {keys(2)[1]: "Answer: 8"}


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    cache = RequestCache(tmp_path)
    cache.put({keys(1)[0]: 1})
    cache._connection.execute("PRAGMA max_page_count = 4")  # SQLite's own way to run out of room
    with pytest.raises(StoreError, match=r"full.*free some disk space"):
        cache.put(dict.fromkeys(keys(100), "x" * 1000))
    assert RequestCache(tmp_path).get(keys(100)) == {keys(1)[0]: 1}


def _writer(folder, who):
    cache = RequestCache(folder)
    for batch in range(20):
        cache.put({key(who, batch, i): [who, batch, i] for i in range(10)})


def test_several_processes_write_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_writer, args=(tmp_path, who)) for who in range(4)]
    [w.start() for w in writers]
    [w.join() for w in writers]
    wanted = [key(who, batch, i) for who in range(4) for batch in range(20) for i in range(10)]
    assert len(RequestCache(tmp_path).get(wanted)) == 800


def test_a_kill_leaves_whole_batches(tmp_path):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        for batch in range(10_000):
            RequestCache(tmp_path).put({key(batch, i): i for i in range(10)})
            os.write(told, b".")
    os.read(ready, 5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = RequestCache(tmp_path).get([key(batch, i) for batch in range(200) for i in range(10)])
    assert len(found) >= 10
    assert len(found) % 10 == 0


# Progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("tasks.core.cache.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def answer(cache, clock, seconds, ids):
    clock.now += seconds
    cache.put(dict.fromkeys(ids, "x"))


def test_a_log_gets_a_line_now_and_then_and_the_last_count(tmp_path, clock, capsys):
    cache, ids = RequestCache(tmp_path), keys(2000)
    cache.get(ids)
    answer(cache, clock, 6, ids[:500])
    answer(cache, clock, 6, ids[500:1000])
    answer(cache, clock, 6, ids[1000:])
    cache.close()
    assert capsys.readouterr().err.splitlines() == [
        "1,000 of 2,000 requests answered, 12 s",
        "2,000 of 2,000 requests answered, 18 s",
    ]


def test_known_answers_count_and_a_short_wait_is_not_worth_a_line(tmp_path, clock, capsys):
    cache, ids = RequestCache(tmp_path), keys(30)
    cache.put(dict.fromkeys(ids[:20], "x"))
    cache.close()
    clock.now += 1000  # between two stages, where nobody waits for an answer
    again = RequestCache(tmp_path)
    again.get(ids)
    answer(again, clock, 9, ids[20:])
    again.get(ids)
    again.close()
    assert capsys.readouterr().err == ""
    cache = RequestCache(None)  # keeps nothing, and tells all the same
    cache.get(ids)
    answer(cache, clock, 11, ids[:10])
    assert capsys.readouterr().err == "10 of 30 requests answered, 11 s\n"


def test_time_that_passes_with_nothing_asked_is_no_wait(tmp_path, clock, capsys):
    cache, ids = RequestCache(tmp_path), keys(4)
    cache.get(ids[:2])
    answer(cache, clock, 5, ids[:2])
    clock.now += 100
    cache.get(ids[2:])
    answer(cache, clock, 5, ids[2:])
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_goes_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tasks.core.cache.BAR_AFTER", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.__stderr__", sys.stderr)
    cache, ids = RequestCache(tmp_path), keys(10)
    cache.get(ids)
    cache.put(dict.fromkeys(ids[:5], "x"))
    cache._progress._bar.refresh()
    cache.close()
    drawn = capsys.readouterr().err
    assert "5/10" in drawn
    assert drawn.rsplit("\r", 2)[-1].strip() == ""


def test_nothing_is_drawn_into_what_another_draws(tmp_path, monkeypatch, clock, capsys):
    monkeypatch.setattr("tasks.core.cache.BAR_AFTER", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    cache, ids = RequestCache(tmp_path), keys(10)
    cache.get(ids)
    answer(cache, clock, 60, ids)
    cache.close()
    assert capsys.readouterr().err == ""


def test_who_opens_it_at_once_waits(tmp_path):
    """SQLite calls a file busy at once, whatever its time-out, while another makes it or closes it as the last one."""
    together = Barrier(4)

    def stored(n):
        for attempt in range(200):
            together.wait()
            cache = RequestCache(tmp_path / str(attempt))
            cache.put({bytes([n]): n})
            cache.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(stored, range(4)))
    assert RequestCache(tmp_path / "7").get([bytes([n]) for n in range(4)]) == {bytes([n]): n for n in range(4)}
