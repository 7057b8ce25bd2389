"""What programs call: run, connect, local."""
