-- @include parts
-- @include publish
-- @include clock
-- @include growing
-- Register a caller, or register it anew: a new incarnation, whose lane goes on behind the n that it brings.
-- Everything that the caller's connection must be allowed to do is done once before anything is kept.
-- KEYS[1] META
-- ARGV[1] (0, incarnation, 0, 0, 0,) kind, name, ordinal held before or 0, parent worker or 0, highest attempt and generation
--   seen, lease in ms, 1 for a named session, what the caller knows (1: the server lost writes, 2: an earlier registration of
--   this process was not answered, and may have been carried out, 4: a worker of this name whose lease has not run out is
--   in the way), the secret of the server that it knew or '', the n of the registration, above all that it used before, then
--   pairs: further fields of caller:ORD
-- Reply OK 0 ordinal generation attempt adopted secret | NO code message
local a = cmsgpack.unpack(ARGV[1])
local incarnation = a[2]
local kind, name, ordinal, parent, attempt, generation, lease, named, missed, secret, n = unpack(a, 6, 16)
local GRACE = 10000 -- ms: all who live have heard of a loss by then; a named session's lease may be hours
local now = int(S.now())
local alone, again = missed >= 4, math.floor(missed / 2) % 2 == 1
S.publish('to:0', { 'p' })
S.publish('evict:0', { 'p' })
S.publish('all', { 'p' })
call('SREM', P .. 'void', '')
call('UNLINK', P .. 'void')

local schema = call('HGET', META, 'schema')
if schema and schema ~= '1' then
  return { 'NO', 'schema', schema }
end
if parent > 0 and not call('HEXISTS', P .. 'workers', int(parent)) then
  return { 'NO', 'worker', 'the worker ' .. int(parent) .. ' is not registered' }
end
if kind == 'executor' and call('HEXISTS', P .. 'workers', int(parent)) == 0 then
  return { 'NO', 'worker', 'the worker ' .. int(parent) .. ' is not registered' }
end

local details = {}
for i = 17, #a, 2 do
  details[a[i]] = a[i + 1]
end
local own = false -- ordinal of the earlier registration of this process
local flat = (again or alone) and call('HGETALL', P .. kind .. 's') or {}
for i = 1, #flat, 2 do
  if flat[i + 1] == name then
    local c = call('HMGET', P .. 'caller:' .. flat[i], 'pid', 'host', 'worker', 'seen', 'lease', 'inc')
    if again and c[1] == (details.pid or false) and c[2] == (details.host or false) and (c[3] or '0') == int(parent) then
      own = tonumber(flat[i])
    elseif alone and tonumber(flat[i]) ~= ordinal and (c[6] or '') ~= ''
      and tonumber(c[4] or 0) + tonumber(c[5] or 0) > S.now() then
      return { 'NO', 'name', 'a living worker has the name \'' .. name .. '\': process ' .. (c[1] or '?') .. ' on '
        .. (c[2] or '?') .. '. Give this one another name, or stop that one' }
    end
  end
end

if not schema then
  call('HSET', META, 'schema', '1', 'generation', '1', 'since', now)
end
call('HSETNX', META, 'secret', a[2])

-- A caller that has seen more than the server knows, or has seen another, tells that the server lost writes, if its lane did
-- not tell it so. (Numbers alone do not: after an empty start newcomers may have used them up.)
local known = call('HMGET', META, 'attempt', 'generation', 'ordinal', 'secret', 'recovering')
local lost = missed % 2 == 1 or attempt > tonumber(known[1] or 0) or generation > tonumber(known[2] or 1)
  or ordinal > tonumber(known[3] or 0) or secret ~= '' and secret ~= known[4]
if attempt > tonumber(known[1] or 0) then
  call('HSET', META, 'attempt', int(attempt))
end
if generation > tonumber(known[2] or 1) then
  call('HSET', META, 'generation', int(generation))
end
if ordinal > tonumber(known[3] or 0) then
  call('HSET', META, 'ordinal', int(ordinal))
end

local adopted = 0
if named == 1 then
  local before = call('HGET', P .. 'named', name)
  if before and call('HGET', P .. 'caller:' .. before, 'inc') then
    ordinal, adopted = tonumber(before), 1
  end
