"""The small parts of a worker: marks, pace, deadline, output."""

import io
import os
import sys
import threading
import time

from redist_worker.deadline import Deadline
from redist_worker.marks import SLOTS, Marks
from redist_worker.output import STDERR, STDOUT, Output, Tee
from redist_worker.pace import LARGEST_BATCH, Pace


def test_marks_say_what_runs_to_whoever_maps_the_file(tmp_path):
    path = str(tmp_path / "marks")
    marks, seen = Marks(path), Marks(path)
    assert seen.ordinal == 0
    marks.ordinal = 7
    first, second = marks.take_slot(), marks.take_slot()
    marks.set(first, 4711)
    marks.set(second, 2**60)
    assert seen.ordinal == 7
    assert sorted(attempt for attempt, _ in seen.running()) == [4711, 2**60]
    assert all(0 <= seconds < 60 for _, seconds in seen.running())
    marks.clear(first)
    marks.give_slot(second)
    assert seen.running() == []
    marks.close()
    seen.close(remove=True)
    assert os.listdir(tmp_path) == []


def test_marks_have_room_for_any_number_of_threads(tmp_path):
    marks = Marks(str(tmp_path / "marks"))
    slots = [marks.take_slot() for _ in range(SLOTS + 3)]
    assert len(set(slots[:SLOTS])) == SLOTS
    marks.set(slots[-1], 5)  # one too many: unmarked
    assert marks.running() == []
    for slot in slots:
        marks.give_slot(slot)
    marks.close()


def test_pace_learns_which_functions_are_quick():
    pace = Pace()
    assert pace.want == 1
    assert pace.quick == ()
    pace.note("f", 0.00001, 1, inline=True)
    assert pace.quick == ("f",)
    assert pace.want == LARGEST_BATCH
    pace.note("g", 0.0005, 1, inline=True)
    assert set(pace.quick) == {"f", "g"}
    assert pace.want == 10
    pace.note("h", 1.0, 1, inline=True)
    assert "h" not in pace.quick
    for _ in range(20):
        pace.note("f", 0.002, 1, inline=True)
    assert pace.quick == ("g",)


def test_pace_takes_segments_one_at_a_time():
    pace = Pace()
    pace.note("f", 0.00001, 1, inline=False)
    assert pace.quick == ()


def test_pace_forgets_old_functions():
    pace = Pace()
    for i in range(20_100):
        pace.note(f"f{i}", 0.00001, 1, inline=True)
    assert len(pace.quick) <= 32
    assert len(pace._means) <= 10_001


def test_deadline_passes_only_when_it_is_not_put_off():
    deadline = Deadline(0.2)
    passed = threading.Event()
    thread = threading.Thread(target=lambda: (deadline.wait(), passed.set()), daemon=True)
    thread.start()
    begun = time.monotonic()
    for _ in range(10):
        deadline.arm()
        time.sleep(0.05)
    assert not passed.is_set()
    assert passed.wait(5)
    assert time.monotonic() - begun > 0.6
    deadline.expire()
    deadline.wait()
    thread.join()
    deadline.close()


def test_output_goes_to_both_in_batches():
    sent = []
    output = Output(lambda stream, text: sent.append((stream, text)))
    out, err = io.StringIO(), io.StringIO()
    tee_out, tee_err = Tee(out, STDOUT, output), Tee(err, STDERR, output)
    print("one", file=tee_out)
    print("two", 2, file=tee_out)
    print("bad", file=tee_err)
    print("three", file=tee_out)
    assert output.waiting
    assert sent == []
    output.flush()
    assert sent == [(STDOUT, b"one\ntwo 2\n"), (STDERR, b"bad\n"), (STDOUT, b"three\n")]
    assert out.getvalue() == "one\ntwo 2\nthree\n"
    assert not output.waiting
    print("x" * 20_000, file=tee_out)
    assert sum(len(text) for _, text in sent) > 20_000


def test_output_goes_to_clients_only_where_they_print_it_to_the_same_terminal():
    sent = []
    output = Output(lambda stream, text: sent.append(text), echo=False)
    out = io.StringIO()
    print("one", file=Tee(out, STDOUT, output, echo=False))
    output.flush()
    assert sent == [b"one\n"]
    assert out.getvalue() == ""


def test_output_survives_a_sender_that_fails_and_a_closed_stream():
    def fail(stream, text):
        raise ConnectionResetError

    output = Output(fail)
    stream = io.StringIO()
    tee = Tee(stream, STDOUT, output)
    stream.close()
    tee.write("hello")
    tee.flush()
    output.flush()
    assert not output.waiting


def test_output_takes_the_place_of_the_standard_streams(monkeypatch):
    sent = []
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    output = Output(lambda stream, text: sent.append((stream, text)))
    output.install()
    print("to stdout")
    print("to stderr", file=sys.stderr)
    output.flush()
    assert sent == [(STDOUT, b"to stdout\n"), (STDERR, b"to stderr\n")]
