-- @include names
local S = {}             -- operations on state; one table, so that parts may call each other whatever their order
local closers = {}       -- what loaded parts have to flush when the script ends

-- Creating closures costs more than most calls, the more the more locals they use. So parts marked `@lazy` are functions in
-- `lazy`, which `declare` fills when the first is missed, and a part runs when one of its operations is first missed; hot
-- paths run the parts that they need themselves. The loader writes OWNERS, a text with ` OPERATION=PART ` of each (a table
-- would have to be built at every call), and `declare` behind the other parts.
local lazy, declare = {}, nil

local function need(part)
  if declare then
    declare()
    declare = nil
  end
  local load_part = lazy[part]
  if load_part then
    lazy[part] = nil
    load_part()
  end
end

setmetatable(S, {
  __index = function(_, operation)
    local of = '--[[OWNERS]]'
    local _, at = string.find(of, ' ' .. operation .. '=', 1, true)
    if at then
      need(match(of, '^[%a_]+', at + 1))
      return rawget(S, operation)
    end
  end,
})

-- Lua would write 1e+14 for a large integer.
local function int(number)
  return format('%d', number)
end

-- The first word of a state: `processing e3.4711` -> processing.
local function word(state)
  return match(state, '^%a+')
end

-- A variadic call in chunks: list[from..] follow the fixed arguments.
function S.many(command, key, list, from)
  local n = #list
  for i = from or 1, n, CHUNK do
    call(command, key, unpack(list, i, math.min(i + CHUNK - 1, n)))
  end
end
