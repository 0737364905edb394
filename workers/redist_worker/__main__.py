"""``python -m redist_worker ADDRESS``: run a worker in the foreground."""

from redist_worker.ending import run_and_exit
from redist_worker.main import main

if __name__ == "__main__":
    run_and_exit(main)
