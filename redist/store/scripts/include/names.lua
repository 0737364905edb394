-- Where everything lies: KEYS[1] is redist:{NAMESPACE}:meta and routes the script; all other keys share its prefix and slot.
local P = string.sub(KEYS[1], 1, -5)
local META, RECORD = KEYS[1], P .. 'key:'
local call, sub, match, format, concat = redis.call, string.sub, string.match, string.format, table.concat
local SLICE = 200        -- items of long work that one script carries out
local CHUNK = 1000       -- arguments of one variadic call
local PUSH_LIMIT = 1024  -- bytes of an inline value that is pushed to clients
local ERROR_LIMIT = 4096 -- bytes of a pickled error that is pushed to clients
local COMPACT = 64       -- bytes of a field, beyond which a hash loses its compact encoding
local S = {}             -- operations on state; one table, so that parts may call each other whatever their order
local closers = {}       -- what loaded parts have to flush when the script ends

-- Creating closures costs more than most calls, so a part marked `@lazy` is a function in `lazy` that is run when one of its
-- operations is first missed; hot paths run the parts that they need themselves. The loader writes OWNERS: operation -> part.
local lazy, owners = {}, nil
setmetatable(S, {
  __index = function(_, operation)
    owners = owners or { --[[OWNERS]] }
    local load_part = lazy[owners[operation]]
    if load_part then
      load_part()
      return rawget(S, operation)
    end
  end,
})

local function need(part)
  if lazy[part] then
    lazy[part]()
  end
end

-- Lua would write 1e+14 for a large integer.
local function int(number)
  return format('%.0f', number)
end

-- The first word of a state: `processing e3.4711` -> processing.
local function word(state)
  return match(state, '^%a+')
end
