"""Payload memory: segments of shared memory on one host, and their transfer between hosts.

Knows files, sockets and bytes; knows nothing of Redis, of pickles or of Futures. Read `headers` first (what a segment
looks like), then `writer` and `reader` (its two ends), `directory` (who owns it), `broker` (how processes of the host
ask the owner), `pool` (files that are written again), `arena` (small payloads that share files), and `data_server`,
`data_client`, `fetcher` (how other hosts do). Clients block; whoever has a loop calls them in a thread, where large values
are copied without the interpreter's lock.
"""
