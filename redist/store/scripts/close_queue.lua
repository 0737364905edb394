-- @include lane
-- @include freeing
-- @include callers
-- @include queueing
-- Use a queue no more. If nobody else does, all its items go; who waits waits on.
-- KEYS[1] META
-- ARGV[1] header, name
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
S.end_ask(ME, 'open queue ' .. a[BODY])
if call('EXISTS', P .. 'openers:queue ' .. a[BODY]) == 0 then
  S.later('empty ' .. int(S.asked()) .. ' ' .. a[BODY])
end
return S.done(S.settle_up())
