-- Runs that are ready, by application: a backlog of one that is away hides nobody else's.

drop index runs_ready;
create index runs_ready on runs (app, ready_at) where status = 3;
