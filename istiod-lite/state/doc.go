// Package state keeps what is known of the cluster and works out what data planes are told, a step at a time: an event marks
// what depends on it, and only that is translated again. The cost of one changed pod does not depend on the size of the
// mesh, in time or in memory.
//
// State is not safe for concurrent use: Loop owns it. What comes out is always what translate.All, and for each waypoint l7.For,
// would give for the same objects; the tests hold them together.
package state