end
if ordinal > 0 then
  local holder = call('HMGET', P .. 'caller:' .. int(ordinal), 'kind', 'name', 'inc')
  if holder[1] and (holder[1] ~= kind or holder[2] ~= name or holder[3] == '') then
    ordinal, adopted = 0, 0
  elseif not holder[1] and not lost and call('HEXISTS', META, 'recovering') == 0 then
    ordinal = 0 -- it was gone for longer than its lease, and slices of its end may still be on the work list
  end
end
if ordinal == 0 and own then
  ordinal = own
end
if ordinal == 0 then
  ordinal = call('HINCRBY', META, 'ordinal', 1)
end
local ord = int(ordinal)
if lost then
  call('HSET', META, 'recovering', int(math.max(tonumber(known[5] or 0), S.now() + math.min(lease, GRACE))))
end

local me = P .. 'caller:' .. ord
local changes = {} -- of a worker's resources
local function note_resources(factor)
  for resource, amount in string.gmatch(call('HGET', me, 'resources') or '', '([^=,]+)=([%d%.]+)') do
    changes[resource] = (changes[resource] or 0) + factor * amount
  end
end
note_resources(-1)
local fields = { 'kind', kind, 'name', name, 'inc', incarnation, 'n', int(n), 'since', now, 'seen', now,
  'lease', int(lease) }
local quota -- that the namespace has from now on, 0 for none
local owns = false
for i = 17, #a, 2 do
  if a[i] == 'namespace_quota' then
    quota = a[i + 1]
  else
    fields[#fields + 1] = a[i]
    fields[#fields + 1] = a[i + 1]
    owns = owns or a[i] == 'quota'
  end
end
call('HDEL', me, 'quota')
if quota == '0' then
  call('HDEL', META, 'quota')
elseif quota then
  call('HSET', META, 'quota', quota)
end
if quota or owns then
  call('HSET', META, 'quotas', '1') -- from now on it is noted who made which key
end
if parent > 0 then
  fields[#fields + 1] = 'worker'
  fields[#fields + 1] = int(parent)
end
call('HSET', me, unpack(fields))
call('UNLINK', P .. 'answers:' .. ord)
if call('EXISTS', P .. 'holds:' .. ord) == 1 then
  if call('EXISTS', P .. 'stale:' .. ord) == 0 then
    call('RENAME', P .. 'holds:' .. ord, P .. 'stale:' .. ord)
  else
    call('SUNIONSTORE', P .. 'stale:' .. ord, P .. 'stale:' .. ord, P .. 'holds:' .. ord)
    call('UNLINK', P .. 'holds:' .. ord)
  end
end
if named == 1 then
  call('HSET', P .. 'named', name, ord)
end
call('HSET', P .. kind .. 's', ord, name)
if kind == 'executor' then
  call('SADD', P .. 'executors:' .. int(parent), ord)
  local status = call('HGET', P .. 'caller:' .. int(parent), 'status')
  if status and status ~= 'running' then -- as its worker's heartbeat has told the others
    call('HSET', me, 'paused', status == 'strained' and '0' or '1')
  else
    call('HDEL', me, 'paused')
  end
else
  call('ZADD', P .. 'leases', int(S.now() + lease), ord)
end
if kind == 'worker' then
  note_resources(1)
  for resource, change in pairs(changes) do -- what executors of before have taken they give back
    if change ~= 0 then
      call('HINCRBYFLOAT', me, 'free:' .. resource, change)
    end
  end
  call('HSET', me, 'status', 'running') -- until a heartbeat says something else
  call('HDEL', me, 'retired')
  for _, x in ipairs(call('SMEMBERS', P .. 'executors:' .. ord)) do
    call('HDEL', P .. 'caller:' .. x, 'paused')
  end
  if call('EXISTS', P .. 'short') == 1 then
    call('RPUSH', P .. 'work', 'look_anew 0 0')
  end
  call('HSET', P .. 'hosts', ord, call('HGET', me, 'memory') or '')
end
S.publish('all', { 'w', ord })
local meta = call('HMGET', META, 'generation', 'attempt', 'secret')
return { 'OK', 0, ord, meta[1], meta[2] or '0', int(adopted), meta[3] }
