"""`python -m durable_endpoints_server` is `durable-endpoints`."""

from durable_endpoints_server.cli import main

if __name__ == "__main__":
    main(prog_name="durable-endpoints")
