"""What a process goes by in a run that the server has given it: the server's counts and limits."""

from __future__ import annotations

from durable_endpoints.engines.remote.claimed import Claimed
from durable_endpoints.engines.remote.engine import _policy
from durable_endpoints.protocol import wire
from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepId, hash_name
from durable_endpoints.settings import Settings
from durable_endpoints_server.engine.model import Policy


def step(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


def test_a_claimed_run_has_used_what_the_server_counts() -> None:
    memo = [
        StepRecord(step("a"), StepKind.RUN, StepState.DONE, 1, 1, b"123"),
        StepRecord(step("b"), StepKind.RUN, StepState.FAILED, 1, 2, None, b"{}"),
        StepRecord(HANDLER_STEP, StepKind.HANDLER, StepState.RETRYING, 1),
    ]
    told = {
        "run": "r",
        "generation": 3,
        "began_at": 5,
        "depth": 2,
        "function_id": "f",
        "request": wire.pack_bytes(b"sealed"),
        "retries": 3,
        "root_path": "",
        "memo": [wire.pack_step(step) for step in memo],
        "stream": None,
    }
    run = Claimed.unpack(told).run
    assert (run.steps, run.memo_bytes, run.last_order) == (2, 5, 2)
    assert (run.generation, run.began_at, run.depth) == (3, 5, 2)


def test_the_lower_limit_counts_the_applications_or_the_servers() -> None:
    settings = Settings.load({"max_memo": 10_000, "max_stream": 500}, environ={})
    told = Policy(max_memo=5_000, max_stream=1_000, max_steps=7, max_result=9)._asdict()
    policy = _policy(settings, told)
    assert (policy.max_memo, policy.max_stream) == (5_000, 500)
    assert (policy.max_steps, policy.max_result) == (7, 9)
