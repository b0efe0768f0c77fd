-- The store's questions, by name. Each answers with ONE row, its lists as JSON: every further row
-- would hand Python's interpreter lock back and forth once more (see sqlite_writes.sql). Those with
-- `:most` answer nothing, or no more, if the answer is larger (bytes, or rows).

-- name: run
select doc from run_doc where id = :run_id

-- name: entry
select
    doc,
    (select json_group_array(json(doc) order by ord) from step_doc where run_id = :run_id),
    (select data from payloads where run_id = :run_id and part = 'request'),
    retries,
    root_path,
    app,
    (select doc from stream_doc where run_id = :run_id)
from runs join run_doc using (id)
where id = :run_id and runs.memo_bytes <= :most and runs.steps <= :most / 100
    and not exists (
        select 1 from payloads
        where run_id = :run_id and part = 'request' and length(data) > :most
    )

-- name: ended
select
    run_doc.doc, status_code, error, omitted, until_delivered, method, path,
    (select data from payloads where run_id = :run_id and part = 'response')
from runs join run_doc using (id)
where id = :run_id and not exists (
    select 1 from payloads
    where run_id = :run_id and part = 'response' and length(data) > :most
)

-- name: version
select version from runs where id = :run_id

-- name: stream
select (select doc from stream_doc where run_id = :run_id)

-- name: stream_page
-- Records that end after `:after`: as many as weigh `:size` together, and one at least. Their data
-- is read only once they are chosen.
with
    candidates (position, size) as (
        select position, size from chunks
        where run_id = :run_id and position + count - 1 > :after and position >= coalesce((
            select max(position) from chunks where run_id = :run_id and position <= :after + 1
        ), 0)
        order by position limit :limit
    ),
    chosen (position, before) as (
        select position, sum(size) over (order by position) - size from candidates
    )
select
    runs.status, coalesce(streams.tail, 0), streams.handed_over,
    (
        select json_group_array(
            json_array(position, count, kind, step, attempt, first, cast(data as text))
            order by position
        )
        from chunks
        where run_id = :run_id
            and position in (select position from chosen where before < :size)
    )
from runs left join streams on streams.run_id = runs.id
where runs.id = :run_id

-- name: last_progress
select json_array(position, count, kind, step, attempt, first, cast(data as text))
from chunks where run_id = :run_id and kind = 4
order by position desc limit 1

-- name: rollbacks
select json_group_array(json_array(position, step, first) order by position)
from chunks where run_id = :run_id and kind = 3

-- name: step_chunks
-- The chunks of one step from `:first` to before `:before`: as many records as weigh `:size`
-- together, and one at least.
with
    candidates (position, size) as (
        select position, size from chunks
        where run_id = :run_id and position >= :first and position < :before
            and kind not in (2, 3) and step = :step
        order by position limit :limit
    ),
    chosen (position, before) as (
        select position, sum(size) over (order by position) - size from candidates
    )
select json_group_array(
    json_array(position, count, kind, step, attempt, first, cast(data as text)) order by position
)
from chunks
where run_id = :run_id and position in (select position from chosen where before < :size)

-- name: key_holder
select id, key_scope, fingerprint from runs where idempotency_key = :key

-- name: due_steps
select json_group_array(json_array(json(run), json(step))) from (
    select run_doc.doc as run, step_doc.doc as step
    from step_doc join run_doc on run_doc.id = step_doc.run_id
    where step_doc.due is not null and step_doc.due <= :now and run_doc.status in (2, 3)
    order by step_doc.due limit :limit
)

-- name: due_deadlines
select json_group_array(json(doc)) from (
    select doc from run_doc
    where id in (
        select id from runs
        where deadline is not null and status < 5 and deadline <= :now and status <> 1
        order by deadline limit :limit
    )
)

-- name: next_due
select min(
    coalesce((
        select steps.due from steps join runs on runs.id = steps.run_id
        where steps.due is not null and runs.status in (2, 3) order by steps.due limit 1
    ), 9e18),
    coalesce((
        select deadline from runs
        where deadline is not null and status < 5 and status <> 1 order by deadline limit 1
    ), 9e18)
)

-- name: running
select json_group_array(json_array(json(doc), steps, bytes, ord)) from (
    select
        doc,
        (select count(*) from steps where run_id = run_doc.id and kind <> 'handler') as steps,
        (select coalesce(sum(length(value)), 0) + coalesce(sum(length(error)), 0)
            from steps where run_id = run_doc.id and state >= 3) as bytes,
        (select coalesce(max(ord), 0) from steps where run_id = run_doc.id) as ord
    from run_doc where status <> 5 and status = 1 order by id limit :limit
)

-- name: running_since
select json_group_array(id) from runs
where status <> 5 and status = 1 and owner = :owner and began_at <= :instant

-- name: ready
-- The oldest of each application, by hopping through the index from one to the next: behind one of
-- those `:without` may be hundreds of thousands.
with recursive apps (app) as (
    select min(app) from runs where status = 3
    union all
    select (select min(app) from runs where status = 3 and app > apps.app)
    from apps where apps.app is not null
)
select json_group_array(json(doc)) from (
    select run_doc.doc
    from apps
    cross join json_each((
        select json_group_array(id) from (
            select id from runs where status = 3 and runs.app = apps.app
            order by ready_at limit :limit
        )
    )) as oldest
    cross join run_doc on run_doc.id = oldest.value
    where apps.app is not null and apps.app not in (select value from json_each(:without))
    order by run_doc.ready_at limit :limit
)

