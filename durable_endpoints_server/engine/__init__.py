"""The pure core: functions of (state, command, now) that return facts to write and effects.

Nothing in here reads a clock, draws a random number, opens a file or a socket; a test holds it to
that. So whole histories of crashes can be played in milliseconds, and a rule has one home.
"""
