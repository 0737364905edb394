-- @include parts
-- A script that frees opens its writes with a no-op that a full server lets through, and with it all that follows.
call('SREM', P .. 'void', '')
