-- @include lane
-- @include freeing
-- @include callers
-- Set the caller's reference counts to absolute values, so that a repeat converges; 0 lets go.
-- A count for a key that is not known creates nothing; its Futures are cancelled.
-- KEYS[1] META
-- ARGV[1] header, then pairs: name, count
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local field = 'refs:' .. ME
local held, dropped = {}, {}
local uses = {} -- functions of what was let go: how often
local start = BODY -- the first pair that is not of the plain case

-- The plain case: inline values that nobody else wants and no task knows are let go. What `S.let_go` does, in fewer calls
-- and without the parts.
if not epoch[3] then -- while nobody registers anew after a loss
  local plain = { state = true, data = true, nbytes = true, type = true, fn = true, [field] = true }
  while a[start + 1] == 0 do
    local name = a[start]
    local flat = call('HGETALL', RECORD .. name)
    local state, long, count, fn
    for k = 1, #flat, 2 do
      local f = flat[k]
      if not plain[f] then
        state = nil
        break
      elseif f == 'state' then
        state = flat[k + 1]
      elseif f == field then
        count = flat[k + 1]
      elseif f == 'data' then
        long = flat[k + 1] == ''
      elseif f == 'fn' then
        fn = flat[k + 1]
      end
    end
    if state ~= 'memory' or not count or cache[name] == false then
      break
    end
    gone[#gone + 1] = RECORD .. name
    if long then
      gone[#gone + 1] = P .. 'data:' .. name
    end
    cache[name] = false
    born = born - 1
    sum = sum - count
    dropped[#dropped + 1] = name
    if fn then
      uses[fn] = (uses[fn] or 0) + 1
    end
    start = start + 2
  end
  if dropped[1] and start > #a and #gone <= CHUNK then
    call('SREM', P .. 'holds:' .. ME, unpack(dropped))
    call('UNLINK', unpack(gone))
    for fn, count in pairs(uses) do
      if call('HINCRBY', P .. 'fns', fn, -count) <= 0 then
        call('HDEL', P .. 'fns', fn)
        call('UNLINK', P .. 'fn:' .. fn, P .. 'class:' .. fn)
      end
    end
    call('HSET', META, 'keys', format('%d', epoch[6] + born))
    call('HSET', me, 'n', N, 'sum', format('%d', sum))
    return { 'OK', 0 }
  end
end

-- @general
for k = start, epoch[7] and recovering and #a or 0, 2 do -- a name that is still being forgotten cannot come again yet
  if a[k + 1] > 0 and call('HGET', RECORD .. a[k], 'state') == 'forgetting' then
    return { 'WAIT' }
  end
end
for fn, count in pairs(uses) do
  S.use_function(fn, -count)
end
local holds = {} -- name -> whether the caller holds it in the end, by the last of its counts
for i = start, #a, 2 do
  local name, count = a[i], a[i + 1]
  local h = rec(name)
  if h and h.state == 'forgetting' then
    h = false
  end
  if count == 0 then
    holds[name] = false
    if h and h[field] then
      sum = sum - h[field]
      S.let_go(name, h, field)
    end
  elseif not h then
    if recovering then
      h = S.placeholder(name)
      if epoch[8] then
        S.own(name, h)
      end
      S.set(name, h, field, int(count))
      holds[name] = true
      sum = sum + count
    else
      S.tell_cancelled(ME, name, 'the key is not known (released everywhere, cancelled, or from before a restart)')
    end
  elseif h[field] ~= int(count) then
    sum = sum + count - tonumber(h[field] or 0)
    local first_one = not h[field]
    S.set(name, h, field, int(count))
    if recovering and epoch[8] and not h.owner then -- its worker was the first to tell of it
      S.own(name, h)
    end
    holds[name] = true
    local state = word(h.state)
    if state == 'released' then
      S.later('revive ' .. name)
    elseif first_one and (state == 'memory' or state == 'erred') then
      S.tell_one(ME, name, h)
    end
  else
    holds[name] = true
  end
end
for name, is_held in pairs(holds) do
  local list = is_held and held or dropped
  list[#list + 1] = name
end
S.many('SREM', P .. 'holds:' .. ME, dropped)
S.many('SADD', P .. 'holds:' .. ME, held)
local more = S.settle_up()
return S.done(more)
