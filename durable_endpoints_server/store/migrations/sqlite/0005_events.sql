-- What the event API tells of events besides: an id of the engine's own, and what the sender gave
-- along with the data.

alter table events add column internal_id text not null default '';  -- '' where `id` is the only one
alter table events add column extra blob;                            -- JSON object: user, v

create index events_internal on events (internal_id) where internal_id <> '';
