-- @include forget
-- @lazy
-- Values that the server itself holds, and the keys in them.

-- The keys that a value is said to contain, from an index of the call on; nothing and the name of the first that is not known.
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

-- A new value, held by `refs:HOLDER`, with the keys that it contains.
function S.keep(record, holder, kind, data, names)
  local field = 'refs:' .. holder
  local h = { state = 'memory', [field] = '1', nbytes = int(#data), type = kind, data = S.data_field(record, data), contains = '0' }
  call('HSET', RECORD .. record, 'state', h.state, field, '1', 'nbytes', h.nbytes, 'type', kind, 'data', h.data, 'contains', '0')
  S.create(record, h)
  call('SADD', P .. 'holds:' .. holder, record)
  S.pin('0 ' .. record, names)
end
