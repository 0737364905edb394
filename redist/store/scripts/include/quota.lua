-- @include eligible
-- @include fields
-- @lazy
-- What callers hold, where somebody has a quota: bytes of values on workers, each counted once, for who made its key. A key
-- that was made since then has its `owner`, and `counted` while its value counts. After the server lost its memory the first
-- who tells that he holds it is its owner.

-- The value of a key with an owner has come, on workers.
function S.count_value(name, h)
  local size = int(h.nbytes or 0)
  S.set(name, h, 'counted', size)
  call('ZADD', P .. 'sizes:' .. h.owner, size, name)
  call('ZINCRBY', P .. 'bytes', size, h.owner)
  call('HINCRBY', META, 'bytes', size)
end

-- A key without an owner is this caller's.
function S.own(name, h)
  S.set(name, h, 'owner', ME)
  if word(h.state) == 'memory' and S.where(h) then
    S.count_value(name, h)
  end
end

-- A value that was counted is not there any more.
function S.discount(name, h)
  local size = h.counted
  S.unset(name, h, 'counted')
  call('ZREM', P .. 'sizes:' .. h.owner, name)
  if tonumber(call('ZINCRBY', P .. 'bytes', '-' .. size, h.owner)) <= 0 and call('EXISTS', P .. 'sizes:' .. h.owner) == 0 then
    call('ZREM', P .. 'bytes', h.owner)
  end
  if call('HINCRBY', META, 'bytes', '-' .. size) <= 0 then
    call('HDEL', META, 'bytes')
  end
end

-- Why this caller may not hold `need` bytes more, or nothing more at all: `SCOPE NEED USED LIMIT`, then the largest holders,
-- `BYTES NAME` a line; nil if it may.
function S.over_quota(need)
  local function says(scope, used, limit, key, name_of)
    used, limit = tonumber(used or 0), tonumber(limit or 0)
    if limit == 0 or used + need <= limit and used < limit then
      return
    end
    local lines = { format('%s %.0f %.0f %.0f', scope, need, used, limit) }
    local largest = call('ZREVRANGE', P .. key, 0, 2, 'WITHSCORES')
    for i = 1, #largest, 2 do
      lines[#lines + 1] = format('%.0f %s', tonumber(largest[i + 1]), name_of(largest[i]))
    end
    return concat(lines, '\n')
  end
  local function itself(name)
    return name
  end
  local function caller_name(ordinal)
    local c = S.caller(ordinal)
    return c and c.name or 'caller ' .. ordinal .. ', which is gone'
  end
  local mine = call('HGET', me, 'quota')
  local text = mine and says('client', call('ZSCORE', P .. 'bytes', ME), mine, 'sizes:' .. ME, itself)
  if text then
    return text
  end
  local all = call('HMGET', META, 'bytes', 'quota')
  return all[2] and says('namespace', all[1], all[2], 'bytes', caller_name) or nil
end
