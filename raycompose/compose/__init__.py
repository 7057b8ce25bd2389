"""Python objects become a graph, and a graph a Ray Serve application."""
