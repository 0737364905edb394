-- @include lane
-- @include freeing
-- @include callers
-- @include locks
-- End requests, whatever they came to: a lock is released, what waits waits no more, what was given is given back unless it
-- is taken.
-- KEYS[1] META
-- ARGV[1] header, 1 if what was given is taken, tokens
-- Reply OK more, how many there were
if repeated then
  return { 'REPEAT', 0, #a - BODY }
end
local found = 0
for i = BODY + 1, #a do
  found = found + S.end_ask(ME, a[i], a[BODY] == 1)
end
return S.done(S.settle_up(), found)
