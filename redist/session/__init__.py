"""One caller's session with the server: a sans-IO core and the drivers that run it."""
