-- @include eligible
-- @include publish
-- @lazy
-- What a worker says of itself: executors of one that is closing are paused, and get nothing more.
function S.set_status(w, status)
  call('HSET', P .. 'caller:' .. w, 'status', status)
  if status == 'closing' then
    S.publish('all', { 'w', w }) -- nobody is to store anything there
  end
  local c = S.caller(w)
  if c then
    c.status = status
  end
  for _, x in ipairs(call('SMEMBERS', P .. 'executors:' .. w)) do
    if status == 'running' then
      call('HDEL', P .. 'caller:' .. x, 'paused')
    elseif status == 'strained' then
      call('HSET', P .. 'caller:' .. x, 'paused', '0')
    else
      call('HSET', P .. 'caller:' .. x, 'paused', '1')
      call('ZREM', P .. 'idle', x)
    end
    S.publish('to:' .. x, { 't', 0 })
  end
end
