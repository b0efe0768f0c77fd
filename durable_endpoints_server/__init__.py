"""The engine that remembers runs: a pure core, stores, and the services around them.

It imports nothing of the SDK but `durable_endpoints.protocol`, the words both sides share.
"""
