"""Document search: upload, ask, and read the answer as it is written, with its sources."""
