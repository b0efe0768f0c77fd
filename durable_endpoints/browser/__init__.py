"""The browser client: `client.js`, which applications serve at `/wait/client.js`, and its types."""
