-- @include reader
-- @include freeing
-- @include sweep
-- @include status
-- Renew a caller's lease, compare its counts with the server's, and do a share of the sweep.
-- KEYS[1] META
-- ARGV[1] header (its n is not used), lease in ms, last n sent, keys (client) or files (worker), sum and checksum of the counts,
--   status and metrics of a worker
-- Reply OK more generation pushed n agree
local ME = int(a[1])
local me = P .. 'caller:' .. ME
local c = call('HMGET', me, 'inc', 'kind', 'n', 'sum', 'pushed', 'status', 'retired')
if c[1] ~= a[2] then
  return { 'UNKNOWN' }
end
local lease, last_n, count, total, checksum, status, metrics = unpack(a, BODY, BODY + 6)
local kind = c[2]
local now = S.now()
if kind == 'executor' then
  call('HSET', me, 'seen', int(now))
else
  call('ZADD', P .. 'leases', int(now + lease), ME)
  call('HSET', me, 'seen', int(now), 'lease', int(lease))
end
local agree = 1
if kind == 'worker' then
  agree = call('HLEN', P .. 'has:' .. ME) == count and 1 or 0
  call('HSET', me, 'metrics', metrics)
  if c[7] and status ~= '' then
    status = 'closing' -- it may not have read yet that it is
  end
  if status ~= '' and status ~= c[6] then
    S.set_status(ME, status)
  end
elseif tonumber(c[3]) == last_n then
  agree = call('SCARD', P .. 'holds:' .. ME) == count and tonumber(c[4] or 0) == total and 1 or 0
  call('HSET', me, 'checksum', int(checksum), 'checked', int(last_n))
end
S.sweep()
local more = S.settle_up()
if more == 0 and call('EXISTS', P .. 'work') == 1 then
  more = 1
end
return { 'OK', more, tonumber(epoch[1] or 1), tonumber(c[5] or 0), tonumber(c[3]), agree }
