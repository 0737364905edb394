"""Payload memory: segments of shared memory on one host, and their transfer between hosts.

Knows files, sockets and bytes; knows nothing of Redis, of pickles or of Futures. Read `headers` first (what a segment
looks like), then `writer` and `reader` (its two ends), `directory` (who owns it), `broker` (how processes of the host
ask the owner), and `data_server`, `data_client`, `fetcher` (how other hosts do). What clients say on sockets is worked out
without I/O in `broker_conversation` and `data_exchange`; blocking and asyncio clients move the bytes.
"""
