-- Times are UTC epoch milliseconds. JSON is kept as UTF-8 in BLOBs. Nothing here is a secret but
-- payloads and error texts: requests and responses are sealed before they get here.

create table runs (
    id                 text primary key,       -- ULID, made when the request began
    function_id        text not null,
    version            text not null,          -- of the application that registered the run
    status             integer not null,       -- 1 running 2 waiting 3 ready 4 parked
                                               -- 5 completed 6 failed 7 cancelled
    generation         integer not null,       -- the fencing number
    owner              text not null,          -- the process that holds the lease, or ''
    lease_until        integer,                -- null: ends only with its process
    began_at           integer not null,
    deadline           integer,                -- began_at + max_runtime
    ready_at           integer,
    ended_at           integer,
    reason             text not null default '',
    interruptions      integer not null default 0,
    lone_interruptions integer not null default 0,
    omit_request_body  integer not null,
    steps              integer not null default 0,
    memo_bytes         integer not null default 0,
    last_order         integer not null default 0,
    retries            integer not null,
    method             text not null,
    path               text not null,
    root_path          text not null,
    idempotency_key    text,
    key_scope          text not null,
    fingerprint        text not null,
    labels             blob,
    parent_run         text,
    parent_step        text,
    status_code        integer,
    omitted            text not null default '',  -- why there is no response: too_large …
    until_delivered    integer not null default 0, -- the response goes once somebody has it
    error              blob
) without rowid;

create unique index runs_key on runs (idempotency_key) where idempotency_key is not null;
create index runs_running on runs (id) where status = 1;
create index runs_ready on runs (ready_at) where status = 3;
create index runs_deadline on runs (deadline) where deadline is not null and status < 5;
create index runs_ended on runs (ended_at) where ended_at is not null;
create index runs_until_delivered on runs (ended_at) where until_delivered and omitted = '';

-- Apart from `runs`, so that a change of state does not rewrite a body of megabytes.
create table payloads (
    run_id text not null,
    part   text not null,                      -- 'request' or 'response'
    data   blob not null,
    primary key (run_id, part)
) without rowid;

-- A step's `due` is the run's timer: there is no second copy of it to keep in step.
create table steps (
    run_id   text not null,
    id       text not null,                    -- sha1 of the name, or of name:1, name:2 …
    name     text not null,
    repeat   integer not null,
    kind     text not null,
    state    integer not null,                 -- 1 pending 2 retrying 3 done 4 failed
    attempt  integer not null,
    ord      integer not null,                 -- order of completion in the run; 0 while open
    value    blob,
    error    blob,
    due      integer,
    began_at integer not null,
    ended_at integer,
    primary key (run_id, id)
) without rowid;

create index steps_due on steps (due) where due is not null;

create table attempts (
    run_id   text not null,
    step     text not null,
    attempt  integer not null,
    began_at integer not null,
    ended_at integer not null,
    error    blob not null
);

create index attempts_run on attempts (run_id);

-- One row for each event that may resolve an open step. The first equality is indexed; `pairs`
-- holds all of them.
create table waits (
    run_id     text not null,
    step_id    text not null,
    label      text not null,
    event      text not null,
    path       text not null,                  -- '' when the wait compares nothing
    text       text not null,
    pairs      blob not null,
    expression text not null,
    deadline   integer not null,
    primary key (run_id, step_id, label)
) without rowid;

create index waits_event on waits (event, path, text);

create table events (
    id          text primary key,
    name        text not null,
    data        blob not null,
    ts          integer not null,
    received_at integer not null,
    settled     integer not null
) without rowid;

create index events_name on events (name, received_at, id);
create index events_received on events (received_at);
create index events_unsettled on events (received_at) where not settled;

create table event_uses (
    run_id   text not null,
    event_id text not null,
    primary key (run_id, event_id)
) without rowid;

-- Written by other processes, carried out by the one that owns the dispatcher role.
create table inbox (
    id   integer primary key,
    at   integer not null,
    kind text not null,                        -- 'event', 'cancel' or 'retry'
    data blob not null
);

create table requests (
    id      integer primary key,
    at      integer not null,
    method  text not null,
    route   text not null,
    status  integer not null,
    elapsed integer not null,                  -- microseconds
    run_id  text
);

create table logs (
    run_id  text not null,
    seq     integer not null,
    at      integer not null,
    step    text,
    level   text not null,
    message text not null,
    data    blob,
    primary key (run_id, seq)
) without rowid;

create table streams (
    pk           integer primary key,
    run_id       text unique,
    content_type text not null,
    tail_seq     integer not null,
    tail_bytes   integer not null,
    first_seq    integer not null,
    state        text not null,                -- 'open' or 'closed'
    end_reason   text,
    created_at   integer not null,
    expires_at   integer
);

create table chunks (
    stream_pk integer not null,
    seq       integer not null,
    kind      integer not null,
    step      text,
    attempt   integer not null,
    data      blob not null,
    byte_end  integer not null,
    at        integer not null,
    primary key (stream_pk, seq)
) without rowid;

create table producers (
    stream_pk   integer not null,
    producer_id text not null,
    epoch       integer not null,              -- (generation, attempt) as one number
    last_seq    integer not null,
    primary key (stream_pk, producer_id)
) without rowid;
