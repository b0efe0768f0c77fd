-- All runs but the completed, by status: who looks for the few that are parked does not go through
-- the many that are done. It has the place of an index of those that are running, so that a run
-- that is completed at once costs what it did before.

drop index runs_running;
create index runs_not_completed on runs (status, id) where status <> 5;
