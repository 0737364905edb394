-- @include lane
-- @include freeing
-- @include wiping
-- Raise the generation and begin to forget every key and dataset, all metadata, and the values of variables, queues and
-- topics. Callers stay registered, and locks and events as they are.
-- KEYS[1] META
-- ARGV[1] header
-- Reply OK more generation
if repeated then
  return { 'REPEAT', 0, tonumber(epoch[1]) }
end
local generation = call('HINCRBY', META, 'generation', 1)
call('HSET', META, 'wiping', '1')
call('HDEL', META, 'recovering')
recovering = false
call('UNLINK', P .. 'datasets', P .. 'variables', P .. 'metadata')
S.publish('all', { 'g', generation })
for _, kind in ipairs({ 'clients', 'workers', 'executors' }) do
  for _, ordinal in ipairs(call('HKEYS', P .. kind)) do
    S.later('wipe ' .. ordinal)
  end
end
S.later('wipe 0')
S.later('wipe d')
S.later('wipe c')
S.later('purge 0')
S.later('hand_back -')
S.later('undefer -')
S.later('wiped ' .. int(generation))
local more = S.settle_up()
call('HSET', me, 'n', N, 'sum', '0')
return { 'OK', more, generation }
