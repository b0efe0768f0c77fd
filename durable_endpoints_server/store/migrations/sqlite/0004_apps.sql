-- One engine may serve several applications: which of them a run belongs to.

alter table runs add column app text not null default '';  -- its name, or its origin; or ''
