-- @include parts
-- @lazy
-- The one place that publishes; the loader turns the command into SPUBLISH for a Cluster.
function S.publish(channel, list)
  return call('PUBLISH', P .. channel, cmsgpack.pack(list))
end
