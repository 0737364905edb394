-- @include lane
-- @include growing
-- @include clock
-- @include publish
-- Log an event under topics, each of which keeps its newest ones, and tell who listens to look.
-- KEYS[1] META
-- ARGV[1] header, how many are kept, event, topics
-- Reply OK 0
if repeated then
  return { 'REPEAT', 0 }
end
local event = int(S.now()) .. ' ' .. a[BODY + 1]
for i = BODY + 2, #a do
  local log = 'log:' .. a[i]
  call('RPUSH', P .. log, event)
  call('LTRIM', P .. log, -a[BODY], -1)
  call('HINCRBY', P .. 'logs', a[i], 1)
  S.publish(log, { 'e' })
end
return S.done(0)
