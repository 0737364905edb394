-- @include parts
-- A script that grows opens its writes with one that a full server refuses, so that it fails before it changed anything.
call('HSET', META, 'grown', '1')
