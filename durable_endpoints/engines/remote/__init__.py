"""An engine at the far end of a wire: the companion server."""
