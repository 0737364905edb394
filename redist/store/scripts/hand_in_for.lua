-- @include lane
-- @include freeing
-- @include hand_in
-- @include take
-- @include clock
-- A worker hands in for one of its executors, which does not come to it: a task holds its GIL, or it died.
-- KEYS[1] META
-- ARGV[1] header, executor, then per result: name, attempt, status, nbytes, type, value
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local x = int(a[BODY])
if call('SISMEMBER', P .. 'executors:' .. ME, x) == 1 then
  for i = BODY + 1, #a, 6 do
    S.hand_in(x, ME, a[i], int(a[i + 1]), a[i + 2], a[i + 3], a[i + 4], a[i + 5])
  end
end
return S.done(S.settle_up())
