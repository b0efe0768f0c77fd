"""`durable-endpoints demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("demo")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--keep", is_flag=True, help="Keep the demo's database, and say where it is.")
@click.option(
    "--llm-url",
    metavar="URL",
    help="Let a language model write the digest: the base URL of any OpenAI-compatible server, "
    "such as http://localhost:11434/v1. Its key, if any, is read from OPENAI_API_KEY.",
)
@click.option("--model", metavar="NAME", help="The model to ask there.")
def demo(file: str | None, keep: bool, llm_url: str | None, model: str | None) -> None:
    """Digest a text file durably, and kill the application in the middle of it.

    FILE is any text; the default is one that comes with the package. The digest is streamed while
    it is written.
    """
    from durable_endpoints.demo.driver import run_demo
    from durable_endpoints.demo.llm import Llm

    if bool(llm_url) != bool(model):
        raise click.UsageError("--llm-url and --model go together.")
    llm = Llm(llm_url, model) if llm_url and model else None
    sys.exit(run_demo(Path(file) if file else None, keep, llm))
