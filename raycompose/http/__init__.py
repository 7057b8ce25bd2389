"""What the network sees: requests in, answers out."""
