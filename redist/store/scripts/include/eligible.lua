-- @include records
-- @lazy
-- Which executor may run a task of an eligibility class, and what the class's resources leave free on a worker.
local callers, classes = {}, {}
local alive = {} -- by executor that a class names: whether it is

-- A caller's record, read once a script; false when it is gone.
function S.caller(ordinal)
  local c = callers[ordinal]
  if c == nil then
    local flat = call('HGETALL', P .. 'caller:' .. ordinal)
    c = false
    if flat[1] then
      c = {}
      for i = 1, #flat, 2 do
        c[flat[i]] = flat[i + 1]
      end
    end
    callers[ordinal] = c
  end
  return c
end

local function each_resource(text)
  return string.gmatch(text, '([^=,]+)=([%d%.]+)')
end

-- A class's record, read once a script. Where it is lost nobody may run the tasks: what they ask for is not known.
function S.class(hash)
  local c = classes[hash]
  if c == nil then
    local v = call('HMGET', P .. 'class:' .. hash, 'workers', 'resources', 'strict')
    c = { workers = '\n' .. (v[1] or '') .. '\n', resources = v[2] or '', strict = v[3] ~= '0', any = (v[1] or '') == '',
      lost = not v[3] }
    if v[3] == '2' then -- `workers` is the ordinal of an executor: that one, and anybody once it is gone
      c.executor, c.any = v[1], true
    end
    classes[hash] = c
  end
  return c
end

-- Whether a worker is one of a newline-framed list of names, addresses, hosts and ordinals.
function S.is_named(list, ordinal, worker)
  for _, value in ipairs({ worker.name, worker.address or '', worker.host or '', ordinal }) do
    if value ~= '' and string.find(list, '\n' .. value .. '\n', 1, true) then
      return true
    end
  end
  return false
end

local function is_alive(executor)
  if alive[executor] == nil then
    alive[executor] = call('HEXISTS', P .. 'executors', executor) == 1
  end
  return alive[executor]
end

-- An executor has just gone.
function S.struck(executor)
  alive[executor] = false
end

-- The executor that the class names, if it is there and takes tasks.
function S.bound_to(hash)
  local x = hash ~= '' and S.class(hash).executor
  if x and is_alive(x) then
    local e = S.caller(x)
    return e and not e.paused and x or nil
  end
end

-- Executor x, which is alive and not paused, may take a task of the class now.
function S.may_run(x, hash)
  if hash == '' then
    return true
  end
  local e = S.caller(x)
  local w = e and S.caller(e.worker)
  if not w then
    return false
  end
  local c = S.class(hash)
  if c.executor and c.executor ~= x and is_alive(c.executor) then
    return false
  end
  if c.lost or not c.any and c.strict and not S.is_named(c.workers, e.worker, w) then
    return false
  end
  for resource, amount in each_resource(c.resources) do
    if tonumber(w['free:' .. resource] or 0) < tonumber(amount) then
      return false
    end
  end
  return true
end

-- Whether the class names worker w, or none, and w has what it asks for when nothing else runs there.
function S.is_allowed(w, hash)
  local c, worker = S.class(hash), S.caller(w)
  if not worker or c.lost or not c.any and c.strict and not S.is_named(c.workers, w, worker) then
    return false
  end
  for resource in each_resource(c.resources) do
    if not worker['free:' .. resource] then
      return false
    end
  end
  return true
end

-- Take a class's resources from the worker of x under a batch, or give back what the batch took.
function S.claim(x, batch, hash)
  local resources = S.class(hash).resources
  if resources == '' then
    return
  end
  local worker = S.caller(x).worker
  for resource, amount in each_resource(resources) do
    local left = call('HINCRBYFLOAT', P .. 'caller:' .. worker, 'free:' .. resource, '-' .. amount)
    S.caller(worker)['free:' .. resource] = left
  end
  call('HSET', P .. 'caller:' .. x, 'claim:' .. batch, resources)
  call('HINCRBY', P .. 'caller:' .. x, 'claims', 1)
  S.caller(x)['claim:' .. batch] = resources
end

function S.unclaim(x, batch)
  local e = S.caller(x)
  local resources = e and e['claim:' .. batch]
  if resources then
    call('HDEL', P .. 'caller:' .. x, 'claim:' .. batch)
    call('HINCRBY', P .. 'caller:' .. x, 'claims', -1)
    e['claim:' .. batch] = nil
    local w = S.caller(e.worker)
    for resource, amount in each_resource(w and resources or '') do
      w['free:' .. resource] = call('HINCRBYFLOAT', P .. 'caller:' .. e.worker, 'free:' .. resource, amount)
    end
  end
end
