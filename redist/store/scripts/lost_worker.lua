-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- @include status
-- A worker that was registered as INCARNATION is dead for certain, and its executors die with it: they get nothing more, none
-- of what they say is heard, and what they ran goes to others, as when its lease has ended. Nobody is blamed. Its copies stay
-- until then: another may yet take over its files. One that has registered anew, or has gone, is left alone.
-- KEYS[1] META
-- ARGV[1] header, worker, incarnation
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local w = int(a[BODY])
local c = S.caller(w)
if c and c.kind == 'worker' and c.inc ~= '' and c.inc == a[BODY + 1] then
  S.gone_executors(w)
  S.set_status(w, 'closing') -- nothing is scattered there, and one that registers yet gets nothing
end
return S.done(S.settle_up())
