"""The only room that knows Redis: key schema, scripts, connections and the embedded server."""
