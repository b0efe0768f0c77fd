"""The bugs: each breaks one promise, and looks like a line that somebody might have written.

Whoever changes the source that an entry quotes writes the entry anew: the bug stays the same.
"""

from __future__ import annotations

from typing import Final

from tests.mutations.planting import Planted

_ENGINE: Final = "durable_endpoints_server/engine"
_SERVER: Final = "durable_endpoints_server"
_SDK: Final = "durable_endpoints"

_RULES: Final = "tests/durable_endpoints_server/engine/test_transitions.py::"
_STORES: Final = "tests/conformance/test_store.py::"
_GROUPS: Final = "tests/durable_endpoints_server/store/test_group_commit.py::"
_RETURNS: Final = "tests/durable_endpoints_server/remote/test_coming_back.py::"
_LEASES: Final = "tests/durable_endpoints/remote/test_lease.py::"
_SLOW: Final = "tests/durable_endpoints_server/test_slow_disk.py::"
_LIVE: Final = "tests/durable_endpoints_server/test_live.py::"
_EVENTS: Final = "tests/durable_endpoints_server/test_events.py::"
_TIMERS: Final = "tests/durable_endpoints_server/test_timers.py::"
_SESSIONS: Final = "tests/durable_endpoints_server/remote/test_sessions.py::"

