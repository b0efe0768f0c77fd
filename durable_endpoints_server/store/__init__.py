"""Stores: atomic, conditional writes of facts, and the few reads the services need."""
