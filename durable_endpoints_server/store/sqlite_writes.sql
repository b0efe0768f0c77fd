-- Run once on the writing connection: how a batch of facts becomes rows.
--
-- A batch is ONE statement, `insert into writes values (…), (…), …`. Every step of a statement
-- hands Python's interpreter lock back and forth, so that a statement per row would crawl behind a
-- busy event loop. The view's triggers route each row by its kind, in the order of the batch.
--
-- The fence: a row whose run is not at its generation, in one of its states, is skipped, and
-- `refused(n)` (a function of the writer) notes the change it belongs to. The rows of a change
-- stand together, and the row that alters the run's own state comes last, so that a change is
-- written whole or not at all.
--
-- SQLite starts every trigger of a view for every row, only to find that its kind is another one.
-- So the view has but the triggers of those rows that every run has, and passes the others on.
-- (`in` with a list would make a table of that, each time.)

create temp view writes (
    kind, run_id, generation, states, a, b, c, d, e, f, g, h, i, j, k, l, m, o, p, q, r, s, n
) as select 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0;

create temp view stream_writes as select * from writes;
create temp view rare_writes as select * from writes;

create temp trigger write_of_stream instead of insert on writes
when new.kind between 15 and 17 begin
    insert into stream_writes values (
        new.kind, new.run_id, new.generation, new.states, new.a, new.b, new.c, new.d, new.e,
        new.f, new.g, new.h, new.i, new.j, new.k, new.l, new.m, new.o, new.p, new.q, new.r,
        new.s, new.n
    );
end;

create temp trigger write_rarely instead of insert on writes
when new.kind between 5 and 14 or new.kind > 17 begin
    insert into rare_writes values (
        new.kind, new.run_id, new.generation, new.states, new.a, new.b, new.c, new.d, new.e,
        new.f, new.g, new.h, new.i, new.j, new.k, new.l, new.m, new.o, new.p, new.q, new.r,
        new.s, new.n
    );
end;

create temp trigger write_run_created instead of insert on writes when new.kind = 1 begin
    select raise(ignore)
    where (
        exists (select 1 from runs where id = new.run_id)
        or exists (select 1 from runs where idempotency_key = new.l)
    ) and refused(new.n);
    insert into runs (
        id, function_id, version, status, generation, owner, lease_until, began_at, deadline,
        omit_request_body, retries, method, path, root_path,
        idempotency_key, key_scope, fingerprint, labels, app
    ) values (
        new.run_id, new.a, new.b, 1, 1, new.c, new.d, new.e, new.f,
        new.g, new.h, new.i, new.j, new.k,
        new.l, new.m, new.o, new.p, new.r
    );
    insert into payloads (run_id, part, data) values (new.run_id, 'request', new.q);
end;

-- A run that was invoked. The fence, and `run_id`, are its parent's.
create temp trigger write_child_created instead of insert on rare_writes when new.kind = 18 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    insert into runs (
        id, function_id, version, status, generation, owner, began_at, deadline, ready_at,
        omit_request_body, retries, method, path, root_path, key_scope, fingerprint,
        parent_run, parent_step, depth, labels, app
    ) values (
        new.a, new.b, new.c, new.d, new.e, '', new.f, new.g, new.h,
        new.i, new.j, new.k, new.l, new.m, '', '',
        new.run_id, new.o, new.p, new.q, new.s
    )
    on conflict (id) do nothing;
    insert into payloads (run_id, part, data) values (new.a, 'request', new.r)
    on conflict (run_id, part) do nothing;
end;

create temp trigger write_run_ended instead of insert on writes when new.kind = 2 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    update runs set
        status = new.a, owner = '', lease_until = null, ready_at = null, ended_at = new.b,
        reason = new.c, steps = new.d, memo_bytes = new.e, last_order = new.f,
        status_code = new.g, omitted = new.h, error = new.i, until_delivered = new.j
    where id = new.run_id;
    insert into payloads (run_id, part, data)
    select new.run_id, 'response', new.l where new.l is not null;
    delete from payloads where run_id = new.run_id and part = 'request' and new.k;
    delete from waits where run_id = new.run_id;
    update steps set due = null where run_id = new.run_id and due is not null;
end;

create temp trigger write_run_changed instead of insert on writes when new.kind = 3 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    update runs set
        status = new.a, generation = new.b, owner = new.c, lease_until = new.d, ready_at = new.e,
        reason = new.f, interruptions = new.g, lone_interruptions = new.h, steps = new.i,
        memo_bytes = new.j, last_order = new.k
    where id = new.run_id;
end;

create temp trigger write_step instead of insert on writes when new.kind = 4 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    insert into steps (
        run_id, id, name, repeat, kind, state, attempt, ord, value, error, due, began_at, ended_at
    ) values (
        new.run_id, new.a, new.b, new.c, new.d, new.e, new.f, new.g, new.h, new.i, new.j, new.k,
        new.l
    )
    on conflict (run_id, id) do update set
        state = excluded.state, attempt = excluded.attempt, ord = excluded.ord,
        value = excluded.value, error = excluded.error, due = excluded.due,
        ended_at = excluded.ended_at
    where state < 3;
end;

create temp trigger write_waits_closed instead of insert on rare_writes when new.kind = 5 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    delete from waits where run_id = new.run_id and step_id = new.a;
end;

create temp trigger write_wait instead of insert on rare_writes when new.kind = 6 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    insert into waits (run_id, step_id, label, event, path, text, pairs, expression, deadline)
    values (new.run_id, new.a, new.b, new.c, new.d, new.e, new.f, new.g, new.h)
    on conflict (run_id, step_id, label) do nothing;
