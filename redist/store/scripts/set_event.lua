-- @include lane
-- @include freeing
-- @include callers
-- Set or clear an event. Whoever waits when it is set has what it waited for, also if it is cleared at once.
-- KEYS[1] META
-- ARGV[1] header, name, 1 to set it
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local name = a[BODY]
if a[BODY + 1] == 1 then
  call('SADD', P .. 'events', name)
  if call('EXISTS', P .. 'waits:event ' .. name) == 1 then
    S.later('wake ' .. int(S.asked()) .. ' event ' .. name)
  end
else
  call('SREM', P .. 'events', name)
end
return S.done(S.settle_up())
