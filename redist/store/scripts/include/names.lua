-- @first
-- Where everything lies: KEYS[1] is redist:{NAMESPACE}:meta and routes the script; all other keys share its prefix and slot.
local P = string.sub(KEYS[1], 1, -5)
local META, RECORD = KEYS[1], P .. 'key:'
local call, sub, match, format, concat = redis.call, string.sub, string.match, string.format, table.concat
local SLICE = 200        -- items of long work that one script carries out
local CHUNK = 1000       -- arguments of one variadic call
local PUSH_LIMIT = 1024  -- bytes of an inline value that is pushed to clients
local ERROR_LIMIT = 4096 -- bytes of a pickled error that is pushed to clients
local COMPACT = 64       -- bytes of a field, beyond which a hash loses its compact encoding
local cache, gone = {}, {} -- records by name, read once a script; Redis keys that go when it ends
local born = 0             -- records that this script made, less those that it removed; META's field `keys` is the sum
