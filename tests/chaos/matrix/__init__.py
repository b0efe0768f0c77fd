"""The crash matrix: real processes, killed and stopped at every boundary, on broken connections.

A *round* lets two client processes do the same jobs against an application (embedded, or two
replicas of it with a server). Meanwhile a *fault* happens: a process kills or stops itself at its
n-th crossing of a *boundary*, or a proxy breaks a connection. What died is started again, what
stopped goes on, and then everything that was seen is checked.

    python -m tests.chaos.matrix --rounds 500
"""
