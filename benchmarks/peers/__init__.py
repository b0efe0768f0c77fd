"""Our peers, with the same work, in the same run."""
