-- @include reader
-- @include freeing
-- @include sweep
-- @include cancelling
-- @include wiping
-- Carry out a slice of the work list. Anybody may; items re-check state.
-- KEYS[1] META
-- ARGV[1] header (not used)
-- Reply OK more
local popped = call('LPOP', P .. 'work', SLICE) or {}
for _, item in ipairs(popped) do
  S.later(item)
end
local more = S.settle_up(SLICE, #popped)
if more == 0 and call('EXISTS', P .. 'work') == 1 then
  more = 1
end
return { 'OK', more }
