-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- Leave: what the caller holds is released, what it ran goes to others, its record goes.
-- KEYS[1] META
-- ARGV[1] header
-- Reply OK more (said again: UNKNOWN)
local c = call('HMGET', me, 'kind', 'name')
if c[1] == 'client' then
  if call('HGET', P .. 'named', c[2]) == ME then
    call('HDEL', P .. 'named', c[2])
  end
  S.gone_client(ME)
elseif c[1] == 'executor' then
  S.gone_executor(ME, 'it was closed', {})
else
  S.gone_worker(ME, 'closed')
end
return { 'OK', S.settle_up() }
