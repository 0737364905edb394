-- @include lane
-- @include freeing
-- @include callers
-- @include locks
-- Close a semaphore: nobody can ask for a lease until it is opened again. Who holds or waits for one is not disturbed.
-- KEYS[1] META
-- ARGV[1] header, name
-- Reply OK more, leases that are still held or waited for
if repeated then
  return { 'REPEAT', 0, call('ZCARD', P .. 'lock:' .. a[BODY]) }
end
local what = 'lock ' .. a[BODY]
local limit = call('HGET', P .. 'limits', what)
if limit then
  call('UNLINK', P .. 'openers:' .. what)
  call('HSET', P .. 'limits', what, int(-math.abs(tonumber(limit))))
  S.settle_limit('lock', a[BODY])
end
return S.done(S.settle_up(), call('ZCARD', P .. 'lock:' .. a[BODY]))
