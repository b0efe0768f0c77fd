"""What opens runs: the server's tokens, as far as this process knows them, and ours around them.

A token of ours carries the server's own, so that any replica can ask the server about the run.
"""

from __future__ import annotations

from durable_endpoints.engines.inngest.recent import Recent
from durable_endpoints.protocol.checkpoints import CheckpointRun
from durable_endpoints.protocol.tokens import Grant
from durable_endpoints.sealing import Keyring


class Tokens:
    """The tokens of the runs that this process has met last."""

    def __init__(self, most: int) -> None:
        """`most`: of so many runs."""
        self._runs = Recent[CheckpointRun](most)

    def keep(self, run: CheckpointRun) -> None:
        """The server has told what opens a run."""
        self._runs.keep(run.run_id, run)

    def knows(self, run_id: str) -> bool:
        """Whether this process has met the run."""
        return run_id in self._runs

    def output(self, run_id: str) -> str:
        """What opens the run's output; empty if that is not known."""
        known = self._runs.get(run_id)
        return "" if known is None else known.token

    def take_realtime(self, run_id: str) -> str:
        """What opens the run's stream: good for some minutes, and given out once. Empty if there is
        none."""
        known = self._runs.get(run_id)
        if known is None:
            return ""
        self._runs[run_id] = known._replace(realtime_token="")
        return known.realtime_token

    def sign(self, keyring: Keyring, run_id: str, may_cancel: bool) -> str:
        """A token of ours, around the server's own."""
        theirs = self.output(run_id)
        return f"{keyring.sign_run(f'{run_id}~{theirs}', may_cancel)}~{theirs}"

    def verify(self, keyring: Keyring, run_id: str, token: str) -> Grant | None:
        """What such a token may do; None if it does not open the run."""
        ours, _, theirs = token.partition("~")
        grant = keyring.verify_run(f"{run_id}~{theirs}", ours)
        if grant is not None and theirs and not self.knows(run_id):
            self.keep(CheckpointRun(run_id, token=theirs))
        return grant
