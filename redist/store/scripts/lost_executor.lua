-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- A worker reports that one of its executors died. Only the attempts that it ran are blamed.
-- KEYS[1] META
-- ARGV[1] header, executor, reason, attempts that were running
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local x = int(a[BODY])
if call('SISMEMBER', P .. 'executors:' .. ME, x) == 1 then
  local running = {}
  for i = BODY + 2, #a do
    running[int(a[i])] = true
  end
  S.gone_executor(x, a[BODY + 1], running)
end
return S.done(S.settle_up())
