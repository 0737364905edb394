"""The lane, fed with replies by hand: what is sent, and what becomes of each call."""

from __future__ import annotations

from typing import Any

import hiredis
import msgpack
import pytest

from redist.errors import ProtocolError, ServerFull, ServerRefused
from redist.session.lane import Lane, OldGeneration, Refused
from redist.store import calls


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A lane that is registered, what it sent, and what it said."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.unregistered = 0
        self.generations: list[int] = []
        self.moved: list[str] = []
        self.answers: list[tuple[str, Any]] = []
        self.lane = Lane(
            "redist:{t}:", self.clock, self._unregistered, self.generations.append, self.moved.append
        )
        self.lane.incarnation = "i1"
        self.lane.generation = 1
        self.lane.connect()
        self.lane.register(7)

    def _unregistered(self) -> None:
        self.unregistered += 1

    def call(self, name: str, call: calls.Call | None = None) -> None:
        self.lane.enqueue(
            call or calls.fire([name]),
            lambda reply: self.answers.append((name, reply[0])),
            lambda error: self.answers.append((name, error)),
        )

    def sent(self) -> list[tuple[str, int]]:
        """Take what was sent: (what, n) each."""
        return [(what, header[3]) for what, header in self.sent_headers()]

    def sent_headers(self) -> list[tuple[str, list[Any]]]:
        reader = hiredis.Reader()
        result = []
        for data in self.lane.outgoing:
            reader.feed(data)
            command = reader.gets()
            items = msgpack.unpackb(command[4], raw=False)
            body = items[5:]
            kind = "EVAL " if command[0] == b"EVAL" else ""
            result.append((kind + (body[0] if body and isinstance(body[0], str) else ""), items[:5]))
        self.lane.outgoing.clear()
        return result

    def reply(self, *replies: Any) -> None:
        for reply in replies:
            self.lane.on_reply(reply)


OK = [b"OK", 0]
GAP0, GAP1 = [b"GAP", 0], [b"GAP", 1]


def error(text: str) -> hiredis.ReplyError:
    return hiredis.ReplyError(text)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_simple(bench: Bench) -> None:
    """Calls are numbered from 1, answered in order, and kept until then."""
    bench.call("a")
    bench.call("b")
    assert bench.sent() == [("a", 1), ("b", 2)]
    assert [entry.n for entry in bench.lane.unanswered] == [1, 2]
    bench.reply(OK)
    assert bench.answers == [("a", b"OK")]
    bench.reply([b"REPEAT", 0])
    assert bench.answers == [("a", b"OK"), ("b", b"REPEAT")]
    assert not bench.lane.unanswered
    assert not bench.lane.due


def test_header_says_what_was_answered(bench: Bench) -> None:
    bench.call("a")
    bench.call("b")
    bench.reply(OK)
    bench.call("c")
    headers = [header for _, header in bench.sent_headers()]
    assert headers == [[7, "i1", 1, 1, 0], [7, "i1", 1, 2, 0], [7, "i1", 1, 3, 1]]


def test_unnumbered_calls_take_no_number(bench: Bench) -> None:
    bench.call("r", calls.states(["x"]))
    bench.call("a")
    assert [n for _, n in bench.sent()] == [0, 1]
    bench.reply(OK, OK)
    assert [name for name, _ in bench.answers] == ["r", "a"]


def test_noscript_sends_text_once_and_goes_on_from_there(bench: Bench) -> None:
    for name in "abc":
        bench.call(name)
    bench.sent()
    bench.reply(error("NOSCRIPT No matching script."))
    assert bench.sent() == [("EVAL a", 1), ("b", 2), ("c", 3)]
    # What was pipelined behind it fails, and is not news: it has been sent again.
    bench.reply(GAP0, error("NOSCRIPT No matching script."))
    assert bench.sent() == []
    bench.reply(OK, OK, OK)
    assert [name for name, _ in bench.answers] == ["a", "b", "c"]
    assert not bench.lane.due


def test_noscript_of_an_unnumbered_call(bench: Bench) -> None:
    bench.call("r", calls.states(["x"]))
    bench.sent()
    bench.reply(error("NOSCRIPT No matching script."))
    assert bench.sent() == [("EVAL ", 0)]
    bench.reply(OK)
    assert bench.answers == [("r", b"OK")]


