-- @include lane
-- @include freeing
-- @include callers
-- End a registration anew. What the index from before still names, and the caller has not counted again, is released.
-- KEYS[1] META
-- ARGV[1] header
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
S.later('stale ' .. ME)
return S.done(S.settle_up())
