-- @include reader
-- Read how something stands that callers coordinate by.
-- KEYS[1] META
-- ARGV[1] header, kind, name
-- Reply OK 0, by kind: leases that are held (lock), 1 if it is set (event), items (queue), subscribers (topic)
local kind, name = a[BODY], a[BODY + 1]
local value
if kind == 'lock' then
  local limit = tonumber(call('HGET', P .. 'limits', 'lock ' .. name) or 1)
  value = math.min(math.abs(limit), call('ZCARD', P .. 'lock:' .. name))
elseif kind == 'event' then
  value = call('SISMEMBER', P .. 'events', name)
elseif kind == 'queue' then
  value = call('ZCARD', P .. 'items:' .. name)
else
  value = call('ZCARD', P .. 'subscribers:' .. name)
end
return { 'OK', 0, value }
