-- @include callers
-- @include clock
-- @include copies
-- @lazy
-- The share of the sweep that every heartbeat carries out.
local ABSENT = 6000       -- ms without any sweep after which nobody expires until a lease has passed
local SILENCE = 300000    -- ms that a client lives without a heartbeat while it still listens, unless it asked for other

local function expire(ordinal, now)
  local c = S.caller(ordinal)
  if not c then
    call('ZREM', P .. 'leases', ordinal)
  elseif c.kind == 'worker' then
    S.gone_worker(ordinal, 'no heartbeat for ' .. int((now - c.seen) / 1000) .. ' s')
  else
    local listening = S.publish('to:' .. ordinal, { 'p' })
    local last = c.seen + (c.silence or SILENCE)
    if listening > 0 and now < last then
      call('ZADD', P .. 'leases', int(math.min(now + c.lease, last)), ordinal)
    else
      S.gone_client(ordinal)
    end
  end
end

function S.sweep()
  local now = S.now()
  local swept, quiet_until = unpack(call('HMGET', META, 'swept', 'quiet_until'))
  if swept and now - swept > ABSENT then
    quiet_until = int(now + 10000)
    call('HSET', META, 'quiet_until', quiet_until)
  end
  call('HSET', META, 'swept', int(now))
  if not quiet_until or now >= tonumber(quiet_until) then
    for _, ordinal in ipairs(call('ZRANGEBYSCORE', P .. 'leases', '-inf', int(now), 'LIMIT', 0, 5)) do
      expire(ordinal, now)
    end
  end
  for _, member in ipairs(call('ZRANGEBYSCORE', P .. 'handoffs', '-inf', int(now), 'LIMIT', 0, 50)) do
    S.drop_handoff(member)
  end
  S.look_for_copies()
  if recovering and now >= tonumber(recovering) then
    recovering = false
    call('HDEL', META, 'recovering')
  end
  if not recovering then
    for _ = 1, SLICE do
      local item = call('LPOP', P .. 'deferred')
      if not item then
        break
      end
      S.later(item)
    end
  end
end
