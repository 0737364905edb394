-- @include lane
-- @include freeing
-- @include callers
-- @include locks
-- @include answers
-- End requests, whatever they came to: a lock is released, what waits waits no more, what was given is given back unless it
-- is taken.
-- KEYS[1] META
-- ARGV[1] header, 1 if what was given is taken, tokens
-- Reply OK more, how many there were, how many of them could not be undone (an item that was put, and somebody got)
if repeated then
  local before = S.kept_answer()
  return { 'REPEAT', 0, before[1] or #a - BODY, before[2] or 0 }
end
local found, done = 0, 0
for i = BODY + 1, #a do
  local there, stays = S.end_ask(ME, a[i], a[BODY] == 1)
  found, done = found + there, done + stays
end
if done > 0 then
  S.keep_answer({ found, done })
end
return S.done(S.settle_up(), found, done)
