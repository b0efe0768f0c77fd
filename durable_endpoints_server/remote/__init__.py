"""Processes of our SDK at the far end of a wire: who is connected, and what each executes."""
