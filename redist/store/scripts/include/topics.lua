-- @include shared_values
-- @lazy
-- Topics. topic:NAME has the ids of the messages that some subscriber has not read, subscribers:NAME each one's last.

-- As work, `NAME`: messages that all have read go; all, where nobody is subscribed.
function S.trim(name)
  local least = call('ZRANGE', P .. 'subscribers:' .. name, 0, 0, 'WITHSCORES')[2] or '+inf'
  local ids = call('ZRANGEBYSCORE', P .. 'topic:' .. name, '-inf', least, 'LIMIT', 0, SLICE)
  S.many('ZREM', P .. 'topic:' .. name, ids)
  for _, id in ipairs(ids) do
    S.drop_shared('topic', name, id)
  end
  if #ids == SLICE then
    S.later('trim ' .. name)
  end
  return 1 + 3 * #ids
end

-- As work, `CURSOR NAME`: tell the subscribers that there is a message.
function S.announce(argument)
  local cursor, name = match(argument, '^(%d+) (.*)$')
  local reply = call('ZSCAN', P .. 'subscribers:' .. name, cursor, 'COUNT', SLICE)
  for i = 1, #reply[2], 2 do
    S.hear(match(reply[2][i], '^(%d+) (.*)$'))
  end
  if reply[1] ~= '0' then
    S.later('announce ' .. reply[1] .. ' ' .. name)
  end
  return 1 + #reply[2]
end

function S.leave_sub(ordinal, token, _, names)
  call('ZREM', P .. 'subscribers:' .. names[1], ordinal .. ' ' .. token)
  S.later('trim ' .. names[1])
end
