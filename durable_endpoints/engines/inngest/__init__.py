"""This SDK on an engine of Inngest: checkpoints one way, signed HTTP re-entries the other."""
