-- @include callers
-- @lazy
-- Cancelling: references go, and so does what depends on the key, where nobody else wants it. Items are
-- `cancel ORDINAL FORCE REASON\nNAME`, so that a later slice still knows why.

local HOPS = 64 -- what depends on a task that is not told wholly is cancelled, so deep, before it errs

-- One holder loses its reference by force or by its own wish.
local function strip_reference(name, h, ordinal, reason)
  local field = 'refs:' .. ordinal
  local count = h[field]
  if not count then
    return
  end
  call('SREM', P .. 'holds:' .. ordinal, name)
  if match(ordinal, '^[1-9]') then
    S.count(ordinal, -count)
    S.tell_cancelled(ordinal, name, reason)
  end
  S.unset(name, h, field)
  if h.linking == ordinal then
    S.later('abandon ' .. HOPS .. ' ' .. name)
  end
end

-- What runs for nobody any more is interrupted by its worker, which looks whether it still runs. What depends on the key is
-- being cancelled, too.
local function interrupt(h)
  local x, attempt = match(h.state, '^processing e(%d+)%.(%d+)$')
  if not x or h.pins then
    return
  end
  for field in pairs(h) do
    if sub(field, 1, 5) == 'refs:' then
      return
    end
  end
  local executor = S.caller(x)
  if executor and executor.worker then
    call('RPUSH', P .. 'inbox:' .. executor.worker, cmsgpack.pack({ 'interrupt', x, attempt }))
    S.publish('to:' .. executor.worker, { 'c' })
  end
end

function S.cancel(argument)
  local ordinal, force, reason, name = match(argument, '^(%d+) (%d) ([^\n]*)\n(.*)$')
  local h = rec(name)
  if not h or h.state == 'forgetting' then
    return 1
  end
  if force == '1' then
    local holders = {}
    for field in pairs(h) do
      holders[#holders + 1] = match(field, '^refs:(%d+)$')
    end
    for _, holder in ipairs(holders) do
      strip_reference(name, h, holder, reason)
    end
    interrupt(h)
  else
    strip_reference(name, h, ordinal, reason)
  end
  if h.needed then
    S.later('cancel_users 0 ' .. argument)
    S.later('cancel_waiters 0 ' .. argument)
  end
  S.later('free ' .. name)
  return 4
end

local function cancel_dependents(verb, set, argument)
  local cursor, how, name = match(argument, '^(%d+) (%d+ %d [^\n]*\n)(.*)$')
  local reply = call('SSCAN', P .. set .. name, cursor, 'COUNT', SLICE)
  for _, dependent in ipairs(reply[2]) do
    S.later('cancel ' .. how .. dependent)
  end
  if reply[1] ~= '0' then
    S.later(verb .. ' ' .. reply[1] .. ' ' .. how .. name)
  end
  return 1 + #reply[2]
end

function S.cancel_users(argument)
  return cancel_dependents('cancel_users', 'users:', argument)
end

function S.cancel_waiters(argument)
  return cancel_dependents('cancel_waiters', 'waiters:', argument)
end
