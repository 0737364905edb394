-- @include records
-- @lazy
-- Reading and writing the fields of records.

-- Set fields, given as strings in pairs.
function S.set(name, h, ...)
  call('HSET', RECORD .. name, ...)
  for i = 1, select('#', ...), 2 do
    h[select(i, ...)] = (select(i + 1, ...))
  end
end

-- Remove those of the named fields that are there.
function S.unset(name, h, ...)
  local there
  for i = 1, select('#', ...) do
    local field = select(i, ...)
    if h[field] then
      h[field] = nil
      there = there or {}
      there[#there + 1] = field
    end
  end
  if there then
    call('HDEL', RECORD .. name, unpack(there))
  end
end

-- Add to a counter; a counter of 0 has no field.
function S.bump(name, h, field, by)
  local value = (tonumber(h[field]) or 0) + by
  if value <= 0 then
    h[field] = nil
    call('HDEL', RECORD .. name, field)
  else
    h[field] = int(value)
    call('HSET', RECORD .. name, field, h[field])
  end
  return value
end

-- The shared helper for what may be long: a short value lies in the field `data`, a long one in data:NAME, with an empty field.
function S.data_field(name, value)
  if #value <= COMPACT then
    return value
  end
  call('SET', P .. 'data:' .. name, value)
  return ''
end

function S.read_data(name, h)
  local data = h.data
  if data == '' then
    return call('GET', P .. 'data:' .. name)
  end
  return data
end

-- Whether a worker holds a copy, and where: `3.4711 4.4712`.
function S.where(h)
  local found
  for field, attempt in pairs(h) do
    if sub(field, 1, 2) == 'w:' then
      found = (found and found .. ' ' or '') .. sub(field, 3) .. '.' .. attempt
    end
  end
  return found
end

-- Whether the field `data` holds a run spec (an inline value took its place, and scattered data never had one).
function S.has_spec(h)
  return h.data and (word(h.state) ~= 'memory' or S.where(h) ~= nil)
end

-- Redis keys that go when the script ends, in few calls.
function S.remove(key)
  gone[#gone + 1] = key
end

-- Begin a record under a name that this script may just have forgotten.
function S.create(name, h)
  if cache[name] == false and gone[1] then
    flush_gone()
  end
  if not cache[name] then
    born = born + 1
  end
  cache[name] = h
end

-- Items `VERB CURSOR NAME` walk a set. Returns the name, the members of this step, and whether it was the last; puts the
-- next step on the list.
function S.step(verb, argument, set)
  local cursor, name = match(argument, '^(%d+) (.*)$')
  local reply = call('SSCAN', P .. set .. name, cursor, 'COUNT', SLICE)
  local ended = reply[1] == '0'
  if not ended then
    S.later(verb .. ' ' .. reply[1] .. ' ' .. name)
  end
  return name, reply[2], ended
end
