"""Whole histories of crashes, in virtual time: random programs, random faults, one seed."""
