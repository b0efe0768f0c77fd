"""The pure core in a model of everything around it: store, processes, network, clocks, people.

`history.py` plays one history. What is shipped and pure is used as it is: the rules of runs, events
and streams, and the memory store's conditional writes. Around it, each module models the smallest
thing that is true of the part of the engine or the SDK that its first lines name.
"""