@pytest.mark.parametrize("code", ["BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "MISCONF"])
def test_busy_is_sent_again_after_a_while(bench: Bench, code: str) -> None:
    bench.call("a")
    bench.call("b")
    bench.call("r", calls.states(["x"]))
    bench.sent()
    bench.reply(error(f"{code} not now"), GAP0, error(f"{code} not now"))
    assert bench.sent() == []
    bench.call("c")
    assert bench.sent() == []
    assert bench.lane.deadline is not None
    bench.lane.tick(bench.clock())
    assert bench.sent() == []
    bench.clock.now += 1
    bench.lane.tick(bench.clock())
    assert bench.sent() == [("a", 1), ("b", 2), ("c", 3), ("", 0)]
    bench.reply(OK, OK, OK, OK)
    assert [name for name, _ in bench.answers] == ["a", "b", "c", "r"]


def test_back_off_grows_and_a_reply_resets_it(bench: Bench) -> None:
    bench.call("a")
    delays = []
    for _ in range(10):
        bench.reply(error("BUSY not now"))
        assert bench.lane.deadline is not None
        delays.append(bench.lane.deadline - bench.clock())
        bench.clock.now += 1
        bench.lane.tick(bench.clock())
    assert delays == sorted(delays)
    assert delays[0] < 0.01
    assert 0.2 < delays[-1] < 0.5
    bench.reply(OK)
    bench.call("b")
    bench.reply(error("BUSY not now"))
    assert bench.lane.deadline is not None
    assert bench.lane.deadline - bench.clock() < 0.01


def test_gap_goes_back_to_what_is_kept(bench: Bench) -> None:
    """A call failed alone while one behind it went through to GAP: both are sent again."""
    bench.call("a")
    bench.call("b")
    bench.sent()
    bench.reply(OK)
    bench.reply([b"GAP", 1])
    assert bench.sent() == [("b", 2)]
    assert bench.unregistered == 0


def test_gap_before_what_is_kept_means_lost_writes(bench: Bench) -> None:
    bench.call("a")
    bench.call("b")
    bench.reply(OK, OK)
    bench.call("c")
    bench.reply([b"GAP", 0])
    assert bench.unregistered == 1
    assert bench.lane.lost_writes


def test_unknown_registers_anew(bench: Bench) -> None:
    bench.call("a")
    bench.call("b")
    bench.sent()
    bench.reply([b"UNKNOWN"])
    assert bench.unregistered == 1
    assert not bench.lane.lost_writes
    kept = bench.lane.unregister("i2")
    assert [entry.n for entry in kept] == [1, 2]
    # The rest of the old incarnation's answers concerns nobody.
    bench.reply([b"UNKNOWN"])
    assert bench.unregistered == 1
    for entry in kept:
        bench.lane.enqueue(entry.call, entry.on_reply, entry.on_error)
    assert bench.sent() == []
    bench.lane.register(9)
    bench.lane.resume()
    assert [header[:4] for _, header in bench.sent_headers()] == [[9, "i2", 1, 4], [9, "i2", 1, 5]]
    bench.reply(OK, OK)
    assert [name for name, _ in bench.answers] == ["a", "b"]


def test_numbers_never_come_again(bench: Bench) -> None:
    """Those that were given out while nothing is registered were never used, whatever is enqueued anew."""
    bench.call("a")
    bench.lane.unregister("i2")
    bench.call("b")
    bench.call("c")
    assert bench.lane.n == 4
    kept = bench.lane.unregister("i3")
    assert [entry.n for entry in kept] == [3, 4]
    assert bench.lane.n == 2  # that of the registration
    bench.lane.register(7)
    bench.call("d")
    assert bench.lane.n == 3


def test_old_answers_do_not_settle_new_calls(bench: Bench) -> None:
    bench.call("a")
    kept = bench.lane.unregister("i2")
    bench.lane.register(7)
    bench.lane.enqueue(kept[0].call, kept[0].on_reply, kept[0].on_error)
    bench.reply(OK)  # to the first sending
    assert bench.answers == []
    bench.reply(OK)
    assert bench.answers == [("a", b"OK")]


def test_old_generation_is_acknowledged(bench: Bench) -> None:
    bench.call("a")
    bench.reply([b"OLD", 2])
    assert bench.generations == [2]
    assert isinstance(bench.answers[0][1], OldGeneration)
    assert not bench.lane.unanswered


def test_refusal_is_an_answer(bench: Bench) -> None:
    bench.call("a")
    bench.call("b")
    bench.reply([b"NO", b"exists", b"3"], OK)
    refused = bench.answers[0][1]
    assert isinstance(refused, Refused)
    assert (refused.code, refused.message) == ("exists", "3")
    assert bench.answers[1] == ("b", b"OK")


def test_full_server_refuses_what_grows_and_nothing_is_blocked(bench: Bench) -> None:
    bench.call("grows", calls.handoff([("t", "x")]))
    bench.call("frees", calls.ledger([("x", 0)]))
    bench.sent()
    bench.reply(error("OOM command not allowed when used memory > 'maxmemory'"))
    assert isinstance(bench.answers[0][1], ServerFull)
    headers = bench.sent_headers()
    assert [header[3] for _, header in headers] == [1, 2]
    bench.reply(GAP0)  # the release that was pipelined behind it
    bench.reply(OK, OK)
    assert [name for name, _ in bench.answers] == ["grows", "frees"]
    assert not bench.lane.unanswered


def test_full_server_gets_another_call_instead(bench: Bench) -> None:
    made: list[calls.Call] = []
    heard: list[Any] = []

    def instead() -> calls.Call:
        if not made:
            made.append(calls.noop())
            raise KeyboardInterrupt
        return calls.fire(["instead"])

    bench.lane.enqueue(calls.handoff([("t", "x")]), heard.append, heard.append, instead)
    bench.call("b")
    bench.sent()
    with pytest.raises(KeyboardInterrupt):
        bench.reply(error("OOM command not allowed"))
    bench.lane.lost()
    bench.lane.connect()
    bench.sent()
    bench.reply(error("OOM command not allowed"))
    assert bench.sent() == [("instead", 1), ("b", 2)]
    bench.reply(GAP0)
    bench.reply(OK, OK)
    assert heard == [OK]
    assert bench.answers == [("b", b"OK")]


def test_full_server_and_a_call_that_frees(bench: Bench) -> None:
    bench.call("a", calls.ledger([("x", 0)]))
    bench.sent()
    bench.reply(error("OOM command not allowed"))
    bench.clock.now += 1
    bench.lane.tick(bench.clock())
    assert [n for _, n in bench.sent()] == [1]
    bench.reply(OK)
    assert bench.answers == [("a", b"OK")]


@pytest.mark.parametrize(
    ("text", "kind"), [("NOPERM no permission", ServerRefused), ("ERR user_script:1: oops", ProtocolError)]
)
def test_broken_call_gives_its_number_to_a_noop(bench: Bench, text: str, kind: type[Exception]) -> None:
    bench.call("a")
    bench.call("b")
    bench.sent()
    bench.reply(error(text))
    assert isinstance(bench.answers[0][1], kind)
    assert bench.sent() == [("", 1), ("b", 2)]


def test_readonly_replica_asks_for_another_connection(bench: Bench) -> None:
    bench.call("a")
    bench.reply(error("READONLY You can't write against a read only replica."))
    assert len(bench.moved) == 1
    bench.lane.lost()
    bench.sent()
    bench.lane.connect()
    assert bench.sent() == [("a", 1)]


def test_lost_connection_sends_everything_again(bench: Bench) -> None:
    bench.call("a")
    bench.call("r", calls.states(["x"]))
    bench.call("b")
    bench.reply(OK)
    bench.sent()
    bench.lane.lost()
    bench.call("c")
    assert bench.sent() == []
    bench.lane.connect()
    assert bench.sent() == [("b", 2), ("c", 3), ("", 0)]
    bench.reply([b"REPEAT", 0], OK, OK)
    assert [name for name, _ in bench.answers] == ["a", "b", "c", "r"]


def test_wait_helps_and_sends_again(bench: Bench) -> None:
    bench.call("a")
    bench.call("b")
    bench.sent()
    bench.reply([b"WAIT"])
    assert [n for _, n in bench.sent()] == [0]  # continue
    bench.reply([b"WAIT"])  # of b, not news
    bench.call("c")
    assert bench.sent() == []
    bench.reply([b"OK", 1])
    assert [n for _, n in bench.sent()] == [0]  # there is more
    bench.reply(OK)
    assert bench.sent() == [("a", 1), ("b", 2), ("c", 3)]
    bench.reply(OK, OK, OK)
    assert [name for name, _ in bench.answers] == ["a", "b", "c"]


def test_who_waits_helps_a_server_that_does_not_know_the_script(bench: Bench) -> None:
    """One that was started anew in between: nothing else leaves before the help was answered."""
    bench.call("a")
    bench.sent()
    bench.reply([b"WAIT"])
    assert bench.sent() == [("", 0)]
    bench.reply(error("NOSCRIPT No matching script."))
    assert bench.sent() == [("EVAL ", 0)]
    bench.reply(OK)
    assert bench.sent() == [("a", 1)]
    bench.reply(OK)
    assert [name for name, _ in bench.answers] == ["a"]


def test_who_waits_does_not_help_for_ever(bench: Bench) -> None:
    bench.call("a")
    bench.sent()
    bench.reply([b"WAIT"])
    helped = 0
    while (sent := bench.sent()) != [("a", 1)]:
        assert [n for _, n in sent] == [0]
        helped += 1
        bench.reply([b"OK", 1])
    assert helped == 50


def test_more_is_continued_until_done(bench: Bench) -> None:
    bench.call("a")
    bench.sent()
    bench.reply([b"OK", 1])
    assert len(bench.sent()) == 1
    bench.reply([b"OK", 1])
    assert len(bench.sent()) == 1
    bench.reply([b"OK", 0])
    assert bench.sent() == []
    assert not bench.lane.due


def test_reply_that_nobody_asked_for(bench: Bench) -> None:
    with pytest.raises(ProtocolError):
        bench.reply(OK)


@pytest.mark.parametrize("moment", ["before", "in between", "inside", "behind"])
@pytest.mark.parametrize(
    ("reply", "word"), [(OK, b"OK"), ([b"NO", b"x", b"y"], Refused), ([b"OLD", 2], OldGeneration)]
)
def test_interrupted_handling_is_made_up_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: str, reply: Any, word: Any
) -> None:
    """A Ctrl-C anywhere around a callback loses nothing: what was not told is told with the loss of the connection."""
    lane = bench.lane
    answers: list[Any] = []
    strikes = [KeyboardInterrupt]

    def strike(name: str, *, first: bool) -> None:
        real = getattr(lane, name)

        def struck(*args: Any) -> None:
            if first and strikes:
                raise strikes.pop()
            real(*args)
            if strikes:
                raise strikes.pop()

        monkeypatch.setattr(lane, name, struck)

    def hear(answer: Any) -> None:
        if moment == "inside" and strikes:
            raise strikes.pop()
        answers.append(answer)

    if moment != "inside":
        strike("_tell" if moment == "behind" else "_answered", first=moment == "before")
    lane.enqueue(calls.fire(["a"]), hear, hear)
    bench.call("b")
    bench.sent()
    with pytest.raises(KeyboardInterrupt):
        bench.reply(reply)
    lane.lost()
    lane.connect()
    sent = bench.sent()
    assert sent[-1] == ("b", 2)
    for what, _ in sent:
        bench.reply(reply if what == "a" else OK)
    heard = [answer[0] if isinstance(answer, list) else type(answer) for answer in answers]
    assert heard in ([word], [word, word])
    assert bench.answers == [("b", b"OK")]
    assert not lane.unanswered
    assert not lane.due


def test_interrupted_refusal_of_a_full_server(bench: Bench) -> None:
    errors: list[BaseException] = []

    def hear(error: BaseException) -> None:
        if not errors:
            errors.append(error)
            raise KeyboardInterrupt
        errors.append(error)

    bench.lane.enqueue(calls.submit([]), None, hear)
    bench.sent()
    with pytest.raises(KeyboardInterrupt):
        bench.reply(hiredis.ReplyError("OOM no"))
    bench.lane.lost()
    bench.lane.connect()
    assert [type(error) for error in errors] == [ServerFull, ServerFull]


def test_a_callback_that_fails_is_not_told_again(bench: Bench) -> None:
    heard = []

    def fail(reply: Any) -> None:
        heard.append(reply)
        raise ValueError

    bench.lane.enqueue(calls.fire(["a"]), fail)
    bench.sent()
    with pytest.raises(ValueError):
        bench.reply(OK)
    bench.lane.lost()
    bench.lane.connect()
    assert heard == [OK]


def test_a_lost_connection_inside_a_callback_tells_once(bench: Bench) -> None:
    heard = []

    def lose(reply: Any) -> None:
        heard.append(reply)
        bench.lane.lost()

    bench.lane.enqueue(calls.fire(["a"]), lose)
    bench.sent()
    bench.reply(OK)
    bench.lane.connect()
    assert heard == [OK]


# --- calls that nobody waits for any more ---------------------------------------------------------------------------


def test_what_never_left_is_taken_off_with_its_number(bench: Bench) -> None:
    bench.lane.lost()
    bench.call("a")
    bench.call("b")
    assert not bench.lane.withdraw(bench.lane.unanswered[-1])
    bench.call("c")
    bench.lane.connect()
    assert bench.sent() == [("a", 1), ("c", 2)]


def test_what_never_left_and_others_follow_becomes_a_noop(bench: Bench) -> None:
    bench.lane.lost()
    bench.call("a")
    bench.call("b")
    assert not bench.lane.withdraw(bench.lane.unanswered[0])
    bench.lane.connect()
    assert bench.sent() == [("", 1), ("b", 2)]
    bench.reply(OK, OK)
    assert bench.answers == [("b", b"OK")]


def test_what_left_may_be_applied_and_stays(bench: Bench) -> None:
    bench.call("a")
    bench.lane.lost()
    assert bench.lane.withdraw(bench.lane.unanswered[0])
    bench.lane.connect()
    assert bench.sent()[-1] == ("a", 1)
    bench.reply([b"REPEAT", 0])
    assert bench.answers == [("a", b"REPEAT")]


@pytest.mark.parametrize("text", ["READONLY You can't write against a read only replica.", "BUSY a script"])
def test_what_was_refused_each_time_is_taken_off(bench: Bench, text: str) -> None:
    bench.call("a")
    bench.call("b")
    first, second = bench.lane.unanswered
    bench.reply(error(text))
    assert bench.lane.trouble == text
    assert not bench.lane.withdraw(second)
    assert not bench.lane.withdraw(first)
    assert bench.lane.n == 0


@pytest.mark.parametrize("text", ["READONLY You can't write against a read only replica.", "BUSY a script"])
def test_what_is_refused_after_it_was_given_up_is_taken_off(bench: Bench, text: str) -> None:
    bench.call("a")
    bench.call("b")
    first, second = bench.lane.unanswered
    assert bench.lane.withdraw(second)
    assert bench.lane.withdraw(first)
    bench.call("c")
    bench.sent()
    bench.reply(error(text), error(text), error(text))
    bench.lane.lost()
    bench.lane.connect()
    assert bench.sent() == [("", 1), ("", 2), ("c", 3)]
    bench.reply(OK, OK, OK)
    assert bench.answers == [("c", b"OK")]


def test_what_was_given_up_and_needs_its_script_is_sent_again(bench: Bench) -> None:
    """That is no refusal: it was told that it may be carried out."""
    bench.call("a")
    assert bench.lane.withdraw(bench.lane.unanswered[0])
    bench.sent()
    bench.reply(error("NOSCRIPT No matching script."))
    assert bench.sent() == [("EVAL a", 1)]


def test_what_was_given_up_and_sent_twice_stays_when_one_is_refused(bench: Bench) -> None:
    """The first may have been applied: by its number that is found out."""
    bench.call("a")
    bench.lane.lost()
    bench.lane.connect()
    assert bench.lane.withdraw(bench.lane.unanswered[0])
    bench.sent()
    bench.reply(error("READONLY"))
    bench.lane.lost()
    bench.lane.connect()
    assert bench.sent() == [("a", 1)]


def test_what_was_refused_only_after_it_left_unanswered_stays(bench: Bench) -> None:
    bench.call("a")
    bench.lane.lost()
    bench.lane.connect()
    bench.reply(error("READONLY"))
    assert bench.lane.withdraw(bench.lane.unanswered[0])


def test_what_has_to_stay_stays(bench: Bench) -> None:
    bench.lane.lost()
    bench.call("a")
    assert bench.lane.withdraw(bench.lane.unanswered[0], stays=True)
    assert [entry.n for entry in bench.lane.unanswered] == [1]


def test_a_read_that_nobody_waits_for_is_not_sent_again(bench: Bench) -> None:
    bench.call("r", calls.states(["x"]))
    bench.lane.lost()
    bench.call("s", calls.states(["x"]))
    for entry in list(bench.lane._loose):
        assert not bench.lane.withdraw(entry)
    bench.sent()
    bench.lane.connect()
    assert bench.sent() == []


def test_trouble_ends_with_the_first_call_that_is_taken(bench: Bench) -> None:
    bench.call("a")
    bench.reply(error("MISCONF no disk"))
    assert bench.lane.trouble == "MISCONF no disk"
    bench.clock.now += 1
    bench.lane.tick(bench.clock.now)
    bench.reply(OK)
    assert bench.lane.trouble == ""


def test_a_replica_that_refuses_a_heartbeat_is_left_when_it_has_refused_what_follows(bench: Bench) -> None:
    bench.call("beat", calls.client_heartbeat(0, 0, 0, 0))
    bench.call("a")
    bench.reply(error("READONLY"))
    assert isinstance(bench.answers[0][1], Exception)
    assert bench.moved == []
    bench.reply(error("READONLY"))
    assert bench.moved == ["READONLY"]
    assert not bench.lane.withdraw(bench.lane.unanswered[0])
