-- @include eligible
-- @lazy
-- Where the inputs of a task lie. It matters only while workers are on several hosts.
local SAMPLE = 64     -- inputs that are looked at
local NEAR = 50000000 -- bytes that can be moved within the 50 ms that a task waits for its own host at most
local hosts

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

-- The host with the most bytes of a task's inputs, and whether moving them elsewhere takes longer than waiting; nil where
-- it does not matter.
function S.home(name)
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
        if not best or bytes[host] > bytes[best] then
          best = host
        end
      end
    end
  end
  return best, best and bytes[best] > NEAR
end
