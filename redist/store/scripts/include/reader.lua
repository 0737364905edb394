-- @include parts
-- The list of an unnumbered script, with its own items from index BODY.
local a = cmsgpack.unpack(ARGV[1])
local BODY = 6
local epoch = call('HMGET', META, 'generation', 'wiping', 'recovering')
local recovering = epoch[3]
