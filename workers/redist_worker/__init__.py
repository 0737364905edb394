"""Worker and executor processes of redist.

A worker owns the payloads of its host and answers for its executors; executors take tasks from the server themselves and
run them. Read `main` first (how the processes come to be), then `worker`, and `executor` with `runner` beside it.

Knows `redist`, which never knows this package.
"""
