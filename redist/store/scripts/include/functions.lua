-- @include work
-- @lazy
-- Functions are counted by the callers that brought them and the records whose spec names them; classes likewise.
local uses = {}
function S.use_function(hash, by)
  uses[hash] = (uses[hash] or 0) + by
end

closers[#closers + 1] = function()
  for hash, by in pairs(uses) do
    if by ~= 0 and call('HINCRBY', P .. 'fns', hash, by) <= 0 then
      call('HDEL', P .. 'fns', hash)
      call('UNLINK', P .. 'fn:' .. hash, P .. 'class:' .. hash)
    end
  end
  uses = {}
end
