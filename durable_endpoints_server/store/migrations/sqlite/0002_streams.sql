-- The stream log of a run. The tables that 0001 made for it were never written.

drop table streams;
drop table chunks;
drop table producers;

create table streams (
    run_id            text primary key,
    tail              integer not null,        -- the last position
    size              integer not null,        -- weight of all records
    open              blob not null,           -- JSON: step -> first chunk that is not ended
    outside           integer not null,        -- chunks pushed outside steps
    outside_committed integer not null,
    handed_over       integer,                 -- the tail when the first execution had left
    is_wary           integer not null
) without rowid;

-- One row for the chunks that one try of a step pushed in one go, and one for the end of each try.
create table chunks (
    run_id   text not null,
    position integer not null,                 -- of the first chunk
    count    integer not null,                 -- positions it takes
    kind     integer not null,                 -- 1 data 2 commit 3 rollback
    step     text not null,                    -- hash of the step's id, '' outside steps
    attempt  integer not null,
    first    integer not null,                 -- where the chunks begin that an end is about
    size     integer not null,                 -- weight: bytes of data, and 100 for each position
    data     blob not null,                    -- JSON values, one on each line
    primary key (run_id, position)
) without rowid;

create index chunks_rollbacks on chunks (run_id, position) where kind = 3;
