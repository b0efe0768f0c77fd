"""The shipped SDK, services and server, on a simulated event loop, disk and network."""
