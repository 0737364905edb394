"""A program for dask.distributed that runs on redist: nothing but the import differs.

    python examples/dask_program.py

Put `dask.distributed` in the place of `redist` in the next import, and Dask runs it, with the same output.
"""

from redist import Client, Lock, Queue, as_completed, wait, worker_client


def inside(points: int, seed: int) -> int:
    """Count random points of the unit square that lie in the quarter of a circle."""
    import numpy as np

    x, y = np.random.default_rng(seed).random((2, points))
    return int((x * x + y * y < 1).sum())


def add(*parts: int) -> int:
    """Add numbers."""
    return sum(parts)


def tree(numbers: list[int]) -> int:
    """Add numbers by tasks that submit tasks."""
    if len(numbers) <= 2:
        return sum(numbers)
    half = len(numbers) // 2
    with worker_client() as client:
        halves = client.map(tree, [numbers[:half], numbers[half:]], pure=False)
        return sum(client.gather(halves))


def note(name: str, text: str) -> None:
    """Put a line into a queue, one task at a time."""
    with Lock("notes"):
        Queue(name).put(text)


def main() -> None:
    """Run it all on two workers."""
    points = 200_000
    with Client(n_workers=2, threads_per_worker=1) as client:
        counts = client.map(inside, [points] * 20, range(20))
        total = client.submit(add, *counts)
        print(f"pi is about {4 * total.result() / (20 * points):.4f}")

        table = client.scatter(list(range(1000)))
        print("the sum of the numbers below 1000 is", client.submit(sum, table).result())
        print("and by tasks in tasks", client.submit(tree, list(range(100))).result(), "below 100")

        squares = client.map(pow, range(10), [2] * 10)
        done = {future.key: result for future, result in as_completed(squares, with_results=True)}
        print("squares:", *(done[future.key] for future in squares))

        failed = client.submit(divmod, 1, 0)
        wait(failed)
        print("one task failed:", type(failed.exception()).__name__)

        client.publish_dataset(counts=counts)
        print("published:", *client.list_datasets())
        client.unpublish_dataset("counts")

        wait(client.map(note, ["notes"] * 3, ["a", "b", "c"]))
        notes = Queue("notes")
        print("notes:", *sorted(notes.get(timeout=10) for _ in range(3)))


if __name__ == "__main__":
    main()
