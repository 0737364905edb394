-- @include lane
-- @include growing
-- @include callers
-- Note that a client uses a queue: as long as somebody does, it keeps its size.
-- KEYS[1] META
-- ARGV[1] header, name, items that it may have (0: any number)
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local limit = call('HGET', P .. 'limits', 'queue ' .. a[BODY])
S.open('queue', a[BODY], tonumber(limit or a[BODY + 1]))
return S.done(0)
