-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- Leave: what the caller holds is released, what it ran goes to others, its record goes.
-- KEYS[1] META
-- ARGV[1] header
-- Reply OK more (said again: UNKNOWN)
local kind = call('HGET', me, 'kind')
if kind == 'client' then
  S.gone_client(ME)
elseif kind == 'executor' then
  S.gone_executor(ME, 'it was closed', {})
else
  S.gone_worker(ME, 'closed')
end
return { 'OK', S.settle_up() }