PLANTED: Final = (
    # Who may change a run
    Planted(
        "no generation check",
        f"{_ENGINE}/facts.py",
        "return run.generation == self.generation and bool(self.states >> run.status & 1)",
        "return bool(self.states >> run.status & 1)",
        "only one execution can advance a run",
        (f"{_STORES}test_a_stale_generation_writes_nothing[memory]",),
    ),
    Planted(
        "no generation check in SQL",
        f"{_SERVER}/store/sqlite_writes.sql",
        """create temp trigger write_step instead of insert on writes when new.kind = 4 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1""",
        """create temp trigger write_step instead of insert on writes when new.kind = 4 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and (new.states >> status) & 1""",
        "only one execution can advance a run",
        (f"{_STORES}test_a_stale_generation_writes_nothing[sqlite]",),
    ),
    Planted(
        "a claim keeps the generation",
        f"{_ENGINE}/transitions.py",
        """        status=Status.RUNNING,
        generation=run.generation + 1,""",
        """        status=Status.RUNNING,
        generation=run.generation,""",
        "an execution that was replaced can write nothing",
        (
            f"{_RULES}test_the_generation_grows_with_every_claim_and_every_resolution_of_an_idle_run",
        ),
    ),
    Planted(
        "a claim of a running run",
        f"{_ENGINE}/transitions.py",
        "Claim: Rule(states(Status.READY), _claim)",
        "Claim: Rule(states(Status.READY, Status.RUNNING), _claim)",
        "a run is executed by one execution at a time",
        (f"{_RULES}test_each_command_is_possible_in_these_states_only",),
    ),
    Planted(
        "completed twice",
        f"{_ENGINE}/transitions.py",
        "Complete: Rule(_RUNNING, _complete)",
        "Complete: Rule(_RUNNING | states(Status.COMPLETED), _complete)",
        "a run has one end and one response",
        (f"{_RULES}test_no_command_leaves_a_final_state",),
    ),
    Planted(
        "cancelled after its end",
        f"{_ENGINE}/transitions.py",
        "Cancel: Rule(_NOT_FINAL, _cancel)",
        "Cancel: Rule(_NOT_FINAL | states(Status.COMPLETED), _cancel)",
        "a run has one end and one response",
        (f"{_RULES}test_no_command_leaves_a_final_state",),
    ),
    Planted(
        "no generation check in SQL for what is waited for",
        f"{_SERVER}/store/sqlite_writes.sql",
        """create temp trigger write_wait instead of insert on rare_writes when new.kind = 6 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1""",
        """create temp trigger write_wait instead of insert on rare_writes when new.kind = 6 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id""",
        "an execution that was replaced can write nothing",
        (f"{_STORES}test_no_fact_of_a_stale_generation_is_written[sqlite]",),
    ),
    # What was acknowledged
    Planted(
        "acknowledged before the write",
        f"{_SERVER}/store/group_commit.py",
        "        if not self._batch.is_finished:\n            loop",
        "        if not self._batch.tickets:\n            loop",
        "what was acknowledged is on disk",
        (f"{_GROUPS}test_nobody_is_acknowledged_before_the_disk_is",),
    ),
    Planted(
        "an event is acknowledged before the write",
        f"{_SERVER}/events.py",
        "            await ticket.wait()\n            is_on_disk = True",
        "            is_on_disk = True",
        "an event whose sender was told so is on disk",
        (f"{_SLOW}test_a_sender_is_told_that_its_events_are_kept_once_they_are_on_disk[1]",),
    ),
    Planted(
        "a refused write is acknowledged",
        f"{_SERVER}/store/group_commit.py",
        "tickets[index].failure = RefusedError()",
        "tickets[index].failure = None",
        "who is refused knows it",
        (f"{_GROUPS}test_a_refusal_concerns_its_own_change_only",),
    ),
    Planted(
        "written after a lost write",
        f"{_SERVER}/store/group_commit.py",
        "[ticket for ticket in batch.tickets if not ticket.fails_with_its_lane()]",
        "[ticket for ticket in batch.tickets]",
        "nothing of an execution is written after something of it was lost",
        (f"{_GROUPS}test_a_lane_that_failed_stays_failed",),
    ),
    Planted(
        "a relaxed write takes others along",
        f"{_SERVER}/store/group_commit.py",
        "            if not is_relaxed:\n                batch.is_relaxed = False",
        "            if not is_relaxed and batch.is_relaxed is None:\n"
        "                batch.is_relaxed = False",
        "what was acknowledged survives a loss of power",
        (
            "tests/durable_endpoints_server/store/test_sqlite.py::"
            "test_only_a_batch_that_is_relaxed_altogether_is_written_relaxed",
        ),
    ),
    Planted(
        "a relaxed write is never synced",
        f"{_SERVER}/store/group_commit.py",
        "                self._unsynced_since = self._last_success",
        "                self._unsynced_since = None",
        "what was streamed is on the disk within moments",
        (
            "tests/durable_endpoints_server/store/test_sqlite.py::"
            "test_what_was_written_relaxed_is_synced_soon",
        ),
    ),
    Planted(
        "a sync that failed is forgotten",
        f"{_SERVER}/store/sqlite_log.py",
        "        except OSError:\n            self._is_doubtful = True\n            raise",
        "        except OSError:\n            raise",
        "what was acknowledged survives a loss of power",
        (
            "tests/chaos/test_failed_syncs.py::"
            "test_what_is_acknowledged_after_a_failed_sync_does_not_lie_behind_a_hole[the store]",
        ),
    ),
    Planted(
        "a steady stream is never synced",
        f"{_SERVER}/store/group_commit.py",
        "            elif self._unsynced_since is None:",
        "            else:",
        "what was streamed is on the disk within moments",
        (f"{_GROUPS}test_a_stream_without_a_pause_is_synced_all_the_same",),
    ),
    Planted(
        "the last write wins",
        f"{_SERVER}/store/sqlite_writes.sql",
        "    where state < 3;",
        "    where true;",
        "a result that was acknowledged never changes",
        (f"{_STORES}test_the_first_final_write_of_a_step_wins[sqlite]",),
    ),
    Planted(
        "the next step begins before the last is on disk",
        f"{_SDK}/execution.py",
        'return self._recorded if self.options.checkpoint == "each" else self._inherited',
        "return self._inherited",
        "no body begins before what it builds on is on disk",
        (
            "tests/durable_endpoints/test_failing_store.py::test_a_step_that_cannot_be_recorded_stops_the_next",
        ),
    ),
    Planted(
        "the last byte before the record",
        f"{_SDK}/ending.py",
        """
        if not capture.is_complete or await self._complete():
            await self._pass_on()
""",
        """
        await self._pass_on()
        if capture.is_complete:
            await self._complete()
""",
        "no client sees the end of a response that is not on disk",
        (
            "tests/durable_endpoints/test_answers.py::test_no_client_sees_the_end_before_it_is_recorded",
        ),
    ),
    Planted(
        "a suspended handler is heard",
        f"{_SDK}/ending.py",
        "        self.capture.is_muted = True\n        self._wait_for_handler()",
        "        self._wait_for_handler()",
        "what a handler says while it is unwound is discarded",
        (
            "tests/durable_endpoints/test_suspension.py::"
            "test_an_answer_that_begins_while_the_handler_is_unwound_is_not_heard",
        ),
    ),
    # Waits, events, timers
    Planted(
        "a wait is resolved twice",
        f"{_ENGINE}/transitions.py",
        "    if op.step.is_final:\n        raise",
        "    if op.step.state is StepState.FAILED:\n        raise",
        "a wait is decided once",
        (f"{_RULES}test_a_resolved_step_is_not_resolved_again",),
    ),
    Planted(
        "the use of an event is not recorded",
        f"{_ENGINE}/transitions.py",
        "            facts = (*facts, EventUsed(op.event_id))",
        "            facts = (*facts,)",
        "an early event is used once by a run",
        (f"{_RULES}test_a_resolution_carries_value_and_event",),
    ),
    Planted(
        "an event at the deadline",
        f"{_ENGINE}/matching.py",
        "event.received_at < wait.deadline",
        "event.received_at <= wait.deadline",
        "a wait is decided by when the event came",
        (
            "tests/durable_endpoints_server/engine/test_matching.py::"
            "test_time_of_receipt_decides_not_the_senders_clock",
        ),
    ),
    Planted(
        "a timeout before an earlier event",
        f"{_SERVER}/timers.py",
        "                    await self._host.catch_up()\n",
        "",
        "an event that came before the deadline counts, whatever is looked at first",
        (
            "tests/durable_endpoints_server/test_timers.py::"
            "test_an_event_that_came_in_time_beats_a_timeout_that_is_seen_first",
        ),
    ),
    Planted(
        "a wait does not look back",
        f"{_SERVER}/live.py",
        "        if step.kind in (StepKind.WAIT, StepKind.WAIT_ANY):",
        "        if step.kind is StepKind.WAIT_ANY:",
        "an event that came before its wait counts",
        (
            "tests/durable_endpoints/test_events.py::test_an_event_that_came_before_the_wait_is_found",
        ),
    ),
    Planted(
        "a wait looks back before it is on disk",
        f"{_SERVER}/live.py",
        "        await self.acknowledge()\n        await self._host.events.look_back(self, key)",
        "        await self._host.events.look_back(self, key)",
        "an event that comes as its wait is opened counts",
        (f"{_SLOW}test_a_wait_finds_an_event_that_came_to_the_disk_right_before_it",),
    ),
    Planted(
        "suspended while events are looked up",
        f"{_SERVER}/live.py",
        "        while self._tasks:\n            await asyncio.wait(self._tasks)\n",
        "",
        "an event that came before its wait counts",
        (f"{_LIVE}test_a_run_is_not_left_before_what_it_waits_for_was_looked_up",),
    ),
    Planted(
        "an event is for each wait that opened after it",
        f"{_SERVER}/live.py",
        "if step is not None and (again or event_id not in self._used_events):",
        "if step is not None:",
        "an early event is used once by a run",
        (f"{_EVENTS}test_of_two_waits_that_opened_while_an_event_was_matched_one_gets_it",),
    ),
    Planted(
        "done, and tried again",
        f"{_SERVER}/live.py",
        "                self._open.pop(fact.step.id.hash, None)",
        "                pass",
        "a body does not begin again once its result was acknowledged",
        (f"{_LIVE}test_a_step_that_is_done_is_not_tried_again_when_its_next_try_was_due",),
    ),
    Planted(
        "an event that could not be matched is forgotten",
        f"{_SERVER}/events.py",
        """could not be matched yet: %s", event.id, error)
            self._host.recovery.settle_soon()""",
        """could not be matched yet: %s", event.id, error)""",
        "an event resolves what it resolves once the disk works again",
        (f"{_EVENTS}test_an_event_is_matched_once_the_store_works_again",),
    ),
    Planted(
        "slept through what was resolved",
        f"{_SERVER}/live.py",
        "        if self._missed:",
        "        if self._missed and self._used_events is None:",
        "what is resolved as a run suspends wakes it",
        (
            "tests/durable_endpoints/test_lost_once.py::"
            "test_what_is_resolved_when_the_handler_is_left_already_is_not_slept_through",
        ),
    ),
    Planted(
        "a wake-up is lost",
        f"{_SERVER}/timers.py",
        "        if self._next is None or due < self._next:",
        "        if self._next is not None and due < self._next:",
        "a run goes on when its time has come",
        (
            "tests/durable_endpoints/test_basics.py::"
            "test_a_sleep_redirects_and_the_answer_comes_from_wait",
        ),
    ),
    Planted(
        "armed while the store is asked, and not heard",
        f"{_SERVER}/timers.py",
        "            self._next = None\n            due = await",
        "            due = await",
        "a run goes on when its time has come",
        (f"{_TIMERS}test_what_is_armed_while_the_store_is_asked_is_not_overlooked",),
    ),
    Planted(
        "armed for the last of what a run waits for",
        f"{_SERVER}/live.py",
        "due = min((s.due for s in still_open",
        "due = max((s.due for s in still_open",
        "a run goes on when its time has come",
        (f"{_TIMERS}test_a_run_that_suspends_arms_what_comes_first_of_all_that_it_waits_for",),
    ),
    Planted(
        "too many are ready, and forgotten",
        f"{_SERVER}/dispatcher.py",
        "            self._more = True  # it stays in the store, and is fetched when there is room",
        "            pass",
        "a run that is ready is executed at once",
        (
            "tests/durable_endpoints_server/test_dispatcher.py::"
            "test_more_runs_than_a_page_that_become_ready_together_are_all_executed",
        ),
    ),
    Planted(
        "a waiter looks before it listens",
        f"{_SERVER}/waiters.py",
        """        listeners.append(future)
        alarm = None
        try:
            ended = await self._store.ended(run_id)
""",
        """        alarm = None
        try:
            ended = await self._store.ended(run_id)
            listeners.append(future)
""",
        "who waits for a run is answered when it ends",
        (
            "tests/durable_endpoints_server/test_waiters.py::"
            "test_an_end_between_looking_and_waiting_is_not_missed",
        ),
    ),
    Planted(
        "ready, and nobody told",
        f"{_SERVER}/host.py",
        "        if run.status is Status.READY:\n            self.dispatcher.wake(run)",
        "        if run.status is Status.READY and due:\n            self.dispatcher.wake(run)",
        "a run that is ready is executed at once",
        (
            "tests/durable_endpoints_server/test_dispatcher.py::"
            "test_a_run_that_becomes_ready_is_executed_at_once",
        ),
    ),
    Planted(
        "a timer is early",
        f"{_SERVER}/timers.py",
        "                now = self._host.clock.elapsed()",
        "                now = self._host.clock.elapsed() + 1_000",
        "a sleep never ends early",
        (
            "tests/durable_endpoints_server/test_timers.py::"
            "test_a_sleep_ends_on_time_and_not_before",
        ),
    ),
    Planted(
        "a retry is counted wrongly",
        f"{_SDK}/bodies.py",
        "MISTAKES) or attempt > retries",
        "MISTAKES) or attempt >= retries",
        "retries=3 are four tries",
        ("tests/durable_endpoints/test_basics.py::test_backoff_is_exponential",),
    ),
    Planted(
        "a handler's tries are not counted",
        f"{_SDK}/ending.py",
        "attempt = 1 if record is None else record.attempt + 1",
        "attempt = 1",
        "a handler that always fails ends",
        (
            "tests/durable_endpoints/test_basics.py::"
            "test_a_handler_that_always_raises_has_as_many_tries_as_its_endpoint_allows",
        ),
    ),
    # What a crash leaves behind
    Planted(
        "an interrupted run is left",
        f"{_SERVER}/recovery.py",
        "        await self.give_up([(run, self._loss(alone)) for run in lost])\n",
        "",
        "a run whose process died goes on",
        (
            "tests/durable_endpoints_server/test_recovery.py::"
            "test_every_run_of_a_dead_process_is_ready_at_the_start",
        ),
    ),
    Planted(
        "an innocent run is parked",
        f"{_ENGINE}/transitions.py",
        "    elif op.alone:\n        lone += 1",
        "    else:\n        lone += 1",
        "only what dies alone, again and again, is parked",
        (f"{_RULES}test_an_innocent_run_is_never_parked",),
    ),
    Planted(
        "the parent is not told",
        f"{_SERVER}/children.py",
        "if found is None or found.step.state is not StepState.PENDING:",
        "if found is None or found.step.state is StepState.PENDING:",
        "a caller sees the end of the run that it invoked",
        (
            "tests/durable_endpoints/test_invoke.py::"
            "test_a_child_that_ended_as_the_process_died_wakes_its_parent_in_the_next_one",
        ),
    ),
    Planted(
        "a child outlives its parent",
        f"{_SERVER}/host.py",
        "        if is_ended:\n            await self.children.end(run_id)\n",
        "",
        "a run that was invoked does not outlive its caller",
        (
            "tests/durable_endpoints/test_invoke.py::"
            "test_whoever_is_told_that_a_run_is_cancelled_finds_nothing_below_it_alive",
        ),
    ),
    Planted(
        "a signal is told as taken too early",
        f"{_SERVER}/live.py",
        "        self.resolve(step, value)\n        try:\n            await self.acknowledge()",
        "        self.resolve(step, value)\n        try:\n            pass",
        "whoever is told that a signal was taken can rely on it",
        (f"{_SLOW}test_a_sender_is_told_that_its_signal_was_taken_once_that_is_on_disk",),
    ),
    # Strangers
    Planted(
        "a token for every run",
        f"{_SDK}/protocol/tokens.py",
        'grant.value + run_id.encode("utf-8")',
        "grant.value",
        "a run token opens its own run",
        ("tests/durable_endpoints/protocol/test_tokens.py::test_a_token_opens_its_own_run_only",),
    ),
    Planted(
        "a key for every caller",
        f"{_SDK}/idempotency.py",
        "    if claim.scope != holder.scope:",
        "    if claim.scope != holder.scope and not holder.scope:",
        "an idempotency key belongs to the caller that used it first",
        ("tests/durable_endpoints/test_idempotency.py::test_a_key_belongs_to_who_used_it_first",),
    ),
    Planted(
        "a key for every request",
        f"{_SDK}/idempotency.py",
        "    if claim.fingerprint != holder.fingerprint:",
        "    if claim.fingerprint == holder.scope:",
        "a key that comes with another request is refused",
        (
            "tests/durable_endpoints/test_idempotency.py::test_a_key_with_another_request_is_refused",
        ),
    ),
    # Streams
    Planted(
        "no rollback",
        f"{_ENGINE}/streams.py",
        "        kind = RecordKind.COMMIT if done else RecordKind.ROLLBACK",
        "        kind = RecordKind.COMMIT",
        "a chunk of a try that failed is never shown as permanent",
        ("tests/durable_endpoints_server/engine/test_streams.py",),
    ),
    Planted(
        "a lost try is not withdrawn",
        f"{_ENGINE}/streams.py",
        "    for step in [step for step in log.stream.open if step != OUTSIDE]:",
        "    for step in [step for step in log.stream.open if step == OUTSIDE]:",
        "what an execution that vanished has streamed is withdrawn",
        ("tests/durable_endpoints_server/engine/test_streams.py",),
    ),
    Planted(
        "a position is given twice",
        f"{_ENGINE}/streams.py",
        "self.stream = stream._replace(tail=record.last,",
        "self.stream = stream._replace(tail=record.position,",
        "each position of a stream has one content",
        ("tests/durable_endpoints_server/engine/test_streams.py",),
    ),
    Planted(
        "positions are not skipped",
        f"{_SERVER}/store/sqlite_writes.sql",
        "on conflict (run_id) do update set tail = tail + excluded.tail, is_wary = 1;",
        "on conflict (run_id) do update set is_wary = 1;",
        "after a loss of power no position is given a second time",
        (f"{_STORES}test_a_stream_skips_ahead[sqlite]",),
    ),
    Planted(
        "a chunk is shown before it is written",
        f"{_SERVER}/live_stream.py",
        "        ticket.then(lambda: self._publish(records))",
        "        self._publish(records)",
        "readers see nothing that is not written",
        (f"{_SLOW}test_a_reader_gets_a_chunk_once_it_is_written",),
    ),
    Planted(
        "positions are not skipped by a machine that was started anew",
        f"{_SERVER}/recovery.py",
        "        if run.owner == here or is_same_boot(run.owner, here):",
        "        if here:",
        "after a loss of power no position is given a second time",
        (
            "tests/durable_endpoints_server/test_recovery.py::"
            "test_after_a_start_of_the_machine_no_position_of_a_stream_is_given_again",
        ),
    ),
    # At the far end of a wire
    Planted(
        "a former execution comes back",
        f"{_SERVER}/remote/resuming.py",
        "            and run.generation == self._generation\n",
        "",
        "what a process says of a run that was given to another one is refused",
        (f"{_RETURNS}test_a_later_execution_of_what_a_process_comes_back_for_is_released_too",),
    ),
    Planted(
        "a frame is taken twice",
        f"{_SERVER}/remote/sessions.py",
        "        if number <= self.taken:",
        "        if number < self.taken:",
        "what is sent again over a new connection changes nothing",
        (f"{_RETURNS}test_a_connection_cut_anywhere_is_as_if_it_had_held",),
    ),
    Planted(
        "a record is kept twice by a new server",
        f"{_SERVER}/remote/repeats.py",
        "        return isinstance(op, StepRetry) and step.attempt >= op.attempt",
        "        return False",
        "what is said again to a new server changes nothing",
        (f"{_RETURNS}test_a_server_that_ends_anywhere_is_as_if_it_had_not",),
    ),
    Planted(
        "a renewed lease hides that it was over",
        f"{_SDK}/engines/remote/lease.py",
        "return self.since <= instant and now() < self._ends",
        "return now() < self._ends",
        "no body begins of a run that another process may have been given meanwhile",
        (f"{_LEASES}test_a_lease_covers_what_was_held_without_a_gap",),
    ),
    Planted(
        "an acknowledgement is about more than was written",
        f"{_SERVER}/remote/acknowledging.py",
        "                (session, number, live, live.ticket, live.stream_tail)",
        "                (session, session.taken, live, live.ticket, live.stream_tail)",
        "what a server has acknowledged is on its disk",
        (
            f"{_SESSIONS}test_what_is_said_after_a_signal_waits_for_it_and_so_does_its_"
            "acknowledgement",
        ),
    ),
    Planted(
        "what was not acknowledged is not said again",
        f"{_SDK}/engines/remote/session.py",
        "        self._journal.confirm(number)\n",
        "        self._journal.confirm(number + 1)\n",
        "a connection that breaks loses nothing",
        (
            "tests/durable_endpoints/remote/test_link.py::"
            "test_an_acknowledgement_is_about_what_was_said_before_and_nothing_else",
        ),
    ),
    Planted(
        "a silent process keeps its runs",
        f"{_SERVER}/remote/hub.py",
        "                session.live.interrupt(alone=count == 1)",
        "                session.live.watch",
        "the runs of a process that is silent for its lease go on elsewhere",
        (f"{_RETURNS}test_a_process_that_is_silent_for_its_lease_loses_its_runs_to_another",),
    ),
    Planted(
        "told of before it is on disk",
        f"{_SERVER}/remote/sessions.py",
        '        self.live.ticket.then(lambda: self.send("resolved", *parts))',
        '        self.send("resolved", *parts)',
        "no body begins on what a crash of the server could still undo",
        (f"{_SLOW}test_a_process_is_told_that_a_step_is_resolved_once_that_is_on_disk",),
    ),
    Planted(
        "an event waits for an execution that can write nothing",
        f"{_SERVER}/events.py",
        "            if live is not None and not live.has_failed:",
        "            if live is not None:",
        "a disk that fails for a moment keeps no wait from timing out",
        (
            "tests/durable_endpoints_server/test_failed_executions.py::"
            "test_an_event_that_it_could_not_take_keeps_no_wait_from_timing_out",
        ),
    ),
)
