"""What looks at a namespace from outside: invariants, and what people ask of it."""
