-- @include parts
-- Records of keys, read once a script. h is the hash as a table of strings; false stands for a key that is not known.

local function rec(name)
  local h = cache[name]
  if h == nil then
    local flat = call('HGETALL', RECORD .. name)
    if flat[1] == nil then
      h = false
    else
      h = {}
      for i = 1, #flat, 2 do
        h[flat[i]] = flat[i + 1]
      end
    end
    cache[name] = h
  end
  return h
end

-- The memory rule: references, pins, or an unfinished dependent.
local function wanted(h)
  if h.pins or h.needed then
    return true
  end
  for field in pairs(h) do
    if sub(field, 1, 5) == 'refs:' then
      return true
    end
  end
  return false
end

local function flush_gone()
  for i = 1, #gone, CHUNK do
    call('UNLINK', unpack(gone, i, math.min(i + CHUNK - 1, #gone)))
  end
  gone = {}
end
