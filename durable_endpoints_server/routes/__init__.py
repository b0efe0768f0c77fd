"""The server's HTTP routes: one file per wire, each with `routes(server)`. They parse, authorise,
call, and render."""
