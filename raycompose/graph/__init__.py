"""One request's way through a graph."""
