// Package xds tells data planes what the state is, by delta ADS. A Hub holds the current resources, encoded once, and for each
// connection what it has still to be told. There is no timer between a change and its push: a change goes out as soon as
// the connection has acknowledged what it was sent before, and whatever comes meanwhile is merged, the last state of each
// resource only. So a single change waits for nothing, and a burst is gathered by the speed of the receiver.
//
// Node proxies share one Hub, which has all of the mesh; Waypoints has one for each waypoint, with what is its own. A waypoint is
// told from its own credential and from the Gateway that it says it is of.
//
// go-control-plane gives the protocol's types; its caches and server are not used, since they keep a copy of the names and
// versions per connection, encode each response anew, and do not order types.
package xds
