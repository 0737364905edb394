-- @include coordination
-- @lazy
-- Values of variables, queues and topics: each is a record `@@KIND@NAME@ID` that holds its Futures as any container does, and
-- is held by `refs:c` until it is taken, replaced or deleted.

function S.keep_value(kind, name, id, data, names)
  local record = '@@' .. kind .. '@' .. name .. '@' .. id
  local h = { state = 'memory', ['refs:c'] = '1', nbytes = int(#data), type = kind, data = S.data_field(record, data),
    contains = '0' }
  call('HSET', RECORD .. record, 'state', h.state, 'refs:c', '1', 'nbytes', h.nbytes, 'type', kind, 'data', h.data,
    'contains', '0')
  S.create(record, h)
  call('SADD', P .. 'holds:c', record)
  S.pin('0 ' .. record, names)
end

function S.drop_shared(kind, name, id)
  local record = '@@' .. kind .. '@' .. name .. '@' .. id
  call('SREM', P .. 'holds:c', record)
  local h = rec(record)
  if h and h['refs:c'] then
    S.let_go(record, h, 'refs:c')
  end
end

-- The value, or nothing: a restart forgets all of them.
function S.shared_value(kind, name, id)
  local record = '@@' .. kind .. '@' .. name .. '@' .. id
  local h = rec(record)
  if h and h['refs:c'] then
    return S.read_data(record, h), tonumber(h.nbytes), h
  end
end

-- The keys that a value holds, from an index of the call on; nothing and the name of the first that is not known.
function S.contents(from)
  local names = {}
  for i = from, #a do
    local h = rec(a[i])
    if not h or h.state == 'forgetting' then
      return nil, a[i]
    end
    names[#names + 1] = a[i]
  end
  return names
end
