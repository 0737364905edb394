-- @include reader
-- Read the events of a topic behind the first so many that were ever logged, as far as they are kept.
-- KEYS[1] META
-- ARGV[1] header, topic, how many were read (-1: read none)
-- Reply OK how many were ever logged, then `MS EVENT` each
local topic, after = a[BODY], a[BODY + 1]
local count = tonumber(call('HGET', P .. 'logs', topic) or 0)
if after < 0 or after >= count then
  return { 'OK', count }
end
return { 'OK', count, unpack(call('LRANGE', P .. 'log:' .. topic, int(after - count), -1)) }
