"""The demo: an application that digests a text, and a driver that kills it in the middle."""
