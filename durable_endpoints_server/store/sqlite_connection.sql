-- Run once on every connection. Everything here is TEMP: it is code, not data.

create temp view run_doc as
select
    id, status, ready_at, ended_at,
    json_array(
        id, function_id, status, generation, owner, lease_until, began_at, deadline, ready_at,
        ended_at, reason, interruptions, lone_interruptions, omit_request_body,
        parent_run, parent_step, depth, steps, memo_bytes, last_order
    ) as doc
from runs;

create temp view step_doc as
select
    run_id, id, ord, due, began_at, name, repeat,
    json_array(
        id, name, repeat, kind, state, attempt, ord, cast(value as text), cast(error as text),
        due, began_at, ended_at
    ) as doc
from steps;

create temp view match_doc as
select
    waits.event, waits.path, waits.text, waits.run_id,
    json_array(
        json(run_doc.doc), json(step_doc.doc), waits.label, waits.event,
        cast(waits.pairs as text), waits.expression, waits.deadline
    ) as doc
from waits
join run_doc on run_doc.id = waits.run_id
join step_doc on step_doc.run_id = waits.run_id and step_doc.id = waits.step_id;

create temp view event_doc as
select
    id, name, received_at, settled, internal_id,
    json_array(
        id, name, cast(data as text), ts, received_at, internal_id,
        coalesce(cast(extra as text), '{}')
    ) as doc
from events;

create temp view stream_doc as
select
    run_id,
    json_array(
        tail, size, cast(open as text), outside, outside_committed, handed_over, is_wary
    ) as doc
from streams;