end;

create temp trigger write_attempt instead of insert on rare_writes when new.kind = 7 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    insert into attempts (run_id, step, attempt, began_at, ended_at, error)
    values (new.run_id, new.a, new.b, new.c, new.d, new.e);
end;

-- An event that arrives by itself is refused when its id is known. One that belongs to a run's step
-- is passed over then, for the step is done either way, and so is one of many that came together.
create temp trigger write_event instead of insert on rare_writes when new.kind = 8 begin
    select raise(ignore)
    where new.generation is not null and not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    select raise(ignore)
    where new.generation is null and not new.g
        and exists (select 1 from events where id = new.a) and refused(new.n);
    insert into events (id, name, data, ts, received_at, settled, internal_id, extra)
    values (new.a, new.b, new.c, new.d, new.e, new.f, new.h, nullif(new.i, cast('{}' as blob)))
    on conflict (id) do nothing;
end;

create temp trigger write_event_used instead of insert on rare_writes when new.kind = 9 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    insert into event_uses (run_id, event_id) values (new.run_id, new.a)
    on conflict (run_id, event_id) do nothing;
end;

create temp trigger write_event_settled instead of insert on rare_writes when new.kind = 10 begin
    update events set settled = 1 where id = new.a;
end;

create temp trigger write_delivered instead of insert on rare_writes when new.kind = 11 begin
    delete from payloads
    where run_id = new.a and part = 'response'
        and exists (select 1 from runs where id = new.a and until_delivered);
    update runs set omitted = 'delivered' where id = new.a and until_delivered;
end;

create temp trigger write_inbox_taken instead of insert on rare_writes when new.kind = 12 begin
    delete from inbox where id = new.a;
end;

create temp trigger write_request instead of insert on rare_writes when new.kind = 13 begin
    insert into requests (at, method, route, status, elapsed, run_id)
    values (new.a, new.b, new.c, new.d, new.e, new.f);
end;

create temp trigger write_origin instead of insert on rare_writes when new.kind = 19 begin
    insert into origins (origin, at) values (new.a, new.b) on conflict (origin) do nothing;
end;

create temp trigger write_chunks instead of insert on stream_writes when new.kind = 15 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    insert into chunks (run_id, position, count, kind, step, attempt, first, size, data)
    values (new.run_id, new.a, new.b, new.c, new.d, new.e, new.f, new.g, new.h);
end;

create temp trigger write_stream instead of insert on stream_writes when new.kind = 16 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    insert into streams (
        run_id, tail, size, open, outside, outside_committed, handed_over, is_wary
    ) values (new.run_id, new.a, new.b, new.c, new.d, new.e, new.f, new.g)
    on conflict (run_id) do update set
        tail = excluded.tail, size = excluded.size, open = excluded.open,
        outside = excluded.outside, outside_committed = excluded.outside_committed,
        handed_over = excluded.handed_over, is_wary = excluded.is_wary;
end;

create temp trigger write_stream_skipped instead of insert on stream_writes when new.kind = 17 begin
    select raise(ignore)
    where not exists (
        select 1 from runs
        where id = new.run_id and generation = new.generation and (new.states >> status) & 1
    ) and refused(new.n);
    -- There may be no row: a loss of power may have taken the log from its beginning.
    insert into streams (
        run_id, tail, size, open, outside, outside_committed, handed_over, is_wary
    ) values (new.run_id, new.a, 0, '{}', 0, 0, null, 1)
    on conflict (run_id) do update set tail = tail + excluded.tail, is_wary = 1;
end;

-- Retention, some rows at a time, so that no batch waits long behind it.
create temp trigger write_sweep instead of insert on rare_writes when new.kind = 14 begin
    -- A long stream first loses its records, portion by portion, and only then its run. Always the
    -- oldest runs are looked at, and no others: behind a backlog of streams there may be millions.
    delete from chunks where (run_id, position) in (
        select chunks.run_id, chunks.position from chunks
        where chunks.run_id in (
            select id from runs where ended_at < new.a order by ended_at limit new.e
        )
        limit new.d
    );
    delete from streams where run_id in (
        select id from (select id from runs where ended_at < new.a order by ended_at limit new.e)
        where not exists (select 1 from chunks where run_id = id)
    );
    delete from payloads where run_id in (
        select id from (select id from runs where ended_at < new.a order by ended_at limit new.e)
        where not exists (select 1 from chunks where run_id = id)
    );
    delete from steps where run_id in (
        select id from (select id from runs where ended_at < new.a order by ended_at limit new.e)
        where not exists (select 1 from chunks where run_id = id)
    );
    delete from attempts where run_id in (
        select id from (select id from runs where ended_at < new.a order by ended_at limit new.e)
        where not exists (select 1 from chunks where run_id = id)
    );
    delete from event_uses where run_id in (
        select id from (select id from runs where ended_at < new.a order by ended_at limit new.e)
        where not exists (select 1 from chunks where run_id = id)
    );
    delete from runs where id in (
        select id from (select id from runs where ended_at < new.a order by ended_at limit new.e)
        where not exists (select 1 from chunks where run_id = id)
    );
    delete from requests where id in (
        select id from requests order by id limit new.d
    ) and at < new.a;
    delete from events where id in (
        select id from events where received_at < new.b order by received_at limit new.d
    );
    delete from payloads where part = 'response' and run_id in (
        select id from runs
        where until_delivered and omitted = '' and ended_at < new.c order by ended_at limit new.e
    );
    update runs set omitted = 'delivered' where id in (
        select id from runs
        where until_delivered and omitted = '' and ended_at < new.c order by ended_at limit new.e
    );
end;
