"""The words that the SDK and the server share: pure values, no I/O, no clock, no randomness."""
