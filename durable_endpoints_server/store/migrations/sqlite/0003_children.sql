-- Runs that were invoked by other runs, and the steps that wait for them.

alter table runs add column depth integer not null default 0;  -- how many runs are above it

create index runs_children on runs (parent_run, parent_step) where parent_run is not null;
create index runs_unfinished_children on runs (id) where parent_run is not null and status < 5;
create index steps_invoked on steps (run_id, id) where kind = 'invoke' and state = 1;