-- name: wait_paths
-- The distinct paths that waits for this event compare, by hopping through the index.
with recursive paths (path) as (
    select min(path) from waits where event = :event
    union all
    select (select min(path) from waits where event = :event and path > paths.path)
    from paths where paths.path is not null
)
select
    exists (select 1 from events where id = :id),
    (select json_group_array(path) from paths where path is not null)

-- name: waits_for
-- `keys` is a JSON object: each path that waits for this event compare, with the event's text there.
-- `cross` has SQLite begin with them; left to itself, it goes through all waits for the event.
select json_group_array(json(doc)) from (
    select match_doc.doc
    from json_each(:keys) as wanted
    cross join match_doc
        on match_doc.event = :event
        and match_doc.path = wanted.key
        and match_doc.text = wanted.value
    where not exists (
        select 1 from event_uses where run_id = match_doc.run_id and event_id = :id
    )
    limit :most
)

-- name: waits_of
select json_group_array(json(doc)) from match_doc where run_id = :run_id

-- name: invocation
select json_array(json(run_doc.doc), json(step_doc.doc))
from step_doc join run_doc on run_doc.id = step_doc.run_id
where step_doc.run_id = :run_id and step_doc.id = :step

-- name: settled_invocations
-- From the open steps, of which there are few: ended children are kept for long.
select json_group_array(json_array(json(run), json(step))) from (
    select run_doc.doc as run, step_doc.doc as step
    from steps indexed by steps_invoked
    join run_doc on run_doc.id = steps.run_id
    join step_doc on step_doc.run_id = steps.run_id and step_doc.id = steps.id
    where steps.kind = 'invoke' and steps.state = 1 and run_doc.status < 4 and not exists (
        select 1 from runs as child
        where child.parent_run = steps.run_id and child.parent_step = steps.id and child.status < 5
    )
)

-- name: orphans
select json_group_array(json(doc)) from (
    select run_doc.doc
    from runs as child indexed by runs_unfinished_children join run_doc using (id)
    where child.parent_run is not null and child.status < 5 and not exists (
        select 1 from runs as parent where parent.id = child.parent_run and parent.status < 5
    )
)

-- name: children
select json_group_array(json(doc)) from (
    select run_doc.doc from runs join run_doc using (id)
    where parent_run = :run_id order by began_at, id
)

-- name: unused_events
select json_group_array(json(doc)) from (
    select doc from event_doc
    where name = :event and (received_at, id) > (:since, :after)
        and id not in (select event_id from event_uses where run_id = :run_id)
    order by received_at, id limit :limit
)

-- name: unsettled_events
select json_group_array(json(doc)) from (
    select doc from event_doc where not settled order by received_at limit :limit
)

-- name: known_events
select json_group_array(json_array(id, internal_id)) from events
where id in (select value from json_each(:ids))

-- name: awaited
select json_group_array(value) from json_each(:names)
where exists (select 1 from waits where event = value)

-- name: event
select coalesce(
    (select doc from event_doc where internal_id = :id and internal_id <> ''),
    (select doc from event_doc where id = :id)
)

-- name: list_events
select json_group_array(json(doc)) from (
    select doc from event_doc
    where (received_at, id) < (:before, :before_id) and received_at >= :since
    order by received_at desc, id desc limit :limit
)

-- name: list_events_named
select json_group_array(json(doc)) from (
    select doc from event_doc
    where name = :event and (received_at, id) < (:before, :before_id) and received_at >= :since
    order by received_at desc, id desc limit :limit
)

-- name: newest
select max(
    coalesce((select began_at from runs order by id desc limit 1), 0),
    coalesce((select max(ended_at) from runs where ended_at is not null), 0),
    coalesce((select max(received_at) from events), 0)
)

-- name: is_sweepable
select
    exists (select 1 from runs where ended_at < :runs_before)
    or exists (
        select 1 from requests where id = (select min(id) from requests) and at < :runs_before
    )
    or exists (select 1 from events where received_at < :events_before)
    or exists (
        select 1 from runs
        where until_delivered and omitted = '' and ended_at < :responses_before
    )

-- name: inbox
select json_group_array(json_array(id, at, kind, cast(data as text))) from (
    select * from inbox order by id limit :limit
)

-- name: list_runs
-- Looks at `:window` runs before `:before`, the newest first: at all, or, unless `:completed`, at
-- those of the other statuses, by the index that has them. The second column is the last that it
-- looked at, if there may be more.
with looked (id, fits) as materialized (
    select * from (
        select
            id,
            status in (select value from json_each(:statuses))
                and (:function_id is null or function_id = :function_id)
        from runs where :completed and id < :before order by id desc limit :window
    )
    union all
    select * from (
        select
            found.value,
            :function_id is null
                or (select function_id from runs where id = found.value) = :function_id
        from json_each(iif(:completed, '[]', :statuses)) as wanted
        cross join json_each((
            select json_group_array(id) from (
                select id from runs
                where status <> 5 and status = wanted.value and id < :before
                order by id desc limit :window
            )
        )) as found
        order by found.value desc limit :window
    )
)
select
    (
        select json_group_array(json_array(json(doc), method, path, status_code, due)) from (
            select
                run_doc.doc, runs.method, runs.path, runs.status_code,
                (select min(due) from steps where run_id = runs.id and due is not null) as due
            from looked cross join runs using (id) join run_doc using (id)
            where looked.fits order by looked.id desc limit :limit
        )
    ),
    (select min(id) from looked having count(*) = :window)

-- name: attempts
select json_group_array(json_array(step, attempt, began_at, ended_at, cast(error as text)))
from (select * from attempts where run_id = :run_id order by rowid)

-- name: origins
select json_group_array(origin) from (select origin from origins order by origin)

-- name: requests
select json_group_array(json_array(at, method, route, status, elapsed, run_id)) from (
    select * from requests order by id desc limit :limit
)
