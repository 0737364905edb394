-- @include coordination
-- @include fields
-- @include clock
-- @lazy
-- Who reads a value that the server holds keeps it by a hand-off, until it has bound what the value contains and leaves.

-- A hand-off ends: `TOKEN NAME`.
function S.drop_handoff(member)
  if call('ZREM', P .. 'handoffs', member) == 1 then
    local name = match(member, '^%S+ (.*)$')
    local h = rec(name)
    if h then
      if tonumber(h['refs:h'] or 0) <= 1 then
        S.let_go(name, h, 'refs:h')
      else
        S.bump(name, h, 'refs:h', -1)
      end
    end
  end
end

-- Read a record for the request TOKEN: its value.
function S.read_for(token, record, h)
  if call('ZADD', P .. 'handoffs', int(S.now() + 300000), token .. ' ' .. record) == 1 then
    S.bump(record, h, 'refs:h', 1)
  end
  S.note(ME, token, 'read', '', { record })
  return S.read_data(record, h)
end

-- What the request has read and still keeps: the record and its value, or nothing.
function S.read_before(token)
  local kind, _, names = S.ask(ME, token)
  if kind == 'read' and call('ZSCORE', P .. 'handoffs', token .. ' ' .. names[1]) then
    local h = rec(names[1])
    return names[1], S.read_data(names[1], h)
  end
end

function S.leave_read(_, token, _, names)
  S.drop_handoff(token .. ' ' .. names[1])
end
