-- What Redis's cmsgpack does with the values that redist sends: nil, booleans, integers below 2^53, strings and flat or nested
-- lists without holes. fakeredis has none.
local cmsgpack = {}
local byte, char, floor, sub = string.byte, string.char, math.floor, string.sub

local function big(number, size)
  local bytes = {}
  for i = size, 1, -1 do
    bytes[i] = char(number % 256)
    number = floor(number / 256)
  end
  return table.concat(bytes)
end

local function pack_number(n)
  if n ~= floor(n) then
    error('this cmsgpack packs no fractions')
  elseif n >= 0 then
    if n < 128 then return char(n) end
    if n < 256 then return '\204' .. char(n) end
    if n < 65536 then return '\205' .. big(n, 2) end
    if n < 4294967296 then return '\206' .. big(n, 4) end
    return '\207' .. big(n, 8)
  end
  if n >= -32 then return char(256 + n) end
  if n >= -128 then return '\208' .. char(256 + n) end
  if n >= -32768 then return '\209' .. big(65536 + n, 2) end
  return '\210' .. big(4294967296 + n, 4)
end

local function pack_string(s)
  local n = #s
  if n < 32 then return char(160 + n) .. s end
  if n < 256 then return '\217' .. char(n) .. s end
  if n < 65536 then return '\218' .. big(n, 2) .. s end
  return '\219' .. big(n, 4) .. s
end

local function pack(value)
  local kind = type(value)
  if kind == 'number' then return pack_number(value) end
  if kind == 'string' then return pack_string(value) end
  if kind == 'nil' then return '\192' end
  if kind == 'boolean' then return value and '\195' or '\194' end
  local n = #value
  local parts = { n < 16 and char(144 + n) or n < 65536 and '\220' .. big(n, 2) or '\221' .. big(n, 4) }
  for i = 1, n do
    parts[i + 1] = pack(value[i])
  end
  return table.concat(parts)
end

function cmsgpack.pack(...)
  local parts = {}
  for i = 1, select('#', ...) do
    parts[i] = pack((select(i, ...)))
  end
  return table.concat(parts)
end

local function number(s, i, size)
  local n = 0
  for k = i, i + size - 1 do
    n = n * 256 + byte(s, k)
  end
  return n
end

local unpack_one

local function list(s, i, n)
  local items = {}
  for k = 1, n do
    items[k], i = unpack_one(s, i)
  end
  return items, i
end

local STRINGS = { [196] = 1, [197] = 2, [198] = 4, [217] = 1, [218] = 2, [219] = 4 }
local NUMBERS = { [204] = 1, [205] = 2, [206] = 4, [207] = 8 }
local SIGNED = { [208] = 1, [209] = 2, [210] = 4, [211] = 8 }

-- Returns the value that begins at index i, and the index after it.
function unpack_one(s, i)
  local t = byte(s, i)
  i = i + 1
  if t < 128 then return t, i end
  if t >= 224 then return t - 256, i end
  if t >= 160 and t < 192 then return sub(s, i, i + t - 161), i + t - 160 end
  if t >= 144 and t < 160 then return list(s, i, t - 144) end
  if STRINGS[t] then
    local size = STRINGS[t]
    local n = number(s, i, size)
    return sub(s, i + size, i + size + n - 1), i + size + n
  end
  if NUMBERS[t] then return number(s, i, NUMBERS[t]), i + NUMBERS[t] end
  if SIGNED[t] then
    local size = SIGNED[t]
    local n = number(s, i, size)
    return n >= 2 ^ (8 * size - 1) and n - 2 ^ (8 * size) or n, i + size
  end
  if t == 220 then return list(s, i + 2, number(s, i, 2)) end
  if t == 221 then return list(s, i + 4, number(s, i, 4)) end
  if t == 192 then return nil, i end
  if t == 194 or t == 195 then return t == 195, i end
  error('this cmsgpack does not unpack the type ' .. t)
end

function cmsgpack.unpack(s)
  return (unpack_one(s, 1))
end

return cmsgpack
