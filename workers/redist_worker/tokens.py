"""Tokens: the right to start, or to give to somebody else, what a thread holds and has not started.

A thread that has a batch puts a token for each task but the first into its pipe, which executor and worker share. Who
starts a task, or takes the rest of the batch away, first takes tokens out; so each task is started or returned once, even if
the executor's threads cannot run because a task holds the GIL. A token is the task's attempt, 8 bytes; who takes tasks away
takes all tokens that there are. The last in the pipe is no task's: while it is there its batch is not over.
"""

from __future__ import annotations

import os
import struct

__all__ = ["Tokens", "token_pipes"]

_SIZE = 8
#: Larger than any batch, and less than a pipe writes at once.
_MOST = 256 * _SIZE
#: So many threads of an executor have a pipe; batches of further ones are not taken back by the worker.
_MOST_PIPES = 64


def token_pipes(threads: int) -> list[tuple[int, int]]:
    """Return pipes, each as reading and writing descriptor, for the first threads of an executor."""
    return [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(min(threads, _MOST_PIPES))]


class Tokens:
    """The tokens of one thread.

    Parameters
    ----------
    reading, writing : int
        The pipe; the worker only reads.
    """

    __slots__ = ("reading", "writing")

    def __init__(self, reading: int, writing: int = -1) -> None:
        self.reading = reading
        self.writing = writing

    def put(self, attempts: list[int]) -> None:
        """Put tokens for these attempts, of a batch that begins."""
        os.write(self.writing, struct.pack(f"={len(attempts) + 1}Q", *attempts, 0))

    def take_one(self) -> bool:
        """Take the next token; False if somebody else took the rest."""
        try:
            return os.read(self.reading, _SIZE) != b""
        except BlockingIOError:
            return False

    def take_all(self) -> list[int]:
        """Take all tokens, and return the attempts; with them the batch is over."""
        try:
            data = os.read(self.reading, _MOST)
        except BlockingIOError:
            return []
        return [attempt for attempt in struct.unpack(f"={len(data) // _SIZE}Q", data) if attempt]

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.reading, self.writing):
            if fd >= 0:
                os.close(fd)
        self.reading = self.writing = -1
