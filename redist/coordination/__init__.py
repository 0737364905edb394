"""What processes coordinate by, by name: locks, semaphores, events, queues, variables, topics.

The state lies with the server (``redist.store.coordination``). Objects here are handles: they may be pickled, and mean the
client that is current where they are used.
"""
