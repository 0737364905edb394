-- @include forget
-- @lazy
-- What callers asked of locks, events, queues, variables and topics, and have not left yet. asks:ORD holds token -> `KIND
-- STATE` and names, one a line. A place in a line is `ORD TOKEN`, scored by the order of asking. All of it is found by token,
-- so that a call that is made again changes nothing, and is answered from here.
local heard = {}

function S.ask(ordinal, token)
  local text = call('HGET', P .. 'asks:' .. ordinal, token)
  if not text then
    return
  end
  local kind, state, rest = match(text, '^(%S+) ([^\n]*)\n?(.*)$')
  local names = {}
  for name in string.gmatch(rest, '[^\n]+') do
    names[#names + 1] = name
  end
  return kind, state, names
end

function S.note(ordinal, token, kind, state, names)
  call('HSET', P .. 'asks:' .. ordinal, token, kind .. ' ' .. state .. '\n' .. concat(names, '\n'))
end

-- The number of a request: who asks first is first in line.
function S.asked()
  return call('HINCRBY', META, 'asked', 1)
end

-- Tell the caller that its request has what it waited for.
function S.hear(ordinal, token)
  local tokens = heard[ordinal]
  if not tokens then
    tokens = {}
    heard[ordinal] = tokens
  end
  tokens[#tokens + 1] = token
end

closers[#closers + 1] = function()
  for ordinal, tokens in pairs(heard) do
    local c = call('HMGET', P .. 'caller:' .. ordinal, 'inc', 'n')
    if c[1] and c[1] ~= '' then
      local number = call('HINCRBY', P .. 'caller:' .. ordinal, 'pushed', 1)
      S.publish('to:' .. ordinal, { 'y', number, c[2], unpack(tokens) })
    end
  end
end

-- Leave: a request ends, whatever it has come to. With `taken` what was given stays with the caller. Returns 1 if there was
-- one, and 1 if it could not be undone.
function S.end_ask(ordinal, token, taken)
  local kind, state, names = S.ask(ordinal, token)
  if not kind then
    return 0, 0
  end
  local stays
  call('HDEL', P .. 'asks:' .. ordinal, token)
  if kind ~= 'done' then
    stays = S['leave_' .. kind](ordinal, token, state, names, taken)
  end
  return 1, stays and 1 or 0
end

-- As work, `CURSOR ORDINAL KEEP`: all requests of a caller end, but those whose token begins with KEEP (`-`: none are kept).
function S.quit(argument)
  local cursor, ordinal, keep = match(argument, '^(%d+) (%d+) (%S+)$')
  local reply = call('HSCAN', P .. 'asks:' .. ordinal, cursor, 'COUNT', SLICE)
  local following, last = reply[1], #reply[2]
  if keep == '-' and last > SLICE then -- a compact hash is read whole; where all go, the rest is found again
    following, last = 'again', SLICE
  end
  for i = 1, last, 2 do
    if sub(reply[2][i], 1, #keep) ~= keep then
      S.end_ask(ordinal, reply[2][i])
    end
  end
  if following ~= '0' then
    S.later('quit ' .. (following == 'again' and '0' or following) .. ' ' .. ordinal .. ' ' .. keep)
  end
  return 1 + 5 * last
end

-- The bound of a semaphore or queue, `KIND NAME`, is known while somebody opened it, or it is in use.
function S.open(kind, name, limit)
  local what = kind .. ' ' .. name
  call('HSET', P .. 'limits', what, int(limit))
  call('SADD', P .. 'openers:' .. what, ME)
  S.note(ME, 'open ' .. what, 'open', kind, { name })
end

function S.leave_open(ordinal, _, kind, names)
  call('SREM', P .. 'openers:' .. kind .. ' ' .. names[1], ordinal)
  S.settle_limit(kind, names[1])
end

function S.settle_limit(kind, name)
  local what = kind .. ' ' .. name
  local used
  if kind == 'lock' then
    used = call('EXISTS', P .. 'openers:' .. what, P .. 'lock:' .. name)
  else
    used = call('EXISTS', P .. 'openers:' .. what, P .. 'items:' .. name, P .. 'waits:get ' .. name, P .. 'waits:put ' .. name)
  end
  if used == 0 then
    call('HDEL', P .. 'limits', what)
  end
end

-- A line of those who wait for one thing.
function S.wait_in(line, token)
  call('ZADD', P .. 'waits:' .. line, int(S.asked()), ME .. ' ' .. token)
  S.note(ME, token, 'wait', line, {})
end

function S.leave_wait(ordinal, token, line)
  call('ZREM', P .. 'waits:' .. line, ordinal .. ' ' .. token)
end

-- As work, `NUMBER KIND NAME`: those who asked up to then have what they waited for.
function S.wake(argument)
  local number, line = match(argument, '^(%d+) (.*)$')
  local members = call('ZRANGEBYSCORE', P .. 'waits:' .. line, '-inf', number, 'LIMIT', 0, SLICE)
  S.many('ZREM', P .. 'waits:' .. line, members)
  for _, member in ipairs(members) do
    local ordinal, token = match(member, '^(%d+) (.*)$')
    S.note(ordinal, token, 'done', '', {})
    S.hear(ordinal, token)
  end
  if #members == SLICE then
    S.later('wake ' .. argument)
  end
  return 1 + 3 * #members
end
