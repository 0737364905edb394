-- @include eligible
-- @lazy
-- Where the inputs of a task lie. It matters only while workers are on several hosts.
local SAMPLE = 64     -- inputs that are looked at
local NEAR = 50000000 -- bytes that can be moved within the 50 ms that a task waits for its own host at most
local hosts
local open = {}       -- by class and host: whether a worker there is one that the class allows

-- How many ms a task waits for an executor of the host of its inputs.
function S.away()
  return 50
end

-- The host of each worker by ordinal, or false while all are on one.
function S.hosts()
  if hosts == nil then
    hosts = false
    local flat = call('HGETALL', P .. 'hosts')
    local by_worker, several = {}, false
    for i = 1, #flat, 2 do
      by_worker[flat[i]] = flat[i + 1]
      several = several or flat[i + 1] ~= flat[2]
    end
    if several then
      hosts = by_worker
    end
  end
  return hosts
end

-- The host of executor x.
function S.host_of(x)
  local e = S.caller(x)
  return e and S.hosts() and S.hosts()[e.worker]
end

-- Whether a worker of the host may run the class, now or later: there is nothing to wait for where none ever may.
local function is_open(host, hash)
  if hash == '' then
    return true
  end
  local key = hash .. '@' .. host
  if open[key] == nil then
    open[key] = false
    local left = SAMPLE -- beyond so many it is taken for granted
    for w, its in pairs(hosts) do
      if its == host then
        left = left - 1
        if left < 0 or S.is_allowed(w, hash) then
          open[key] = true
          break
        end
      end
    end
  end
  return open[key]
end

-- Of the hosts that a task's class allows the one with the most bytes of its inputs, and whether moving them elsewhere takes
-- longer than waiting; nil where it does not matter.
function S.home(name, hash)
  if not S.hosts() then
    return nil
  end
  local bytes, best = {}, nil
  for _, d in ipairs(call('SRANDMEMBER', P .. 'deps:' .. name, SAMPLE)) do
    local hd = rec(d)
    local there = {}
    for field in pairs(hd or {}) do
      local host = sub(field, 1, 2) == 'w:' and hosts[sub(field, 3)]
      if host and not there[host] then
        there[host] = true
        bytes[host] = (bytes[host] or 0) + tonumber(hd.nbytes or 0)
        if (not best or bytes[host] > bytes[best]) and is_open(host, hash) then
          best = host
        end
      end
    end
  end
  return best, best and bytes[best] > NEAR
end
