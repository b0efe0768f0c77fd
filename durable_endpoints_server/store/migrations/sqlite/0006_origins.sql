-- Where applications of other SDKs may be called back, as somebody with a signing key has said.

create table origins (
    origin text primary key,  -- https://host:port
    at integer not null       -- epoch ms
) without rowid;
